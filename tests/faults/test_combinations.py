"""Stop and resume under a covering set of settings, in which every pair of values meets.

A stop is simulated at a chosen check of the training loop; the final bits are compared.
"""

import itertools
from pathlib import Path

import pytest
from helpers.runs import command, final, stop
from torture import same

from rsnn_fmnist import cli

pytestmark = pytest.mark.usefixtures("small_synthetic")

SETTINGS: dict[str, tuple[str, ...]] = {
    "model": ("--model plain", "--model feedback", "--model stateful-synapse"),
    "backend": ("--backend torch", "--backend numba"),
    "amp": ("", "--amp --amp-dtype bfloat16", "--amp --amp-dtype float16"),
    "optimizer": ("--opt sgd", "--opt adam --lr 0.01"),
    "schedule": ("--lrs cosa", "--lrs step --step-size 1", "--lrs none"),
    "records": ("--tb", "--val-size 50"),
}
STOPS = ((1,), (4, 9), (10, 1, 2), (11, 13))  # checks before each stop; ten batches an epoch


def covering(settings: dict[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """A few combinations in which every two values of different settings meet, chosen greedily."""
    columns = list(itertools.combinations(range(len(settings)), 2))

    def pairs(row: tuple[str, ...]) -> set[tuple[int, int, str, str]]:
        return {(i, j, row[i], row[j]) for i, j in columns}

    rows = list(itertools.product(*settings.values()))
    missing = set().union(*map(pairs, rows))
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(pairs(row) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def test_the_set_covers_every_pair() -> None:
    rows = covering(SETTINGS)
    assert len(rows) < 15
    for (i, a), (j, b) in itertools.combinations(enumerate(SETTINGS.values()), 2):
        for pair in itertools.product(a, b):
            assert any((row[i], row[j]) == pair for row in rows)


def stop_and_resume(folder: Path, flags: str, stops: tuple[int, ...]) -> None:
    """Train without and with stops, and assert that the bits are the same."""
    assert cli.main(command(folder / "whole", flags)) == 0
    for checks in stops:
        assert stop(command(folder / "stopped", f"{flags} --resume auto"), after=checks) == 130
    assert cli.main(command(folder / "stopped", f"{flags} --resume auto")) == 0
    assert same(final(folder / "stopped"), final(folder / "whole"))


@pytest.mark.parametrize(
    ("row", "stops"),
    [(row, STOPS[i % len(STOPS)]) for i, row in enumerate(covering(SETTINGS))],
    ids=lambda value: " ".join(filter(None, value)) if isinstance(value[0], str) else None,
)
def test_same_bits(tmp_path: Path, row: tuple[str, ...], stops: tuple[int, ...]) -> None:
    stop_and_resume(tmp_path, " ".join(row), stops)


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-j 1", "--model feedback --amp -j 2 --opt adam --lr 0.01"])
def test_same_bits_with_workers(tmp_path: Path, flags: str) -> None:
    stop_and_resume(tmp_path, flags, (7, 12))


@pytest.mark.slow
def test_resident_and_streamed_parts_of_one_run(tmp_path: Path) -> None:
    """--workers is a setting of the machine, which may change when a run resumes."""
    assert cli.main(command(tmp_path / "whole", "")) == 0
    assert stop(command(tmp_path / "stopped", "-j 1"), after=17) == 130
    assert cli.main(command(tmp_path / "stopped", "--resume auto")) == 0
    assert same(final(tmp_path / "stopped"), final(tmp_path / "whole"))
