"""What runs have left, read back and checked: settings, metrics, machine.

A run is a directory that holds metrics.jsonl, with config.toml beside it; weights need not be there
and are not looked at. Runs may be unfinished, and may be read while they are being written.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .. import config
from ..config import Experiment
from ..errors import RunError, UsageError, warn
from ..session import Row, best_metric
from ..storage.run_directory import CONFIG, ENVIRONMENT, METRICS

TIMINGS = ("train_images_per_second", "test_images_per_second", "seconds")
ACCURACIES = ("train_acc1", "test_acc1")


@dataclass(frozen=True)
class Run:
    """A run's records: `rows` has a row of metrics for every epoch done, none or more."""

    path: Path
    experiment: Experiment
    rows: list[Row]
    environment: dict[str, Any]

    @property
    def epochs_done(self) -> int:
        """Where the run stands on the way to experiment.epochs, skipped epochs included."""
        return self.rows[-1]["epoch"] + 1 if self.rows else self.experiment.start_epoch

    @property
    def finished(self) -> bool:
        return self.epochs_done >= self.experiment.epochs

    def last(self) -> float:
        """Test accuracy after the last epoch done, in percent."""
        return float(self.rows[-1]["test_acc1"])

    def best(self) -> Row:
        """The epoch that is best on the held-out pictures or, without them, on the test pictures;
        the first of equals.
        """
        metric = best_metric(self.experiment)
        return max(self.rows, key=lambda row: (row[metric], -row["epoch"]))

    def images_per_second(self) -> float:
        """Training pictures a second, the median over the epochs."""
        return float(median(row["train_images_per_second"] for row in self.rows))

    def seconds(self) -> float:
        """Time in training and evaluation so far."""
        return float(sum(row["seconds"] for row in self.rows))


def read_all(places: Sequence[Path]) -> list[Run]:
    """The runs in all places, each once.

    Raises:
        UsageError: no such place.
        RunError: a place without a run; damaged records; two runs of one experiment and seed that
            differ.
    """
    runs: dict[Experiment, Run] = {}
    for path in find(places):
        run = read(path)
        other = runs.setdefault(run.experiment, run)
        if other is not run:
            runs[run.experiment] = _one_of(other, run)
    return list(runs.values())


def find(places: Sequence[Path]) -> list[Path]:
    """The run directories that the places are or, at any depth, hold, each once."""
    found: dict[Path, Path] = {}
    for place in places:
        if not place.exists():
            raise UsageError(f"{place}: no such directory")
        if not place.is_dir():
            raise UsageError(f"{place}: a file; name a run directory, or a folder that holds some")
        inside = sorted(path.parent for path in place.rglob(METRICS))
        if not inside:
            raise RunError(f"{place}: holds no run (a directory with {METRICS})")
        for run in inside:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def read(path: Path) -> Run:
    """The records of one run directory.

    Raises:
        RunError: a file is missing or damaged.
    """
    experiment = _experiment(path / CONFIG)
    return Run(path, experiment, _rows(path / METRICS, experiment), _environment(path))


def _one_of(first: Run, second: Run) -> Run:
    """Of a run and a copy of it, the one that has come further.

    Counted twice it would falsify every deviation; so would two runs of a seed, of which only
    whoever made them can say which one counts.
    """
    pairs = zip(first.rows, second.rows, strict=False)
    if any(_timeless(a) != _timeless(b) for a, b in pairs):
        raise RunError(
            f"{first.path} and {second.path}: the same settings and seed, but other results; name "
            "only one of them"
        )
    warn(f"{second.path}: the same run as {first.path}, counted once")
    return max(first, second, key=lambda run: len(run.rows))


def _timeless(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in TIMINGS}


def _experiment(path: Path) -> Experiment:
    try:
        settings = config.read_toml(path)
    except UsageError as error:
        raise RunError(f"{str(error).removeprefix('--config ')}; not as a run left it") from None
    missing = [name for name in ("model", "seed") if name not in settings]  # the first and the last
    if missing:
        raise RunError(f"{path}: damaged: {missing[0]!r} is missing")
    return config.from_settings(Experiment, settings)


def _rows(path: Path, experiment: Experiment) -> list[Row]:
    """Every row, checked. A last line that was cut short is an epoch not yet written."""
    rows: list[Row] = []
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
        except ValueError:
            raise RunError(f"{path}: damaged: line {number} is not JSON") from None
        wrong = _wrong(row, experiment, experiment.start_epoch + number - 1)
        if wrong:
            raise RunError(f"{path}: damaged: line {number} {wrong}")
        rows.append(row)
    return rows


def _lines(path: Path) -> Iterator[str]:
    *whole, rest = _text(path).split("\n")
    yield from whole
    if rest:
        warn(f"{path}: its last line is cut short; the epochs before it are used")


def _wrong(row: Any, experiment: Experiment, epoch: int) -> str:
    """What is wrong with the row of an epoch; "" where nothing is."""
    if not isinstance(row, dict):
        return "is no row of metrics"
    accuracies = {*ACCURACIES, best_metric(experiment)}
    for name in ("epoch", "train_loss", *sorted(accuracies), "train_images_per_second", "seconds"):
        if type(row.get(name)) not in (int, float) or not math.isfinite(row[name]):
            return f"has no number {name!r}"
        if name in accuracies and not 0 <= row[name] <= 100:
            return f"has {name} {row[name]}, which is no percentage"
    if row["epoch"] != epoch or epoch >= experiment.epochs:
        return f"is epoch {row['epoch']}, not {epoch} of 0 to {experiment.epochs - 1}"
    return ""


def _environment(run: Path) -> dict[str, Any]:
    """What is known of the machine: nothing where environment.json is not there."""
    path = run / ENVIRONMENT
    if not path.exists():
        return {}
    try:
        facts = json.loads(_text(path))
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise RunError(f"{path}: damaged: is no JSON object")
    return facts


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RunError(f"{path}: damaged: is no UTF-8 text") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from None
