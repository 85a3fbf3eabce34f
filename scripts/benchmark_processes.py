"""How fast several processes train one run on this machine's CPU, and what their sums cost.

    python scripts/benchmark_processes.py

Each figure is a fresh job: that many processes, one thread each, take the steps of training on
drawn pictures, first for a third of `--seconds` untimed. A round measures every setting once;
rounds alternate in direction, so that a slow spell of the machine meets all of them. Reported are
medians over the rounds, with the lowest and the highest, and what one sum over the processes takes
when nothing else is done. Left out: GPUs and networks, which take other machines.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rsnn_fmnist import models
from rsnn_fmnist.config import Experiment
from rsnn_fmnist.data import synthetic
from rsnn_fmnist.data.loader import Loader, batch_indices
from rsnn_fmnist.data.pictures import Pictures
from rsnn_fmnist.data.splits import epoch_order
from rsnn_fmnist.interrupt import REASONS
from rsnn_fmnist.metrics import Sums
from rsnn_fmnist.session import open_session
from rsnn_fmnist.storage import provenance
from rsnn_fmnist.training.step import training_step
from rsnn_fmnist.world import World, processes

CPU = torch.device("cpu")
PICTURES = 8192


@dataclass(frozen=True)
class Case:
    """What one job measures."""

    processes: int
    hidden: int
    batch: int
    model: str
    seconds: float


def rate(world: World, do: Callable[[], object], seconds: float) -> float:
    """How often a second `do` is done, the number of times agreed by all; after a warm-up."""
    start, done, more = time.perf_counter(), 0, True
    while more:
        do()
        done += 1
        spent = time.perf_counter() - start
        more = world.on_first(partial(bool, done < 3 or spent < seconds / 3))
    count = world.on_first(partial(max, 3, round(done * seconds / spent)))
    start = time.perf_counter()
    for _ in range(count):
        do()
    return count / (time.perf_counter() - start)


def measure(world: World, case: Case) -> dict[str, float]:
    """Images/s, and for several processes the seconds of a sum, and the bytes that it adds up."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = synthetic.draw(PICTURES, 1)
    columns = torch.from_numpy(images).transpose(1, 2).contiguous()
    loader = Loader(Pictures(columns, torch.from_numpy(labels).long()), CPU)
    session = open_session(
        Experiment(model=case.model, hidden=case.hidden, batch_size=case.batch),
        CPU,
        models.build(case.model, hidden=case.hidden),
        (loader, None, loader),
        world=world,
    )
    sums = Sums(CPU)
    step = training_step(session, sums)
    batches = batch_indices(epoch_order(PICTURES, 0, 0), case.batch, drop_last=True)
    shares = itertools.cycle([world.share(batch) for batch in batches])
    found = {
        "images_per_second": case.batch * rate(world, lambda: step(next(shares)), case.seconds)
    }
    if world.size > 1:
        parameters = sum(p.numel() for p in session.model.parameters())
        bucket = torch.zeros(parameters + len(sums.totals) + len(REASONS))
        found["sum_seconds"] = 1 / rate(world, lambda: dist.all_reduce(bucket), case.seconds / 3)
        found["sum_bytes"] = bucket.nbytes
    return found


def ask(case: Case) -> dict[str, float]:
    """What a job of its own measures."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    job = [*launcher, str(case.processes)] if case.processes > 1 else []
    command = [sys.executable, *job, __file__, "--case", json.dumps(asdict(case))]
    root = str(Path(__file__).resolve().parents[1])
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(
            f"benchmark_processes: error: {case} ended with {done.returncode}; see above"
        )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def table(answers: dict[Case, list[dict[str, float]]]) -> str:
    """A line a setting: images/s, the ratio to one process, and the sum."""
    lines = [
        f"{'model':<17}{'hidden':>7}{'batch':>7}{'processes':>11}{'images/s':>10}   "
        f"{'lowest-highest':<17}{'ratio':>6}{'step ms':>9}{'sum ms':>8}{'sum KiB':>9}"
    ]
    alone: dict[tuple[str, int, int], float] = {}
    for case, found in answers.items():
        rates = [answer["images_per_second"] for answer in found]
        median = statistics.median(rates)
        setting = (case.model, case.hidden, case.batch)
        alone.setdefault(setting, median)
        spread = f"{min(rates):,.0f}-{max(rates):,.0f}"
        line = (
            f"{case.model:<17}{case.hidden:>7}{case.batch:>7}{case.processes:>11}{median:>10,.0f}"
        )
        line += f"   {spread:<17}{median / alone[setting]:>6.2f}{1000 * case.batch / median:>9.2f}"
        if case.processes > 1:
            seconds = statistics.median(answer["sum_seconds"] for answer in found)
            line += f"{1000 * seconds:>8.2f}{found[0]['sum_bytes'] / 1024:>9,.1f}"
        lines.append(line)
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--processes", type=int, nargs="+", default=[1, 2], metavar="N")
    add("--hidden", type=int, nargs="+", default=[32, 512], metavar="N")
    add("--batch-size", "-b", type=int, nargs="+", default=[128, 1024], metavar="N")
    add("--model", default="feedback", choices=tuple(models.MODELS))
    add("--rounds", type=int, default=3, metavar="N")
    add("--seconds", type=float, default=3.0, help="of a timed loop (default: 3)")
    add("--case", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.case:
        with processes("cpu") as world:
            found = measure(world, Case(**json.loads(options.case)))
            if world.first:
                print(json.dumps(found))
        return 0
    settings = itertools.product(options.hidden, options.batch_size, options.processes)
    cases = [
        Case(count, hidden, batch, options.model, options.seconds)
        for hidden, batch, count in settings
    ]
    load = os.getloadavg()[0]
    answers: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    for i in range(options.rounds):
        for case in cases if i % 2 == 0 else cases[::-1]:
            answers[case].append(ask(case))
    facts: dict[str, Any] = provenance.describe(CPU, "numba")
    names = ("processor", "cores", "python", "torch", "numba")
    print(", ".join(f"{name} {facts.get(name)}" for name in names), f"load {load:.2f} at the start")
    print(f"one thread a process, T 28, median of {options.rounds} rounds\n")
    print(table(answers))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
