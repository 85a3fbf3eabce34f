"""Runs compared over their seeds: mean, deviation, and whether two models differ.

Every seed counts, also one that has collapsed or is unfinished.
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
    """The mean of n values, and their standard deviation (n - 1 below); None of one value."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A mean minus another, its confidence interval, and the p-value of there being none.

    None where they cannot be had: of one value, or of values that do not vary.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only, in the order of their seeds."""

    runs: list[Run]

    @property
    def experiment(self) -> Experiment:
        """What they have in common; its seed is the first one's."""
        return self.runs[0].experiment

    @property
    def model(self) -> str:
        return self.experiment.model

    @property
    def setting(self) -> Experiment:
        """The experiment without model and seed: what groups must share to be compared."""
        return dataclasses.replace(self.experiment, model="", seed=Experiment.seed)

    def begun(self) -> list[Run]:
        """The runs with an epoch done."""
        return [run for run in self.runs if run.rows]

    def last(self) -> list[float]:
        """Test accuracy after the last epoch done, a run each."""
        return [run.last() for run in self.begun()]

    def best(self) -> list[float]:
        """Test accuracy at the epoch that Run.best chooses, a run each."""
        return [float(run.best()["test_acc1"]) for run in self.begun()]


def grouped(runs: Iterable[Run]) -> list[list[Group]]:
    """The groups of each setting, those nearest to the defaults first; models as registered."""
    by_experiment: dict[Experiment, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.experiment.seed):
        common = dataclasses.replace(run.experiment, seed=Experiment.seed)
        by_experiment.setdefault(common, []).append(run)
    by_setting: dict[Experiment, list[Group]] = {}
    for group in sorted(map(Group, by_experiment.values()), key=_place):
        by_setting.setdefault(group.setting, []).append(group)
    return list(by_setting.values())


def _place(group: Group) -> tuple[int, str, int, str]:
    away = len(config.differences(group.setting, Experiment()))
    known = list(MODELS)
    place = known.index(group.model) if group.model in known else len(known)
    return away, short_name(group.setting), place, group.model


def short_name(setting: Experiment) -> str:
    """What differs from the defaults, as in a run's name; "" where nothing does."""
    common = dataclasses.replace(setting, model="", seed=0)
    return config.run_name(common).removesuffix("seed0").strip("_")


def flags(setting: Experiment) -> str:
    """What differs from the defaults, as flags; "" where nothing does."""
    words = []
    for name in config.differences(setting, Experiment(model=setting.model, seed=setting.seed)):
        value, flag = getattr(setting, name), config.flag(name)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        else:
            words.append(f"{flag} {value}")
    return " ".join(words)


def spread(values: Sequence[float]) -> Spread | None:
    """Of no values None."""
    if not values:
        return None
    return Spread(mean(values), stdev(values) if len(values) > 1 else None, len(values))


def welch(a: Sequence[float], b: Sequence[float]) -> Difference:
    """The mean of a minus that of b, by Welch's t-test: their variances may differ.

    Raises:
        RunError: scipy is missing.
    """
    try:
        from scipy.stats import ttest_ind
    except ImportError:
        raise RunError(
            "the report: statistics need scipy: pip install 'rsnn-fmnist[report]'"
        ) from None
    difference = mean(a) - mean(b)
    if min(len(a), len(b)) < 2 or stdev(a) == stdev(b) == 0:
        return Difference(difference)
    with warnings.catch_warnings():  # where the values of one side are all the same, as they may be
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        test = ttest_ind(a, b, equal_var=False)
    interval = test.confidence_interval(CONFIDENCE)
    return Difference(difference, float(interval.low), float(interval.high), float(test.pvalue))


def pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Every two groups of a setting that have begun, the later model first."""
    return [(b, a) for a, b in combinations(groups, 2) if a.begun() and b.begun()]
