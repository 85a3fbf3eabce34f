"""--cache-dataset: the decoded pictures in one file, next to the raw ones."""

from collections.abc import Callable
from pathlib import Path

import torch

from ..data.download import locked
from ..data.fashion_mnist import FILES, is_file
from ..data.pictures import SIDE, Pictures, Splits
from ..errors import RunError, first_line
from . import atomic

NAME = "rsnn_fmnist_columns_v1.pt"


def load(root: Path, read: Callable[[], Splits]) -> Splits:
    """The set from root/FashionMNIST/NAME, which is written from `read()` where it is absent.

    Raises:
        RunError: the file is damaged or cannot be written.
    """
    path = root / "FashionMNIST" / NAME
    if is_file(path):
        return _read(path)
    splits = read()
    content = {
        f"{part}_{kind}": getattr(getattr(splits, part), kind)
        for part in ("train", "test")
        for kind in ("columns", "labels")
    }
    try:
        with locked(path.with_suffix(".lock")):
            atomic.save(path, content)
    except OSError as error:
        raise RunError(
            f"--cache-dataset: cannot write {path} ({first_line(error)}); leave the flag out, or "
            "name a --data-path that can be written"
        ) from None
    return splits


def _read(path: Path) -> Splits:
    try:
        atomic.check_sums(path)
        content = torch.load(path, weights_only=True, map_location="cpu")
        sets = {}
        for part in ("train", "test"):
            columns, labels = content[f"{part}_columns"], content[f"{part}_labels"]
            count = FILES[part, "images"][2]
            fits = columns.shape == (count, SIDE, SIDE) and labels.shape == (count,)
            if not (fits and columns.dtype == torch.uint8 and labels.dtype == torch.int64):
                raise ValueError("its shapes are not those of the set")
            sets[part] = Pictures(columns, labels)
    except Exception as error:  # zipfile and torch fail in many ways on a damaged file
        raise RunError(f"{path}: damaged ({first_line(error)}); delete it and run again") from None
    return Splits(sets["train"], None, sets["test"])
