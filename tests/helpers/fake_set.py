"""FashionMNIST's four files with few random pictures; the fixture `fake` in conftest.py."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.idx_files import archive, idx, md5_of

from rsnn_fmnist.data import fashion_mnist
from rsnn_fmnist.data.pictures import Splits
from rsnn_fmnist.errors import RunError

COUNTS = {"train": 40, "test": 20}


@dataclass(frozen=True)
class FakeSet:
    """40 + 20 random pictures, and the torchvision root that they are read from."""

    root: Path
    arrays: dict[tuple[str, str], np.ndarray]

    @classmethod
    def drawn(cls, root: Path) -> "FakeSet":
        rng = np.random.default_rng(0)
        arrays = {}
        for part, kind in fashion_mnist.FILES:
            count = COUNTS[part]
            if kind == "images":
                array = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            else:
                array = rng.permutation(np.arange(count, dtype=np.uint8) % 10)
            arrays[part, kind] = array
        return cls(root, arrays)

    def files(self) -> dict[tuple[str, str], tuple[str, str, int]]:
        """This set's fashion_mnist.FILES."""
        return {
            key: (fashion_mnist.FILES[key][0], md5_of(archive(array)), len(array))
            for key, array in self.arrays.items()
        }

    @property
    def raw(self) -> Path:
        return self.root / "FashionMNIST" / "raw"

    def path(self, part: str, kind: str, suffix: str = "") -> Path:
        return self.raw / (fashion_mnist.FILES[part, kind][0] + suffix)

    def unpacked(self) -> "FakeSet":
        """Write the files unpacked."""
        for (part, kind), array in self.arrays.items():
            self.path(part, kind).write_bytes(idx(array))
        return self

    def archives(self) -> "FakeSet":
        """Write the files as archives."""
        for (part, kind), array in self.arrays.items():
            self.path(part, kind, ".gz").write_bytes(archive(array))
        return self

    def load(self, *, download: bool = False) -> Splits:
        return fashion_mnist.load(self.root, download=download)

    def refusal(self) -> str:
        return refusal(self.load)

    def check(self, splits: Splits) -> None:
        """Assert that `splits` is this set."""
        for part, pictures in (("train", splits.train), ("test", splits.test)):
            assert pictures.columns.dtype == torch.uint8
            assert pictures.labels.dtype == torch.int64
            images = pictures.columns.numpy().transpose(0, 2, 1)
            np.testing.assert_array_equal(images, self.arrays[part, "images"])
            np.testing.assert_array_equal(pictures.labels.numpy(), self.arrays[part, "labels"])
        assert splits.val is None


def refusal(call: Callable[[], object]) -> str:
    """The message of the RunError that `call` raises: one line."""
    with pytest.raises(RunError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def denying(method: Callable[..., object], path: Path) -> Callable[..., object]:
    """A method of Path that may not be used on `path`; tests may run as root, who may read all."""

    def denied(self: Path, *args: object, **kwargs: object) -> object:
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return method(self, *args, **kwargs)

    return denied
