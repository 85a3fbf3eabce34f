"""Pictures as column sequences: read or drawn, split and ordered.

A set is one uint8 tensor [M, T, H] (M pictures, T = 28 columns, H = 28 pixels a column) and its
labels [M]. Fetching missing archives is download.py's, batches are loader.py's.
"""

import gzip
import hashlib
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from ..errors import RunError, UsageError
from . import synthetic

CLASSES = 10
SIDE = 28  # pixels a column, and columns a picture
SYNTHETIC = {"train": (60_000, 1), "test": (10_000, 2)}  # pictures, seed: the same in every run
_ORDER, _SPLIT = 0, 1  # independent random streams of one seed

# The four files of the set: part, kind -> name, md5 of the archive as published, pictures.
FILES = {
    ("train", "images"): ("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 60_000),
    ("train", "labels"): ("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe", 60_000),
    ("test", "images"): ("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79", 10_000),
    ("test", "labels"): ("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310", 10_000),
}


@dataclass(frozen=True)
class Pictures:
    """A set of pictures: columns uint8 [M, T, H] and labels int64 [M], values 0 to 9."""

    columns: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "Pictures":
        return Pictures(self.columns[indices], self.labels[indices])


@dataclass(frozen=True)
class Splits:
    """What a run trains on, chooses its best epoch on (None: nothing held out) and is tested on."""

    train: Pictures
    val: Pictures | None
    test: Pictures


def load(dataset: str, root: Path, *, download: bool = True, cache: bool = False) -> Splits:
    """The dataset, nothing held out yet.

    Args:
        dataset: "fashion-mnist" or "synthetic".
        root: the torchvision root: the files lie in root/FashionMNIST/raw.
        download: fetch what is missing.
        cache: keep the decoded pictures in root/FashionMNIST, and use them when they are there.
    Raises:
        RunError: files that are missing, damaged or unreadable.
    """
    if dataset == "synthetic":
        drawn = {part: synthetic.draw(count, seed) for part, (count, seed) in SYNTHETIC.items()}
        train, test = (_pictures(*drawn[part]) for part in ("train", "test"))
        return Splits(train, None, test)
    if cache:
        return _load_cached(root, download)
    return _load_files(root, download)


def hold_out(splits: Splits, val_size: int, seed: int) -> Splits:
    """Move `val_size` training pictures, drawn by `seed`, to a validation set, class by class.

    Each class gives its share; what does not divide goes to the first classes.

    Raises:
        UsageError: there are not that many.
    """
    if val_size == 0:
        return splits
    labels = splits.train.labels.numpy()
    counts = np.bincount(labels, minlength=CLASSES)
    shares = np.full(CLASSES, val_size // CLASSES)
    shares[: val_size % CLASSES] += 1
    if (shares >= counts).any():
        raise UsageError(
            f"--val-size {val_size}: must leave training pictures of every class; "
            f"there are {len(labels)}"
        )
    rng = _random(seed, _SPLIT)
    held = np.zeros(len(labels), dtype=bool)
    for label, share in enumerate(shares):
        held[rng.choice(np.flatnonzero(labels == label), share, replace=False)] = True
    kept, taken = torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))
    return Splits(splits.train.subset(kept), splits.train.subset(taken), splits.test)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """An epoch's order of `count` pictures, int64 [count]; of (seed, epoch) alone."""
    return torch.from_numpy(_random(seed, _ORDER, epoch).permutation(count))


def _random(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))


def _pictures(images: NDArray[np.uint8], labels: NDArray[np.integer]) -> Pictures:
    """Pictures uint8 [M, rows, columns] and labels [M], as files hold them -> a set."""
    columns = np.ascontiguousarray(images.transpose(0, 2, 1))  # [M, T = column, H = row]
    return Pictures(torch.from_numpy(columns), torch.from_numpy(labels.astype(np.int64)))


def _load_files(root: Path, download: bool) -> Splits:
    raw = root / "FashionMNIST" / "raw"
    missing = [name for name, _, _ in FILES.values() if not _present(raw, name)]
    if missing and not download:
        names = ", ".join(f"{name}.gz (md5 {md5})" for name, md5, _ in FILES.values())
        raise RunError(
            f"no FashionMNIST in {raw}: put {names} there, leave out --no-download, "
            "name another --data-path, or train on --dataset synthetic"
        )
    if missing:
        from .download import fetch

        fetch(raw, {name: md5 for name, md5, _ in FILES.values() if name in missing})
    train, test = (
        _pictures(_read(raw, part, "images"), _read(raw, part, "labels"))
        for part in ("train", "test")
    )
    return Splits(train, None, test)


def _present(raw: Path, name: str) -> bool:
    return _is_file(raw / name) or _is_file(raw / f"{name}.gz")


def _is_file(path: Path) -> bool:
    """Whether it is there; a folder that may not be searched is refused, not taken for empty."""
    try:
        return path.is_file()
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read ({error.strerror}); name another --data-path"
        ) from None


def _read(raw: Path, part: str, kind: str) -> NDArray[np.uint8]:
    """One of the four files, unpacked or in its archive -> images [M, 28, 28] or labels [M]."""
    name, md5, count = FILES[part, kind]
    shape = (count, SIDE, SIDE) if kind == "images" else (count,)
    path = raw / name if (raw / name).is_file() else raw / f"{name}.gz"
    try:
        if path.suffix == ".gz":
            array = parse_idx(unpack(path, md5), shape, path)
        else:
            array = parse_idx(_read_at_most(path, _idx_size(shape)), shape, path)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read ({error.strerror or error}); make it readable, or name "
            "another --data-path"
        ) from None
    if kind == "labels" and array.max() >= CLASSES:
        raise RunError(f"{path}: damaged: holds the label {array.max()}; {_REMEDY}")
    return array


_REMEDY = "delete it and run again to fetch it anew, or put the original file there"


def unpack(path: Path, md5: str) -> bytes:
    """An archive's content, in memory, after the check of its sum.

    Raises:
        RunError: not the published file.
    """
    archive = path.read_bytes()
    found = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    if found != md5:
        raise RunError(f"{path}: damaged: its md5 is {found}, should be {md5}; {_REMEDY}")
    try:
        return gzip.decompress(archive)
    except (OSError, EOFError, zlib.error) as error:
        raise RunError(f"{path}: damaged: {error}; {_REMEDY}") from None


def parse_idx(content: bytes, shape: tuple[int, ...], path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes, which must be of `shape`.

    Layout: 0, 0, type 8, dimensions; then each dimension as a big-endian uint32; then the bytes.
    Source: http://yann.lecun.com/exdb/mnist, "the IDX file format".

    Raises:
        RunError: another type, another shape, or more or fewer bytes than declared.
    """
    header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    if content[:4] != header[:4]:
        begins = content[:4].hex() or "nothing"
        raise RunError(f"{path}: damaged: begins with {begins}, not as IDX; {_REMEDY}")
    if content[: len(header)] != header or len(content) != _idx_size(shape):
        raise RunError(
            f"{path}: damaged: should declare and hold {' x '.join(map(str, shape))} bytes after "
            f"its header; {_REMEDY}"
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _idx_size(shape: tuple[int, ...]) -> int:
    return 4 + 4 * len(shape) + math.prod(shape)


def _read_at_most(path: Path, size: int) -> bytes:
    """A file's content; of one that is too long no more than shows that it is."""
    with path.open("rb") as file:
        return file.read(size + 1)


CACHE = "rsnn_fmnist_columns_v1.pt"


def _load_cached(root: Path, download: bool) -> Splits:
    """The decoded set from the cache, which is made where there is none."""
    path = root / "FashionMNIST" / CACHE
    if _is_file(path):
        return _read_cache(path)
    splits = _load_files(root, download)
    content = {
        f"{part}_{kind}": getattr(getattr(splits, part), kind)
        for part in ("train", "test")
        for kind in ("columns", "labels")
    }
    try:
        with FileLock(path.with_suffix(".lock")):
            _write_whole(path, content)
    except (OSError, RuntimeError) as error:  # torch wraps some failures to write
        reason = error.strerror if isinstance(error, OSError) else _first_line(error)
        raise RunError(
            f"--cache-dataset: cannot write {path} ({reason}); leave the flag out, "
            "or name a --data-path that can be written"
        ) from None
    return splits


def _write_whole(path: Path, content: dict[str, Tensor]) -> None:
    """Under its name only when it is whole; nothing is left of one that fails."""
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            torch.save(content, file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read_cache(path: Path) -> Splits:
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the check sums
            if damaged := archive.testzip():
                raise ValueError(f"the check sum of {damaged} is wrong")
        content = torch.load(path, weights_only=True, map_location="cpu")
        sets = {}
        for part in ("train", "test"):
            columns, labels = content[f"{part}_columns"], content[f"{part}_labels"]
            count = FILES[part, "images"][2]
            sound = columns.shape == (count, SIDE, SIDE) and labels.shape == (count,)
            if not (sound and columns.dtype == torch.uint8 and labels.dtype == torch.int64):
                raise ValueError("other shapes than the set's")
            sets[part] = Pictures(columns, labels)
    except Exception as error:  # zipfile and torch fail in many ways on a file not their own
        raise RunError(f"{path}: damaged ({_first_line(error)}); delete it and run again") from None
    return Splits(sets["train"], None, sets["test"])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
