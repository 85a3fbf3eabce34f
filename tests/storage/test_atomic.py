"""Files appear whole: what a failure, a link or a missing feature of the file system leaves."""

from pathlib import Path

import pytest
import torch

from rsnn_fmnist.storage import atomic


def read(path: Path) -> object:
    atomic.check_sums(path)
    return torch.load(path, weights_only=True)


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_the_previous_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    for n in range(3):
        atomic.save(path, n, keep_previous=True)
    assert read(path) == 2
    assert read(atomic.previous(path)) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"latest.pt", "latest.prev.pt"}


def test_the_previous_file_is_kept_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(atomic.os, "link", refuse)
    path = tmp_path / "latest.pt"
    for n in (1, 2):
        atomic.save(path, n, keep_previous=True)
    assert read(atomic.previous(path)) == 1


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latest.pt"
    atomic.save(path, 1)
    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.save(path, 2, keep_previous=True)
    assert read(path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["latest.pt"]


def test_an_error_that_torch_has_wrapped_is_an_oserror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file\nmore lines")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"^PytorchStreamWriter failed writing file$"):
        atomic.save(tmp_path / "latest.pt", 1)
    assert not list(tmp_path.iterdir())


def test_links_are_replaced_and_never_written_through(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    for name in ("latest.pt", "latest.pt.tmp", "latest.prev.pt", "latest.prev.pt.tmp"):
        (tmp_path / name).symlink_to(outside)
    for n in (0, 1):
        atomic.save(tmp_path / "latest.pt", n, keep_previous=True)
    assert outside.read_text() == "precious"
    assert read(tmp_path / "latest.pt") == 1


def test_a_wrong_check_sum(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    atomic.save(path, torch.arange(1000.0))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="check sum of"):
        atomic.check_sums(path)
