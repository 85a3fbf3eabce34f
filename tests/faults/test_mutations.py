"""Bytes changed at random: what is read is what was written, or it is refused in one line."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_checkpoint import progress, same, session
from test_data import idx

from rsnn_fmnist.data.fashion_mnist import parse_idx
from rsnn_fmnist.errors import RunError
from rsnn_fmnist.storage import checkpoint

LOOSE = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def mutations(draw: st.DrawFn, content: bytes) -> bytes:
    """Flip bits, cut, repeat, insert or overwrite a stretch."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        kind = draw(st.sampled_from(("flip", "cut", "repeat", "insert", "zero")))
        length = draw(st.sampled_from((1, 4, 64, 4096)))
        if kind == "flip" and changed:
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del changed[place : place + length]
        elif kind == "repeat":
            changed[place:place] = changed[place : place + length]
        elif kind == "insert":
            changed[place:place] = draw(st.binary(min_size=1, max_size=16))
        else:
            changed[place : place + length] = bytes(len(changed[place : place + length]))
    return bytes(changed)


def _whole() -> bytes:
    one = session()
    file = io.BytesIO()
    torch.save(checkpoint.capture(one, progress(one)), file)
    return file.getvalue()


WHOLE = _whole()
IMAGES = np.arange(40 * 28 * 28, dtype=np.uint8).reshape(40, 28, 28)


def attempt(read: Callable[[], Any]) -> tuple[Any, str | None]:
    """What was read, or the one line of the refusal; anything else that is raised is a defect."""
    try:
        return read(), None
    except RunError as error:
        line = str(error)
    assert "\n" not in line
    return None, line


@LOOSE
@given(content=mutations(WHOLE))
def test_a_mutated_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "latest.pt"
    path.write_bytes(content)
    loaded, refusal = attempt(lambda: checkpoint.load(path))
    if refusal is None:
        assert same(loaded, torch.load(io.BytesIO(WHOLE), weights_only=True))
    else:
        assert str(path) in refusal
    assert [p.name for p in tmp_path.iterdir()] == ["latest.pt"]
    assert path.read_bytes() == content


@LOOSE
@given(content=mutations(idx(IMAGES)))
def test_a_mutated_idx_file(content: bytes) -> None:
    """The pixels have no check sum: a file of the right form is read as it is."""
    array, refusal = attempt(lambda: parse_idx(content, IMAGES.shape, Path("images")))
    if refusal is None:
        assert array.shape == IMAGES.shape
        assert idx(array) == content
    else:
        assert refusal.startswith("images: damaged: ")


def test_the_unmutated_are_read() -> None:
    assert np.array_equal(parse_idx(idx(IMAGES), IMAGES.shape, Path("images")), IMAGES)


@pytest.mark.parametrize("size", [0, 1, 15, 16])
def test_shorter_than_a_header(size: int) -> None:
    with pytest.raises(RunError, match="damaged"):
        parse_idx(idx(IMAGES)[:size], IMAGES.shape, Path("images"))
