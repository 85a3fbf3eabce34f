"""Runs grouped by their settings, and compared over their seeds.

Every seed counts, including one that has collapsed or is unfinished.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean, stdev

from .. import config
from ..config import Experiment
from ..errors import RunError
from ..models import MODELS
from .records import Run

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """The mean of n values, and their standard deviation (by n - 1); None for a single value."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Difference:
    """One mean minus another in percentage points, its confidence interval, and its p-value.

    Interval and p-value are None for a single value, and for values that do not vary.
    """

    points: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The accuracy of `model` minus that of `minus`, two models of one setting."""

    accuracy: str  # "last epoch" or "best epoch on held-out"
    model: str
    minus: str
    difference: Difference


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, in the order of their seeds."""

    runs: list[Run]

    @property
    def experiment(self) -> Experiment:
        """What the runs have in common; its seed is the first run's."""
        return self.runs[0].experiment

    @property
    def model(self) -> str:
        return self.experiment.model

    @property
    def setting(self) -> Experiment:
        """The experiment without model and seed: groups with the same setting are compared."""
        return dataclasses.replace(self.experiment, model="", seed=Experiment.seed)

    def started(self) -> list[Run]:
        """The runs with a finished epoch."""
        return [run for run in self.runs if run.rows]

    def last_accuracies(self) -> list[float]:
        """Test accuracy of each run after its last finished epoch."""
        return [run.last_accuracy() for run in self.started()]

    def best_accuracies(self) -> list[float]:
        """Test accuracy of each run at its best epoch."""
        return [float(run.best_row()["test_acc1"]) for run in self.started()]

    def images_per_second(self) -> float | None:
        """The mean over the runs; None if none has started."""
        values = [run.images_per_second() for run in self.started()]
        return mean(values) if values else None


def grouped(runs: Iterable[Run]) -> list[list[Group]]:
    """The groups of each setting, the settings nearest to the defaults first."""
    by_experiment: dict[Experiment, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.experiment.seed):
        common = dataclasses.replace(run.experiment, seed=Experiment.seed)
        by_experiment.setdefault(common, []).append(run)
    by_setting: dict[Experiment, list[Group]] = {}
    for group in sorted(map(Group, by_experiment.values()), key=_rank):
        by_setting.setdefault(group.setting, []).append(group)
    return list(by_setting.values())


def _rank(group: Group) -> tuple[int, str, int, str]:
    """The key that sorts groups: by setting, then by model in the order of registration."""
    changes = len(config.differences(group.setting, Experiment()))
    known = list(MODELS)
    place = known.index(group.model) if group.model in known else len(known)
    return changes, short_name(group.setting), place, group.model


def short_name(setting: Experiment) -> str:
    """The settings that differ from the defaults, as in a run's name; "" if none does."""
    common = dataclasses.replace(setting, model="", seed=0)
    return config.run_name(common).removesuffix("seed0").strip("_")


def flags(setting: Experiment) -> str:
    """The settings that differ from the defaults, as flags; "" if none does."""
    words = []
    for name in config.differences(setting, Experiment(model=setting.model, seed=setting.seed)):
        value, flag = getattr(setting, name), config.flag(name)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        else:
            words.append(f"{flag} {value}")
    return " ".join(words)


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and deviation; None for no values."""
    if not values:
        return None
    return Spread(mean(values), stdev(values) if len(values) > 1 else None)


def compare(groups: Sequence[Group]) -> list[Comparison]:
    """Every two started groups of one setting, the later one minus the earlier one.

    They are compared by every accuracy that is not chosen on the test pictures.

    Raises:
        RunError: scipy is missing.
    """
    accuracies = {"last epoch": Group.last_accuracies}
    if groups[0].setting.val_size:
        accuracies["best epoch on held-out"] = Group.best_accuracies
    started = [group for group in groups if group.started()]
    return [
        Comparison(name, b.model, a.model, welch(values(b), values(a)))
        for name, values in accuracies.items()
        for a, b in combinations(started, 2)
    ]


def welch(a: Sequence[float], b: Sequence[float]) -> Difference:
    """The mean of a minus that of b, by Welch's t-test, which allows for unequal variances.

    Raises:
        RunError: scipy is missing.
    """
    try:
        from scipy.stats import ttest_ind
    except ImportError:
        raise RunError(
            "the report: statistics need scipy: pip install 'rsnn-fmnist[report]'"
        ) from None
    points = mean(a) - mean(b)
    if min(len(a), len(b)) < 2 or stdev(a) == stdev(b) == 0:
        return Difference(points)
    with warnings.catch_warnings():  # scipy warns if the values of one side are all the same
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        test = ttest_ind(a, b, equal_var=False)
    interval = test.confidence_interval(CONFIDENCE)
    return Difference(points, float(interval.low), float(interval.high), float(test.pvalue))
