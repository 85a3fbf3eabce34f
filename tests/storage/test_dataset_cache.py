"""--cache-dataset: written once, read back, refused where it is damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.fake_set import FakeSet, denying, refusal

from rsnn_fmnist.data.pictures import Splits
from rsnn_fmnist.storage import atomic, dataset_cache


def cache_of(fake: FakeSet) -> Path:
    return fake.root / "FashionMNIST" / dataset_cache.NAME


def load(fake: FakeSet) -> Splits:
    return dataset_cache.load(fake.root, fake.load)


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "archives"])
def test_is_written_once_and_read_back(fake: FakeSet, packed: bool) -> None:
    fake.archives() if packed else fake.unpacked()
    fake.check(load(fake))
    assert cache_of(fake).is_file()
    made = cache_of(fake).stat().st_mtime_ns
    shutil.rmtree(fake.raw)
    fake.check(load(fake))
    assert cache_of(fake).stat().st_mtime_ns == made
    assert not list(fake.root.rglob("*.tmp"))


def flip_a_pixel(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_content(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content = torch.load(path)
        change(content)
        torch.save(content, path)

    return spoil


BAD_CACHE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "not a zip": lambda path: path.write_bytes(b"something else"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "one bit": flip_a_pixel,
    "a list": lambda path: torch.save([1, 2], path),
    "code": lambda path: torch.save({"train_columns": Path}, path),
    "a part missing": other_content(lambda content: content.pop("test_labels")),
    "fewer pictures": other_content(
        lambda content: content.update(train_columns=content["train_columns"][:-1])
    ),
    "fewer labels": other_content(
        lambda content: content.update(test_labels=content["test_labels"][:-1])
    ),
    "of another type": other_content(
        lambda content: content.update(train_columns=content["train_columns"].float())
    ),
    "not tensors": other_content(lambda content: content.update(train_columns="columns")),
}


@pytest.mark.parametrize("spoil", BAD_CACHE.values(), ids=BAD_CACHE)
def test_a_damaged_file_is_refused(fake: FakeSet, spoil: Callable[[Path], object]) -> None:
    load(fake.unpacked())
    spoil(cache_of(fake))
    message = refusal(lambda: load(fake))
    assert message.startswith(f"{cache_of(fake)}: damaged (")
    assert "delete it and run again" in message
    cache_of(fake).unlink()
    fake.check(load(fake))


IN_THE_WAY = {
    "the file": dataset_cache.NAME,
    "the temporary file": dataset_cache.NAME + ".tmp",
    "the lock": str(Path(dataset_cache.NAME).with_suffix(".lock")),
}


@pytest.mark.parametrize("name", [*IN_THE_WAY.values(), ""], ids=[*IN_THE_WAY, "full disk"])
def test_a_file_that_cannot_be_written(
    fake: FakeSet, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is in the place of a file that is needed, or the disk is full."""
    fake.unpacked()
    if name:
        (fake.root / "FashionMNIST" / name).mkdir()
    else:
        monkeypatch.setattr(atomic.os, "fsync", full_disk)
    message = refusal(lambda: load(fake))
    assert message.startswith(f"--cache-dataset: cannot write {cache_of(fake)} (")
    assert "--data-path" in message
    assert not [path for path in fake.root.rglob("rsnn_fmnist*.pt*") if path.is_file()]


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_folder_that_cannot_be_searched(fake: FakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", denying(Path.is_file, cache_of(fake)))
    message = refusal(lambda: load(fake))
    assert message.startswith(f"{cache_of(fake)}: cannot be read (Permission denied); ")
    assert "--data-path" in message
