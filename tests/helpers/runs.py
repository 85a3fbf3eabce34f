"""Runs of the command line on the small synthetic set: started, stopped, compared."""

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.event_files import points
from torture import timeless

from rsnn_fmnist import cli
from rsnn_fmnist import run as run_module
from rsnn_fmnist.interrupt import Interrupt, InterruptedRunError
from rsnn_fmnist.storage import checkpoint


class StopAfter(Interrupt):
    """A signal that is received before the n-th check, in training or in an evaluation."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self.checks = checks

    def check(self) -> None:
        self.checks -= 1
        if self.checks == 0:
            raise InterruptedRunError(signal.SIGINT)


def command(folder: Path, flags: str) -> list[str]:
    """A run of three epochs of ten batches in folder/run; the fixture small_synthetic is needed."""
    basis = ["--model", "plain", "--dataset", "synthetic", "--device", "cpu", "--threads", "1"]
    basis += ["-b", "64", "--epochs", "3", "--output-dir", str(folder), "--run-name", "run"]
    return [*basis, *flags.split()]


SMALL = "--dataset synthetic --device cpu --threads 1 -b 64".split()


def refused(capsys: Any, code: int, *arguments: str) -> str:
    """The one line on standard error with which the command line is refused."""
    assert cli.main(list(arguments)) == code
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("rsnn_fmnist: error: ")
    return str(lines[0])


def stop(arguments: Sequence[str], *, after: int) -> int:
    """Run the command line, stopped at its check number `after` -> the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "Interrupt", lambda: StopAfter(after))
        return cli.main(arguments)


def rows(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def final(folder: Path) -> Any:
    """The result of the run in folder/run: checkpoints, rows and points, without timings."""
    run = folder / "run"
    scalars = points(run / "tb") if (run / "tb").is_dir() else {}
    files = {name: checkpoint.load(run / name) for name in ("latest.pt", "best.pt")}
    return timeless({"files": files, "rows": rows(run), "scalars": scalars})
