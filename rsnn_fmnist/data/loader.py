"""Batches of a set of pictures, gathered on the device or streamed by worker processes.

A batch is gathered from columns uint8 [M, T, H], normalized and laid out [T, N, H] in memory, and
handed to the model as the view [N, H, W = T] of pictures. Augmentation is left out.
"""

import atexit
import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import first_line, warn
from .pictures import Pictures

MEAN, DEVIATION = 0.2860, 0.3530  # of FashionMNIST's training pixels in [0, 1]
EVALUATION_BATCH = 1000  # pictures; the results do not depend on it


class Loader:
    """The batches of one set.

    Args:
        pictures: the set.
        device: where batches go. Without workers the whole set is kept there.
        normalize: scale pixels to mean 0 and standard deviation 1, instead of to [0, 1].
        workers: processes that gather batches from host memory; 0: gather on the device.
    Attributes:
        pictures: on the device, what the indices of `selections` refer to: the whole set or, with
            workers, a buffer that holds one batch.
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
            self._host = pictures
            self._stream: _Stream | None = None
            self._failed = False
            atexit.register(self.close)
            pictures = pictures.subset(torch.empty(0, dtype=torch.int64))
        self.pictures = Pictures(pictures.columns.to(device), pictures.labels.to(device))

    def __len__(self) -> int:
        return self.count

    def close(self) -> None:
        """End the worker processes.

        torch ends them when nothing refers to them any more, or with SIGTERM when the program
        exits; they block that signal, so the program would wait for them forever.
        """
        if not self.workers:
            return
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        atexit.unregister(self.close)

    def selections(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """For each index tensor [N] the indices [N] of that batch in `pictures`, on the device.

        With workers, the next batch overwrites the buffer: use each one before asking for the next.
        """
        if not self.workers or not indices:
            yield from (batch.to(self.device) for batch in indices)
            return
        self._make_room(max([EVALUATION_BATCH, *map(len, indices)]))
        for columns, labels in self._streamed([batch.cpu() for batch in indices]):
            count = len(labels)
            self.pictures.columns[:count] = columns
            self.pictures.labels[:count] = labels
            yield torch.arange(count, device=self.device)

    def _streamed(self, indices: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches on the host, from the workers; from this process once a worker has died."""
        done = 0
        if not self._failed:
            try:
                if self._stream is None:
                    self._stream = _Stream(self._host, len(self.pictures), self.workers)
                for batch in self._stream.batches(indices):
                    yield batch
                    done += 1
            except (RuntimeError, OSError) as error:
                self._failed = True
                self.close()
                warn(f"{first_line(error)}; without -j from here on")
        for selection in indices[done:]:
            yield self._host.columns[selection], self._host.labels[selection]

    def _make_room(self, count: int) -> None:
        """A buffer for batches of `count`; it stays in place, since a CUDA graph reads from it."""
        if len(self.pictures) < count:
            columns, labels = self.pictures.columns, self.pictures.labels
            shape = columns.shape[1:]
            self.pictures = Pictures(columns.new_empty(count, *shape), labels.new_empty(count))

    def take(self, selection: Tensor) -> tuple[Tensor, Tensor]:
        """A batch: pictures [N, H, W] in the default dtype, and labels [N]."""
        columns = self.pictures.columns.index_select(0, selection)
        return self.as_pictures(columns), self.pictures.labels.index_select(0, selection)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each index tensor [N] the batch that `take` makes of it."""
        return map(self.take, self.selections(indices))

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole set in its order, in batches of EVALUATION_BATCH as `take` makes them."""
        order = torch.arange(len(self), device=self.device)
        return self.batches(batch_indices(order, EVALUATION_BATCH, drop_last=False))

    def as_pictures(self, columns: Tensor) -> Tensor:
        """uint8 [N, T, H] -> the view [N, H, W = T] of normalized columns laid out [T, N, H]."""
        count, steps, pixels = columns.shape
        x_seq = torch.empty(steps, count, pixels, dtype=self.shift.dtype, device=self.device)
        torch.add(self.shift, columns.transpose(0, 1), alpha=self.scale, out=x_seq)  # [T, N, H]
        return x_seq.permute(1, 2, 0)  # [N, H, W = T]


def batch_indices(order: Tensor, batch_size: int, *, drop_last: bool) -> list[Tensor]:
    """Cut an order [M] into batches; drop_last drops a last batch that is not full."""
    batches = list(torch.split(order, batch_size)) if len(order) else []
    if drop_last and batches and len(batches[-1]) < batch_size:
        batches.pop()
    return batches


class _Batches(Dataset[tuple[int, int]]):
    """A set and buffers for batches of it, both in memory that processes share.

    Between processes pass the number of a buffer and what to write there, and no tensors: these
    need sockets, which are left behind where a process dies, and a path short enough for them.
    """

    def __init__(self, pictures: Pictures, buffers: Pictures) -> None:
        self.pictures = pictures
        self.buffers = buffers

    def __getitem__(self, item: tuple[int, NDArray[np.int64]]) -> tuple[int, int]:
        """Write the pictures of some indices into a buffer -> its number, and how many they are."""
        buffer, indices = item
        chosen, count = torch.from_numpy(indices), len(indices)
        self.buffers.columns[buffer, :count] = self.pictures.columns[chosen]
        self.buffers.labels[buffer, :count] = self.pictures.labels[chosen]
        return buffer, count


class _Stream(DataLoader[tuple[int, int]]):
    """Batches of at most `size` pictures, gathered by processes that outlive an epoch.

    Spawned, not forked: a fork after numba's or OpenMP's threads have run can hang. A generator of
    its own leaves torch's random state alone.
    """

    def __init__(self, pictures: Pictures, size: int, workers: int) -> None:
        ahead = 2 * workers  # batches asked for; one more may be in use
        columns, labels = pictures.columns, pictures.labels
        self._buffers = Pictures(
            columns.new_empty(ahead + 1, size, *columns.shape[1:]).share_memory_(),  # type: ignore[no-untyped-call]
            labels.new_empty(ahead + 1, size).share_memory_(),  # type: ignore[no-untyped-call]
        )
        self._items: list[tuple[int, NDArray[np.int64]]] = []
        super().__init__(
            _Batches(pictures, self._buffers),
            sampler=self._items,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # called with an item, not a list
            persistent_workers=True,
            multiprocessing_context="spawn",
            generator=torch.Generator(),
        )

    def batches(self, indices: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Columns and labels of each index tensor [N]; the batch after the next overwrites them.

        Raises:
            RuntimeError, OSError: a process has died, or cannot be started.
        """
        columns, labels = self._buffers.columns, self._buffers.labels
        self._items[:] = [(n % len(columns), i.numpy()) for n, i in enumerate(indices)]
        stream = iter(self) if self._iterator is not None else self._start()
        for buffer, count in stream:
            yield columns[buffer, :count], labels[buffer, :count]

    def _start(self) -> Iterator[tuple[int, int]]:
        """Start the processes; if one cannot be started, end the others."""
        before = set(multiprocessing.active_children())
        try:
            with _signals_blocked():
                return iter(self)
        except Exception:
            for worker in set(multiprocessing.active_children()) - before:
                worker.kill()
            raise

    def close(self) -> None:
        """End the processes."""
        iterator: Any = self._iterator  # None: not started
        if iterator is not None:
            for worker in iterator._workers:
                worker.kill()  # torch would wait for one that is stopped
            iterator._shutdown_workers()

    def check_worker_number_rationality(self) -> None:
        """No warning for more processes than cores: the tutorial's commands say -j 4."""


def _as_it_is(item: tuple[int, int]) -> tuple[int, int]:
    return item


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM: for good in processes started inside, here until the end.

    Ctrl-C and schedulers signal the whole process group; the main process decides when to stop.
    torch's handler for SIGCHLD is taken out again: where a worker dies it would raise an error
    anywhere, as in the midst of a step. Without it the wait for that worker's batch raises it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it inside would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    of_children = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, of_children)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
