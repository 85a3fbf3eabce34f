"""What runs have recorded, read back and checked: settings, metrics, machine.

A run is a directory with metrics.jsonl and config.toml; its weights are not read here. A run may be
unfinished, or still in progress.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .. import config
from ..config import Experiment
from ..errors import RunError, UsageError, first_line, warn
from ..session import Row, best_metric, best_row
from ..storage.run_directory import CONFIG, ENVIRONMENT, METRICS

TIMINGS = ("train_images_per_second", "test_images_per_second", "seconds")


@dataclass(frozen=True)
class Run:
    """A run's records: `rows` has a row of metrics for every finished epoch, if there are any."""

    path: Path
    experiment: Experiment
    rows: list[Row]
    environment: dict[str, Any]

    @property
    def epochs_done(self) -> int:
        """Finished epochs of experiment.epochs; skipped ones (--start-epoch) count."""
        return self.rows[-1]["epoch"] + 1 if self.rows else self.experiment.start_epoch

    @property
    def finished(self) -> bool:
        return self.epochs_done >= self.experiment.epochs

    def last_accuracy(self) -> float:
        """Test accuracy after the last finished epoch, in percent."""
        return float(self.rows[-1]["test_acc1"])

    def best_row(self) -> Row:
        """The row of the best epoch; see `session.best_row`."""
        return best_row(self.experiment, self.rows)

    def images_per_second(self) -> float:
        """Training pictures per second, the median over the epochs."""
        return float(median(row["train_images_per_second"] for row in self.rows))

    def seconds(self) -> float:
        """Time spent on training and evaluation so far."""
        return float(sum(row["seconds"] for row in self.rows))


def read_all(places: Sequence[Path]) -> list[Run]:
    """The runs in all places, each once.

    Raises:
        UsageError: no such place.
        RunError: a place without a run; damaged records; two runs of one experiment and seed with
            different results.
    """
    runs: dict[Experiment, Run] = {}
    for path in find(places):
        run = read(path)
        other = runs.get(run.experiment)
        runs[run.experiment] = _longer(other, run) if other else run
    return list(runs.values())


def find(places: Sequence[Path]) -> list[Path]:
    """The run directories among the places and, at any depth, in them, each once."""
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


def _longer(first: Run, second: Run) -> Run:
    """The longer of a run and its copy: counted twice, it would falsify every deviation."""
    pairs = zip(first.rows, second.rows, strict=False)
    if any(_without_timings(a) != _without_timings(b) for a, b in pairs):
        raise RunError(
            f"{first.path} and {second.path}: the same settings and seed, but other results; name "
            "only one of them"
        )
    warn(f"{second.path}: the same run as {first.path}, counted once")
    return max(first, second, key=lambda run: len(run.rows))


def _without_timings(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in TIMINGS}


def _experiment(path: Path) -> Experiment:
    try:
        settings = config.read_toml(path)
    except UsageError as error:
        message = str(error).removeprefix("--config ")
        raise RunError(f"{message}; restore the file that the run wrote") from None
    for name in ("model", "seed"):  # the first and the last
        if name not in settings:
            raise RunError(f"{path}: damaged: {name!r} is missing")
    return config.from_settings(Experiment, settings)


def _rows(path: Path, experiment: Experiment) -> list[Row]:
    """Every row, checked. A last line that is cut short is an epoch still being written."""
    rows: list[Row] = []
    *lines, rest = _text(path).split("\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            raise RunError(f"{path}: damaged: line {number} is not JSON") from None
        problem = _problem(row, experiment, experiment.start_epoch + number - 1)
        if problem:
            raise RunError(f"{path}: damaged: line {number} {problem}")
        rows.append(row)
    if rest:
        warn(f"{path}: its last line is cut short; the epochs before it are used")
    return rows


def _problem(row: Any, experiment: Experiment, epoch: int) -> str:
    """What is wrong with the row of an epoch; "" if nothing is."""
    if not isinstance(row, dict):
        return "is not a row of metrics"
    accuracies = {"train_acc1", "test_acc1", best_metric(experiment)}
    for name in ("epoch", "train_loss", *sorted(accuracies), "train_images_per_second", "seconds"):
        if type(row.get(name)) not in (int, float) or not math.isfinite(row[name]):
            return f"has no number {name!r}"
        if name in accuracies and not 0 <= row[name] <= 100:
            return f"has {name} {row[name]}, which is not a percentage"
    if row["epoch"] != epoch or epoch >= experiment.epochs:
        return f"is epoch {row['epoch']}, not {epoch} of 0 to {experiment.epochs - 1}"
    return ""


def _environment(run: Path) -> dict[str, Any]:
    """The facts about the machine; none without environment.json."""
    path = run / ENVIRONMENT
    if not path.exists():
        return {}
    try:
        facts = json.loads(_text(path))
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise RunError(f"{path}: damaged: not a JSON object")
    return facts


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RunError(f"{path}: damaged: not UTF-8 text") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({first_line(error)})") from None
