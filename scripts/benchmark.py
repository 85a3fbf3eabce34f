"""Compare training throughput with that of other implementations: one run, one table.

    python scripts/benchmark.py --json benchmark.json
    python scripts/benchmark.py --device cuda --json benchmark-cuda.json

Measured is training throughput, in pictures a second over wall time, of this project (per model,
backend and thread count), of the script it descends from ("the tutorial"), of spikingjelly 2.0's
networks, and of a torch LSTM of the same width; further how this project's cost grows with batch,
hidden size and T, each process's peak memory, and the share of a core's peak of multiply-adds. On
CUDA it is this project as one graph and eagerly, with --amp and without, spikingjelly's networks on
each implementation that it has, and an LSTM by cuDNN. benchmark_contestants.py says how each figure
is taken.

Every measurement is a fresh process: warm-up, then a timed loop of `--seconds`. A round measures
each contestant once; rounds alternate in direction, so that a slow spell of the machine affects
all of them. Reported are median, lowest and highest over the rounds, and ratios of medians. Peers
are imported in environments of their own (.peers/NAME); one that is not installed is listed with
the command that installs it.

The machine should be idle (all of it takes about twelve minutes on two cores): other
programs slow the tutorial's script, whose threads wait for each other, the most. On a machine with
more than two cores, use `taskset -c 0,1`. Left out: several GPUs, evaluation, accuracy.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmark_contestants
from benchmark_contestants import CONTESTANTS, MODELS, PEERS, ROOT, Case, Peer
from benchmark_tables import Row, peak_lines, row_record, scaling_table, table

from rsnn_fmnist.arguments import Parser, run_command
from rsnn_fmnist.errors import RunError, UsageError

PICTURES, QUICK_PICTURES = 60_000, 4_096
IDLE = 0.5  # load above which the figures are not to be trusted
SCALED = ("numba", "cuda")  # the contestants of the tables of growth
SCALES = {  # setting -> values, the others at their defaults
    "batch": (32, 128, 512, 2048),
    "hidden": (32, 128, 512),
    "steps": (14, 28, 56),
}


Growth = dict[str, list[tuple[int, Row]]]  # setting -> its values and a row for each


def ask(python: str, task: str, threads: int | None = None, **arguments: Any) -> dict[str, Any]:
    """Have a fresh worker do a task.

    Raises:
        RunError, UsageError: it failed; the last line it wrote.
    """
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    if threads:
        kept["OMP_NUM_THREADS"] = str(threads)
    request = json.dumps({"task": task, "arguments": arguments})
    command = [python, benchmark_contestants.__file__, request]
    done = subprocess.run(command, env=kept, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"a worker ended with {done.returncode}"]
        raise (UsageError if done.returncode == 2 else RunError)(lines[-1])
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def installed(python: Path, peer: Peer) -> str | None:
    """The peer's versions, "... with torch ..."; None: not there, or another spikingjelly."""
    query = (
        "from importlib.metadata import version as v; "
        "print(v('spikingjelly'), 'with torch', v('torch'))"
    )
    try:
        done = subprocess.run([python, "-c", query], capture_output=True, text=True)
    except OSError:
        return None
    version = done.stdout.strip()
    return version if done.returncode == 0 and version.startswith(peer.version) else None


def find_peers() -> tuple[dict[str, str], dict[str, str]]:
    """The Python and the version of each peer that is installed."""
    found = {name: installed(ROOT / peer.python, peer) for name, peer in PEERS.items()}
    versions = {name: version for name, version in found.items() if version}
    return {name: str(ROOT / PEERS[name].python) for name in versions}, versions


def plan(options: argparse.Namespace, pythons: dict[str, str], root: str) -> list[Case]:
    """The cases of a round: what is chosen and installed, model by model."""
    return [
        Case(name, model, threads, root, options.seconds, options.batch_size)
        for model in (*options.models, "lstm")
        for name in options.contestants
        if model in CONTESTANTS[name].models
        if CONTESTANTS[name].peer in (None, *pythons)
        for threads in CONTESTANTS[name].threads or options.threads
    ]


def run_rounds(cases: list[Case], pythons: dict[str, str], rounds: int) -> list[Row]:
    """Measure every case in a process of its own, once a round."""
    answers: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    for i in range(rounds):
        for k, case in enumerate(cases if i % 2 == 0 else cases[::-1]):
            progress(f"round {i + 1}/{rounds}, {k + 1}/{len(cases)}: {case.contestant}")
            python = pythons.get(CONTESTANTS[case.contestant].peer or "", sys.executable)
            arguments = [dataclasses.asdict(case)]
            answers[case].append(ask(python, "measure", case.threads, cases=arguments))
    return [
        Row(
            case.contestant,
            case.model,
            case.threads,
            tuple(rate for a in found for rate in a["images_per_second"]),
            max(a["peak_mib"] for a in found),
        )
        for case, found in answers.items()
    ]


def scaling_base(cases: list[Case]) -> list[Case]:
    """Each model's case that the tables of growth start from: the most threads, shorter loops."""
    found = [case for case in cases if case.contestant in SCALED]
    most = max((case.threads or 0 for case in found), default=0)
    return [
        dataclasses.replace(case, seconds=case.seconds / 3, batch=Case.batch)
        for case in found
        if case.threads == most
    ]


def run_scaling(base: list[Case], rounds: int) -> Growth:
    """Each setting's values and rows, all values of a model measured in one process a round."""
    points = [(name, value) for name, values in SCALES.items() for value in values]
    tables: Growth = {name: [] for name in SCALES}
    for case in base:
        cases = [dataclasses.asdict(case) | {name: value} for name, value in points]
        samples = []
        for i in range(rounds):
            progress(f"growth, round {i + 1}/{rounds}: {case.model}")
            answer = ask(sys.executable, "measure", case.threads, cases=cases)
            samples.append(answer["images_per_second"])
        for (name, value), rates in zip(points, zip(*samples, strict=True), strict=True):
            tables[name].append((value, Row(case.contestant, case.model, case.threads, rates)))
    return tables


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<70}", end="\r", file=sys.stderr, flush=True)


def missing(contestants: Sequence[str], pythons: dict[str, str]) -> list[str]:
    """A line for each peer that was asked for and is not installed."""
    names = dict.fromkeys(CONTESTANTS[c].peer for c in contestants)
    return [f"{n}: not installed; {PEERS[n].install()}" for n in names if n and n not in pythons]


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    peers = "; ".join(f"{name}: {peer.install()}" for name, peer in PEERS.items())
    parser = Parser(
        prog="benchmark", description=__doc__, epilog=f"Peers, from the checkout's root: {peers}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_common()
    add = parser.add_argument
    add("--rounds", type=positive, default=3, metavar="N")
    add("--seconds", type=float, default=1.0, help="of a timed loop; the warm-up takes a third")
    add("--threads", type=positive, nargs="+", default=[1, 2], metavar="N")
    add("--batch-size", "-b", type=positive, default=128, metavar="N")
    add("--models", nargs="+", choices=MODELS, default=MODELS)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--contestants", nargs="+", choices=tuple(CONTESTANTS), help="default: all on the device")
    add("--no-growth", action="store_true", help="leave out batch, hidden size and T")
    add("--dataset", choices=("fashion-mnist", "synthetic"), default="fashion-mnist")
    add("--data-path", default="", metavar="DIR", help="default: $RSNN_FMNIST_DATA, else data")
    add("--json", type=Path, metavar="FILE", help="write every figure there too")
    add(
        "--quick",
        action="store_true",
        help="the first model and thread count, few synthetic pictures: does it run?",
    )
    options = parser.parse_all(arguments)
    if not 0 < options.seconds < 3600:
        parser.error(f"--seconds {options.seconds:g}: must be above 0 and below 3600")
    own = tuple(name for name, c in CONTESTANTS.items() if c.device == options.device)
    options.contestants = options.contestants or own
    for name in options.contestants:
        if name not in own:
            parser.error(f"--contestants {name}: not on {options.device}; there, {', '.join(own)}")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: no such folder")
    if options.quick:
        options.rounds, options.seconds, options.dataset = 1, 0.1, "synthetic"
        options.models, options.threads = options.models[:1], options.threads[:1]
    return options


def benchmark(arguments: list[str]) -> int:
    """Find the peers, write the pictures, measure, and print the report."""
    options = parse(arguments)
    pythons, versions = find_peers()
    load = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as root:
        facts = ask(
            sys.executable,
            "prepare",
            device=options.device,
            dataset=options.dataset,
            data_path=options.data_path,
            root=root,
            count=QUICK_PICTURES if options.quick else PICTURES,
        )
        cases = plan(options, pythons, root)
        rows = run_rounds(cases, pythons, options.rounds)
        growth = {} if options.no_growth else run_scaling(scaling_base(cases), options.rounds)
    if options.device == "cpu":
        facts["peak_gflops_of_a_core"] = round(ask(sys.executable, "peak", 1)["gflops"], 1)
    facts |= {"load_at_start": load, **{f"spikingjelly of {n}": v for n, v in versions.items()}}
    settings = {
        name: getattr(options, name)
        for name in ("device", "rounds", "seconds", "batch_size", "dataset", "quick")
    }
    record: dict[str, Any] = {
        "machine": facts,
        "settings": settings,
        "how": {CONTESTANTS[name].label: CONTESTANTS[name].how for name in options.contestants},
        "not_installed": missing(options.contestants, pythons),
    }
    print(report(record, rows, growth))
    if options.json:
        record["training"] = [row_record(row, rows) for row in rows]
        record["growth"] = {
            name: [{"value": value, **row_record(row)} for value, row in points]
            for name, points in growth.items()
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


def report(record: dict[str, Any], rows: list[Row], growth: Growth) -> str:
    """Everything as text: the machine, the tables, how each figure was taken."""
    settings, load = record["settings"], record["machine"]["load_at_start"]
    lines = [f"{name:<30}{fact}" for name, fact in record["machine"].items()]
    lines += [
        f"\nTraining images/s, batch {settings['batch_size']}, hidden 32, T 28, "
        f"{settings['dataset']}: median of {settings['rounds']} rounds, ratios of medians\n",
        table(rows),
        *record["not_installed"],
    ]
    lines += peak_lines(rows, record["machine"].get("peak_gflops_of_a_core"))
    if load > IDLE:
        lines.append(
            f"The machine was not idle (load {load}): the tutorial's script suffers most from that."
        )
    for name, points in growth.items():
        for row in [row for _, row in points][:1]:
            label = CONTESTANTS[row.contestant].label
            lines.append(f"\n{label}, threads {row.threads}, by {name}")
            lines.append(scaling_table(name, points))
    lines.append("\nHow each figure was taken")
    lines += [f"  {label}: {how}" for label, how in record["how"].items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(benchmark, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
