"""Sets of pictures as column sequences."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CLASSES = 10
SIDE = 28  # pixels a column, and columns a picture
CLASS_NAMES = (  # index = label
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@dataclass(frozen=True)
class Pictures:
    """M pictures: columns uint8 [M, T, H] (T = 28 columns of H = 28 pixels), labels int64 [M]."""

    columns: Tensor
    labels: Tensor

    @classmethod
    def from_images(cls, images: NDArray[np.uint8], labels: NDArray[np.integer]) -> "Pictures":
        """From uint8 [M, rows, columns], as files hold them, and labels [M]."""
        columns = np.ascontiguousarray(images.transpose(0, 2, 1))  # [M, T = column, H = row]
        return cls(torch.from_numpy(columns), torch.from_numpy(labels.astype(np.int64)))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "Pictures":
        return Pictures(self.columns[indices], self.labels[indices])


@dataclass(frozen=True)
class Splits:
    """Pictures to train on, to choose the best epoch on (None: none held out) and to test on."""

    train: Pictures
    val: Pictures | None
    test: Pictures
