"""The suite of scripts/torture.py with small numbers: nothing is lost, and nothing gets in."""

from pathlib import Path

import numpy as np
import pytest
import torture
from helpers.idx_files import idx

from rsnn_fmnist.data.fashion_mnist import parse_idx
from rsnn_fmnist.storage import checkpoint


def test_a_mutated_idx_file_is_refused_or_read() -> None:
    content, read = torture.whole_idx()
    assert torture.torture_files("an IDX file", content, read, 300, seed=1) == []


def test_whole_idx_is_an_idx_file() -> None:
    content, _ = torture.whole_idx()
    pixels = parse_idx(content, (40, 28, 28), Path("images"))
    assert idx(pixels) == content
    assert np.unique(pixels).size > 200


def test_the_suite_reports_what_is_wrong() -> None:
    """A reader that accepts everything as something else, and one that raises another error."""
    content = bytes(range(256)) * 4
    failures = torture.torture_files("bytes", content, lambda path: path.read_bytes(), 20, seed=1)
    assert len(failures) >= 15
    assert all(failure.endswith("read as something else") for failure in failures)

    def strict(path: Path) -> bool:
        if path.read_bytes() != content:
            raise KeyError("another error")
        return True

    failures = torture.torture_files("bytes", content, strict, 20, seed=1)
    assert len(failures) >= 15
    assert all(failure.endswith("raised KeyError") for failure in failures)


@pytest.mark.slow
def test_a_mutated_checkpoint_is_refused_or_read() -> None:
    content = torture.whole_checkpoint()
    assert torture.torture_files("a checkpoint", content, checkpoint.load, 200, seed=1) == []


@pytest.mark.slow
def test_killed_runs_end_with_the_bits_of_undisturbed_ones() -> None:
    assert torture.torture_runs(4, kills=2, jobs=2, seed=1) == []
