"""Statistics against values calculated by hand, and which runs are compared."""

import math
from pathlib import Path

import pytest
from helpers.made_runs import make_run

from rsnn_fmnist import models
from rsnn_fmnist.config import Experiment
from rsnn_fmnist.report import records, statistics
from rsnn_fmnist.report.statistics import Difference, Spread

pytest.importorskip("scipy")


def groups_in(folder: Path) -> list[list[statistics.Group]]:
    return statistics.grouped(records.read_all([folder]))


def test_spread() -> None:
    """1, 2 and 6 have mean 3 and variance (4 + 1 + 9) / 2."""
    assert statistics.spread([1.0, 2.0, 6.0]) == Spread(3.0, math.sqrt(7))
    assert statistics.spread([70.1]) == Spread(70.1, None)
    assert statistics.spread([]) is None
    assert statistics.spread([70.1, 70.1, 70.1]) == Spread(70.1, 0.0)


def test_welch_by_hand() -> None:
    """a = 1, 2, 3 and b = 2, 6: s^2 / n is 1/3 and 4, so the standard error is sqrt(13/3), and the
    degrees of freedom are (13/3)^2 / ((1/3)^2 / 2 + 4^2 / 1) = 338/289.
    """
    from scipy.stats import t

    found = statistics.welch([1.0, 2.0, 3.0], [2.0, 6.0])
    error, freedom = math.sqrt(13 / 3), 338 / 289
    reach = t.ppf(0.975, freedom) * error
    assert found.points == -2
    assert (found.low, found.high) == pytest.approx((-2 - reach, -2 + reach), rel=1e-9)
    assert found.p == pytest.approx(2 * t.sf(2 / error, freedom), rel=1e-9)


def test_welch_with_equal_variances_matches_the_printed_table() -> None:
    """4 degrees of freedom, standard error 1: t is 2.776 for p = 0.05 and 3.747 for p = 0.02."""
    half = math.sqrt(1.5)  # deviation of three values whose mean has a variance of 1/2
    a = [3.747 - half, 3.747, 3.747 + half]
    found = statistics.welch(a, [-half, 0.0, half])
    assert found.points == pytest.approx(3.747)
    assert (found.low, found.high) == pytest.approx((3.747 - 2.776, 3.747 + 2.776), abs=5e-4)
    assert found.p == pytest.approx(0.02, abs=5e-6)


def test_welch_without_enough_values() -> None:
    assert statistics.welch([70.0], [60.0, 61.0]) == Difference(9.5)
    assert statistics.welch([10.0, 10.0], [70.0, 70.0]) == Difference(-60.0)
    one_varies = statistics.welch([10.0, 10.0, 10.0], [70.0, 71.0, 72.0])  # without a warning
    assert one_varies.points == -61
    assert one_varies.p is not None
    assert 0 < one_varies.p < 1e-3


def test_groups_differ_in_more_than_the_seed(tmp_path: Path) -> None:
    for seed in (3, 1, 2):
        make_run(tmp_path, [60.0], model="stateful-synapse", seed=seed, epochs=90)
        make_run(tmp_path, [60.0], seed=seed, epochs=90)
    make_run(tmp_path, [60.0], seed=1, epochs=90, lr=0.5)
    make_run(tmp_path, [60.0], model="mine", seed=1, epochs=90)
    default, other = groups_in(tmp_path)
    assert [group.model for group in default] == ["plain", "stateful-synapse", "mine"]
    assert [[run.experiment.seed for run in group.runs] for group in default] == [
        [1, 2, 3], [1, 2, 3], [1],
    ]  # fmt: skip
    assert [group.model for group in other] == ["plain"]
    assert other[0].experiment.lr == 0.5
    assert "mine" not in models.MODELS


def test_every_two_models_that_have_started_are_compared(tmp_path: Path) -> None:
    for model in ("plain", "feedback", "stateful-synapse"):
        make_run(tmp_path, [60.0], model=model)
    (groups,) = groups_in(tmp_path)
    assert [(c.model, c.minus) for c in statistics.compare(groups)] == [
        ("feedback", "plain"),
        ("stateful-synapse", "plain"),
        ("stateful-synapse", "feedback"),
    ]
    (tmp_path / "feedback_e1_seed2020" / "metrics.jsonl").write_text("")
    (groups,) = groups_in(tmp_path)
    assert [(c.model, c.minus) for c in statistics.compare(groups)] == [
        ("stateful-synapse", "plain")
    ]


def test_no_seed_is_dropped(tmp_path: Path) -> None:
    """Collapsed and unfinished runs count; one without a finished epoch has nothing to count."""
    make_run(tmp_path, [60.0, 80.0, 76.0], seed=1)
    make_run(tmp_path, [60.0, 79.0, 10.0], seed=2)
    make_run(tmp_path, [60.0], seed=3, epochs=3)
    (make_run(tmp_path, [1.0], seed=4, epochs=3) / "metrics.jsonl").write_text("")
    ((group,),) = groups_in(tmp_path)
    assert group.last_accuracies() == [76.0, 10.0, 60.0]
    assert group.best_accuracies() == [80.0, 79.0, 60.0]
    assert [run.experiment.seed for run in group.runs] == [1, 2, 3, 4]


def test_the_names_of_settings() -> None:
    assert statistics.flags(Experiment(model="plain", seed=7)) == ""
    assert statistics.short_name(Experiment(model="plain", seed=7)) == ""
    other = Experiment(model="my_seed0", normalize=False, amp=True, batch_size=256, cosa_tmax=9)
    assert statistics.flags(other) == "--no-normalize --batch-size 256 --cosa-tmax 9 --amp"
    assert statistics.short_name(other) == "no-norm_b256_tmax9_amp"
