"""Kill runs at random instants and damage files at random places: is anything lost or misread?

    python scripts/torture.py [--runs 50] [--kills 3] [--mutations 1000] [--jobs 2] [--seed 0]

Runs: each is started on a small synthetic set, killed with SIGKILL at several random instants from
its first moment on, and resumed until it ends. Its weights, optimizer, rows of metrics and
TensorBoard points must be those of an undisturbed run, bit for bit. Mutations: a
checkpoint and an IDX file with bits flipped, stretches cut, doubled or zeroed; each must give
its old content, or be refused in one line. The exit code is 0 when all of it held.
"""

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsnn_fmnist.data.fashion_mnist import parse_idx
from rsnn_fmnist.errors import RunError
from rsnn_fmnist.storage import checkpoint

PROGRAM = (
    "import sys; from rsnn_fmnist import cli; from rsnn_fmnist.data import splits;"
    "splits.SYNTHETIC = {'train': (1280, 1), 'test': (200, 2)}; sys.exit(cli.main())"
)
MODELS = ("plain", "feedback", "stateful-synapse")
VARIANTS = ("", "--amp", "--opt adam --lr 0.01 --lrs step --step-size 7", "--val-size 100")
TIMINGS = {"train_images_per_second", "test_images_per_second", "seconds", "train_seconds"}
SLOWEST = 5.0  # seconds that reading a damaged file may take


def command(folder: Path, flags: str) -> list[str]:
    basis = "--dataset synthetic --device cpu --threads 1 -b 64 --epochs 40 --tb --quiet"
    extra = "--run-name run --resume auto --checkpoint-every 0.05"
    place = ["--output-dir", str(folder)]
    return [sys.executable, "-c", PROGRAM, *basis.split(), *extra.split(), *flags.split(), *place]


def run(folder: Path, flags: str, kill_after: float | None = None) -> float:
    """Start or resume the run -> its seconds; after `kill_after` of them it is killed."""
    start = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command(folder, flags), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            _, err = process.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return time.monotonic() - start
    if process.returncode:
        raise AssertionError(f"exit code {process.returncode}: {err.decode().strip()}")
    return time.monotonic() - start


def result(folder: Path) -> Any:
    """All that a run leaves, timings aside: checkpoint, best weights, rows, TensorBoard points."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_directory = folder / "run"
    events = EventAccumulator(str(run_directory / "tb"))
    events.Reload()
    lines = (run_directory / "metrics.jsonl").read_text().splitlines()
    return timeless(
        {
            "files": [checkpoint.load(run_directory / name) for name in ("latest.pt", "best.pt")],
            "rows": [json.loads(line) for line in lines],
            "points": {
                tag: [(point.step, point.value) for point in events.Scalars(tag)]
                for tag in events.Tags()["scalars"]
            },
        }
    )


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMINGS}
    return [timeless(v) for v in value] if isinstance(value, list | tuple) else value


def same(a: Any, b: Any) -> bool:
    """Equality through dicts and lists, tensors by their bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def killed_run(
    root: Path, undisturbed: dict[str, Any], seconds: float, kills: int, seed: int
) -> str:
    """One run with kills -> "" where it ends as the undisturbed one, else what is wrong."""
    flags = list(undisturbed)[seed % len(undisturbed)]
    folder = root / str(seed)
    rng = random.Random(seed)
    try:
        for _ in range(kills):
            run(folder, flags, kill_after=rng.uniform(0, seconds))
        run(folder, flags)
    except AssertionError as error:
        return f"run {seed} ({flags}): {error}"
    if same(result(folder), undisturbed[flags]):
        return ""
    return f"run {seed} ({flags}): other bits than the undisturbed run's"


def torture_runs(runs: int, kills: int, jobs: int, seed: int) -> list[str]:
    combinations = [f"--model {model} {variant}" for model in MODELS for variant in VARIANTS]
    combinations = combinations[: max(1, min(runs, len(combinations)))]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(jobs) as pool:
        root = Path(name)
        folders = [root / f"undisturbed-{i}" for i in range(len(combinations))]
        seconds = list(pool.map(run, folders, combinations))
        undisturbed = dict(zip(combinations, map(result, folders), strict=True))
        one = partial(killed_run, root, undisturbed, max(seconds), kills)
        failures = [text for text in pool.map(one, range(seed, seed + runs)) if text]
    print(
        f"{runs} runs of {len(combinations)} kinds, {kills} kills each: {runs - len(failures)} "
        "ended with the bits of the undisturbed run"
    )
    return failures


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to three changes: a bit flipped, a stretch cut, doubled or zeroed, the end cut off."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place, length = rng.randrange(len(changed) + 1), rng.choice((1, 4, 64, 4096))
        kind = rng.choice(("flip", "cut", "double", "zero", "end"))
        if kind == "flip" and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del changed[place : place + length]
        elif kind == "double":
            changed[place:place] = changed[place : place + length]
        elif kind == "zero":
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        elif kind == "end":
            del changed[place:]
    return bytes(changed)


def torture_files(
    what: str, content: bytes, read: Callable[[Path], Any], mutations: int, seed: int
) -> list[str]:
    """Read `content` mutated -> what is wrong; `read` gives what must equal the original's."""
    outcomes: Counter[str] = Counter()
    failures = []
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "file"
        path.write_bytes(content)
        original = read(path)
        for index in range(mutations):
            damaged = mutate(content, rng)
            path.write_bytes(damaged)
            start = time.monotonic()
            try:
                outcome = "read" if same(read(path), original) else "read as something else"
            except RunError as error:
                outcome = "refused" if "\n" not in str(error) else "refused in several lines"
            except Exception as error:  # none may be raised
                outcome = f"raised {type(error).__name__}"
            if time.monotonic() - start > SLOWEST:
                outcome = "took too long"
            if path.read_bytes() != damaged or len(list(Path(name).iterdir())) != 1:
                outcome = "changed files"
            outcomes[outcome] += 1
            if outcome not in ("read", "refused"):
                failures.append(f"{what}, mutation {index} of seed {seed}: {outcome}")
    summary = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    print(f"{mutations} mutations of {what}: {summary}")
    return failures


def whole_checkpoint() -> bytes:
    """A checkpoint as a short run leaves it."""
    with tempfile.TemporaryDirectory() as name:
        run(Path(name), "--model feedback --opt adam --lr 0.01 --epochs 2")
        return (Path(name) / "run" / "latest.pt").read_bytes()


def whole_idx() -> tuple[bytes, Callable[[Path], Any]]:
    """An IDX file of 40 pictures and its reader; pixels carry no check sum, so only form counts."""
    shape = (40, 28, 28)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    file = io.BytesIO()
    file.write(bytes([0, 0, 8, 3]) + np.array(shape, ">u4").tobytes() + pixels.tobytes())
    return file.getvalue(), lambda path: parse_idx(path.read_bytes(), shape, path).shape


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=50, help="runs to kill (default: 50)")
    parser.add_argument("--kills", type=int, default=3, help="kills of each run (default: 3)")
    parser.add_argument("--mutations", type=int, default=1000, help="of each file (default: 1000)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and places")
    asked = parser.parse_args()
    idx, read_idx = whole_idx()
    failures = torture_files(
        "a checkpoint", whole_checkpoint(), checkpoint.load, asked.mutations, asked.seed
    )
    failures += torture_files("an IDX file", idx, read_idx, asked.mutations, asked.seed)
    if asked.runs:
        failures += torture_runs(asked.runs, asked.kills, asked.jobs, asked.seed)
    print("\n".join(failures) or "passed: nothing was lost, and no damaged file was misread")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
