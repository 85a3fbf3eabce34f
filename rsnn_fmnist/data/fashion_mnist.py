"""FashionMNIST from its four files, unpacked or as archives.

Archives are unpacked in memory after a check of their md5; nothing is written. Downloading missing
files is left to download.py.
"""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError, first_line
from .pictures import CLASSES, SIDE, Pictures, Splits

# The four files of the set: part, kind -> name, md5 of the archive as published, pictures.
FILES = {
    ("train", "images"): ("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 60_000),
    ("train", "labels"): ("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe", 60_000),
    ("test", "images"): ("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79", 10_000),
    ("test", "labels"): ("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310", 10_000),
}
_REMEDY = "delete it and run again to download it, or put the original file there"


def folder(root: Path) -> Path:
    """Where the files lie below a torchvision root."""
    return root / "FashionMNIST" / "raw"


def load(root: Path, *, download: bool) -> Splits:
    """Read the set below a torchvision root; see `splits.load`."""
    raw = folder(root)
    absent = missing(raw)
    if absent and not download:
        names = ", ".join(f"{name}.gz (md5 {md5})" for name, md5, _ in FILES.values())
        raise RunError(
            f"no FashionMNIST in {raw}: put {names} there, leave out --no-download, "
            "name another --data-path, or train on --dataset synthetic"
        )
    if absent:
        from .download import fetch

        fetch(raw, absent)
    train, test = (
        Pictures.from_images(_read(raw, part, "images"), _read(raw, part, "labels"))
        for part in ("train", "test")
    )
    return Splits(train, None, test)


def missing(raw: Path) -> list[str]:
    """The names of the files that are there neither unpacked nor as an archive."""
    names = [name for name, _, _ in FILES.values()]
    return [n for n in names if not (is_file(raw / n) or is_file(raw / f"{n}.gz"))]


def is_file(path: Path) -> bool:
    """As Path.is_file; a folder without the permission to search it raises RunError."""
    try:
        return path.is_file()
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read ({first_line(error)}); name another --data-path"
        ) from None


def _read(raw: Path, part: str, kind: str) -> NDArray[np.uint8]:
    """One of the four files -> images [M, 28, 28] or labels [M]."""
    name, md5, count = FILES[part, kind]
    shape = (count, SIDE, SIDE) if kind == "images" else (count,)
    path = raw / name if (raw / name).is_file() else raw / f"{name}.gz"
    try:
        if path.suffix == ".gz":
            array = parse_idx(unpack(path, md5), shape, path)
        else:
            with path.open("rb") as file:
                array = parse_idx(file.read(_idx_size(shape) + 1), shape, path)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read ({first_line(error)}); make it readable, or name another "
            "--data-path"
        ) from None
    if kind == "labels" and array.max() >= CLASSES:
        raise RunError(f"{path}: damaged: holds the label {array.max()}; {_REMEDY}")
    return array


def unpack(path: Path, md5: str) -> bytes:
    """The content of an archive, in memory, after a check of its md5.

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
    """The array of an IDX file of unsigned bytes, which must have `shape`.

    Layout: 0, 0, type 8, dimensions; then each dimension as a big-endian uint32; then the bytes.
    Source: http://yann.lecun.com/exdb/mnist, "the IDX file format".

    Raises:
        RunError: another type or shape, or more or fewer bytes than declared.
    """
    header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    if content[:4] != header[:4]:
        begins = content[:4].hex() or "nothing"
        raise RunError(f"{path}: damaged: begins with {begins}, which is not IDX; {_REMEDY}")
    if content[: len(header)] != header or len(content) != _idx_size(shape):
        raise RunError(
            f"{path}: damaged: should declare and hold {' x '.join(map(str, shape))} bytes after "
            f"its header; {_REMEDY}"
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _idx_size(shape: tuple[int, ...]) -> int:
    return 4 + 4 * len(shape) + math.prod(shape)
