"""A dataset by its name, the held-out pictures, and the order of an epoch."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from . import fashion_mnist, synthetic
from .pictures import CLASSES, Pictures, Splits

SYNTHETIC = {"train": (60_000, 1), "test": (10_000, 2)}  # pictures, random seed of the drawing
_ORDER, _SPLIT = 0, 1  # independent random streams of one seed


def load(dataset: str, root: Path, *, download: bool = True) -> Splits:
    """Load a dataset, nothing held out. A further one is a branch here and a choice in config.py.

    Args:
        dataset: "fashion-mnist" or "synthetic".
        root: the torchvision root, which holds FashionMNIST/raw.
        download: fetch missing files.
    Raises:
        RunError: files are missing, damaged or unreadable.
        ValueError: no such dataset.
    """
    if dataset == "synthetic":
        train, test = (
            Pictures.from_images(*synthetic.draw(*SYNTHETIC[part])) for part in ("train", "test")
        )
        return Splits(train, None, test)
    if dataset == "fashion-mnist":
        return fashion_mnist.load(root, download=download)
    raise ValueError(f"unknown dataset {dataset!r}")


def hold_out(splits: Splits, val_size: int, seed: int) -> Splits:
    """Move `val_size` training pictures, drawn with `seed`, to a validation set.

    Every class gives the same number; a remainder is taken from the first classes.

    Raises:
        UsageError: a class would have no training pictures left.
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
    """The order of `count` pictures in an epoch, int64 [count]; depends on seed and epoch only."""
    return torch.from_numpy(_random(seed, _ORDER, epoch).permutation(count))


def _random(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))
