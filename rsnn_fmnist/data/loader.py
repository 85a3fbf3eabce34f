"""The batches of a set of pictures, gathered on the device or streamed by processes.

A batch is gathered from columns uint8 [M, T, H], normalised and laid out [T, N, H] in memory, and
handed to the model as the view [N, H, W = T] of pictures. Augmentation is left out: the experiment
has none.
"""

import atexit
import contextlib
import signal
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .fashion_mnist import Pictures

MEAN, DEVIATION = 0.2860, 0.3530  # of FashionMNIST's training pixels in [0, 1]
EVALUATION_BATCH = 1000  # pictures; the results do not depend on it

Selection = tuple[Tensor, ...]  # the pictures of a batch, on the device; see Loader.selections


class Loader:
    """Hands out the batches of one set, or which pictures they are for a step to take itself.

    Args:
        pictures: the set.
        device: where batches go. Without workers the whole set is kept there.
        normalize: pixels to mean 0 and deviation 1 by FashionMNIST's constants, else to [0, 1].
        workers: processes that gather batches from host memory; 0: gather on the device.
    """

    def __init__(
        self, pictures: Pictures, device: torch.device, *, normalize: bool = True, workers: int = 0
    ) -> None:
        self.device = device
        self.workers = workers
        mean, deviation = (MEAN, DEVIATION) if normalize else (0.0, 1.0)
        self.scale = 1 / (255 * deviation)
        self.shift = torch.tensor(-mean / deviation, device=device)
        self.count = len(pictures)
        if workers:
            self._sampler: list[Tensor] = []
            self._stream = _stream(pictures, self._sampler, workers)
            atexit.register(self.close)
        else:
            self.pictures = Pictures(pictures.columns.to(device), pictures.labels.to(device))

    def __len__(self) -> int:
        return self.count

    def close(self) -> None:
        """End the processes that gather batches.

        torch ends them when nothing refers to them any more, or by SIGTERM when the program ends;
        they do not get that signal, and the program would wait for them for ever.
        """
        if self.workers:
            stream: Any = self._stream._iterator  # None: not begun
            if stream is not None:
                stream._shutdown_workers()
            atexit.unregister(self.close)

    def selections(self, indices: Sequence[Tensor]) -> Iterator[Selection]:
        """For each index tensor [N] what `take` and `rows` make a batch of.

        That is (indices,) into the pictures on the device or, streamed, (columns, labels).
        """
        if self.workers:
            self._sampler[:] = [batch.cpu() for batch in indices]  # the workers have no other
            with _signals_held_back():
                stream = iter(self._stream)  # the first call starts the processes
            for columns, labels in stream:
                yield columns.to(self.device), labels.to(self.device)
        else:
            for batch in indices:
                yield (batch.to(self.device),)

    def take(self, selection: Selection) -> tuple[Tensor, Tensor]:
        """A batch: pictures [N, H, W], in the default dtype, and labels [N]."""
        if self.workers:
            columns, labels = selection
        else:
            (indices,) = selection
            columns = self.pictures.columns.index_select(0, indices)
            labels = self.pictures.labels.index_select(0, indices)
        return self.as_pictures(columns), labels

    def rows(self, selection: Selection) -> tuple[Tensor, Tensor, Tensor]:
        """A batch not yet gathered: columns uint8 [M, T, H], labels [M] and which of them, [N]."""
        if self.workers:
            columns, labels = selection
            return columns, labels, torch.arange(len(labels), device=self.device)
        return self.pictures.columns, self.pictures.labels, selection[0]

    def batches(self, indices: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each index tensor [N] the batch that `take` makes of it."""
        return map(self.take, self.selections(indices))

    def as_pictures(self, columns: Tensor) -> Tensor:
        """uint8 [N, T, H] -> the view [N, H, W = T] of normalised columns laid out [T, N, H]."""
        count, steps, pixels = columns.shape
        x_seq = torch.empty(steps, count, pixels, dtype=self.shift.dtype, device=self.device)
        torch.add(self.shift, columns.transpose(0, 1), alpha=self.scale, out=x_seq)  # [T, N, H]
        return x_seq.permute(1, 2, 0)  # [N, H, W = T]


def batch_indices(order: Tensor, batch_size: int, *, drop_last: bool) -> list[Tensor]:
    """An order [M] cut into batches; drop_last leaves out a last one that is not full."""
    batches = list(torch.split(order, batch_size)) if len(order) else []
    if drop_last and batches and len(batches[-1]) < batch_size:
        batches.pop()
    return batches


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """A set in shared memory, indexed by a whole batch."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.pictures.columns[indices], self.pictures.labels[indices]


class _Stream(DataLoader[tuple[Tensor, Tensor]]):
    def check_worker_number_rationality(self) -> None:
        """More processes than cores are what was asked for, as by the tutorial's -j 4."""


def _stream(
    pictures: Pictures, sampler: list[Tensor], workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of `sampler`'s index tensors, gathered by processes that outlive an epoch.

    The processes are spawned, not forked: a fork after numba's or OpenMP's threads have run can
    hang. A generator of its own keeps the loader away from torch's random state.
    """
    return _Stream(
        _Batches(pictures),
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="spawn",
        generator=torch.Generator(),
    )


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes started inside never get SIGINT or SIGTERM; this one gets them afterwards.

    Ctrl-C and schedulers reach the whole process group, and the main process decides when to stop.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it would let the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
