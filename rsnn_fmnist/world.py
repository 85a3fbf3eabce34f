"""Data-parallel training over the processes that torchrun starts; with one process it does nothing.

Every process holds the whole state of the run, that is weights, optimizer, sums and position, and
computes its share of each batch. One sum over all processes a step carries the gradients, weighted
by the shares, what the batch adds to the run's sums, and the signals that have come. So all of them
stand at the same place after every batch, and what the first one saves there does not depend on
their number. Left out: models too large for one device, and processes that come and go.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .data.loader import Selection
from .errors import RunError, UsageError
from .interrupt import WISHES, Interrupt
from .training.step import Sums, own_gradients

if TYPE_CHECKING:
    from .session import Session

TIMEOUT = timedelta(minutes=5)  # how long a process waits for one that is alive but busy
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # of torchrun

T = TypeVar("T")


class PeerLostError(RunError):
    """Another process of the run has ended, or does not answer."""

    alike = True


@dataclass(frozen=True)
class World:
    """The processes of a run, from one of them: it is number `rank` of `size`.

    `local_rank` is its number on its machine. The one of rank 0 writes and speaks for all.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> "World":
        """The world that torchrun has put this process into; alone without torchrun."""
        values = [os.environ.get(name, "") for name in VARIABLES]
        return cls(*map(int, values)) if all(map(str.isdecimal, values)) else cls()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, indices: Tensor) -> Tensor:
        """This process's part of a batch [N]; the parts differ by one at most."""
        least, more = divmod(len(indices), self.size)
        start = self.rank * least + min(self.rank, more)
        return indices[start : start + least + (self.rank < more)]

    def on_first(self, do: Callable[[], T]) -> T:
        """What `do` returns on the first process, which alone does it; it fails for everyone."""
        if self.size == 1:
            return do()
        outcome: list[Any] = _attempt(do) if self.first else [None, None]
        with _peers():
            dist.broadcast_object_list(outcome)
        result, error = outcome
        if error:
            raise _alike(error)
        return result

    def on_all(self, do: Callable[[], T]) -> T:
        """What `do` returns on this process; where it fails on one, it fails on all of them."""
        if self.size == 1:
            return do()
        result, error = _attempt(do)
        errors: list[RunError | None] = [None] * self.size
        with _peers():
            dist.all_gather_object(errors, error)
        failed = next((rank for rank, error in enumerate(errors) if error), None)
        if failed is not None:
            where = f"process {failed}: " if failed else ""
            told = errors[failed] or RunError("")
            raise _alike(type(told)(f"{where}{told}")) from error
        return result

    def gather(self, value: T) -> list[T]:
        """On the first process the values of all, by rank; on the others none."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _peers():
            dist.gather_object(value, values if self.first else None)
        return values if self.first else []

    def begin(self, model: nn.Module) -> None:
        """Have all start from the first one's weights, and draw random numbers of their own.

        Those of the first are the run's.
        """
        if self.size == 1:
            return
        model.load_state_dict(self.on_first(lambda: _on_cpu(model)))
        if not self.first:
            torch.manual_seed(int(torch.randint(2**62, ())) + self.rank)

    def complete(self, sums: Sums, interrupt: Interrupt) -> None:
        """Make of each process's `sums` those of all.

        Raises:
            InterruptedRunError: a signal has come to one of them.
        """
        if self.size == 1:
            return
        flags = sums.totals.new_tensor(interrupt.flags())
        both = torch.cat([sums.totals, flags])
        with _peers():
            dist.all_reduce(both)
        sums.totals.copy_(both[: len(sums.totals)])
        interrupt.hear(both[len(sums.totals) :].tolist())
        interrupt.check()


ALONE = World()


def _attempt(do: Callable[[], T]) -> list[Any]:
    """[result, None] or [None, the RunError]."""
    try:
        return [do(), None]
    except RunError as error:
        return [None, error]


def _alike(error: RunError) -> RunError:
    error.alike = True
    return error


def _on_cpu(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


@contextmanager
def processes(device: str) -> Iterator[World]:
    """The world of this process, connected: by NCCL between GPUs, by gloo between CPUs.

    Args:
        device: what --device says.
    Raises:
        RunError: the processes do not find each other.
    """
    world = World.of_environment()
    if world.size == 1:
        yield world
        return
    gpus = torch.cuda.is_available() and device != "cpu"
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"the processes of this run do not find each other: {reason}") from error
    try:
        yield world
        with suppress(RuntimeError):  # nobody leaves while another one still waits for a sum
            dist.barrier()
    finally:
        dist.destroy_process_group()


@contextmanager
def _peers() -> Iterator[None]:
    """Around what waits for the other processes."""
    try:
        yield
    except RuntimeError as error:  # torch has many kinds of it, one for each transport
        raise PeerLostError(
            "another process of this run has ended, or does not answer; started again with "
            "--resume auto, the run goes on from its last checkpoint"
        ) from error


class SharedGradients:
    """Called with this process's share of a batch, leaves the whole batch's gradients in .grad.

    What the whole batch adds goes to `sums`, and every process's signals to `interrupt`.
    """

    def __init__(self, session: "Session", sums: Sums, interrupt: Interrupt) -> None:
        self.sums = sums
        self.interrupt = interrupt
        self.own = Sums(session.device)
        self.gradients = own_gradients(session, self.own)
        batch_size = session.experiment.batch_size
        self.weight = len(session.world.share(torch.arange(batch_size))) / batch_size
        self.parameters = {n: p for n, p in session.model.named_parameters() if p.requires_grad}
        sizes = [p.numel() for p in self.parameters.values()]
        dtypes = (p.dtype for p in self.parameters.values())
        dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
        more = [len(sums.totals), len(WISHES)]
        self.bucket = torch.zeros(sum(sizes + more), dtype=dtype, device=session.device)
        *self.parts, self.added, self.flags = torch.split(self.bucket, sizes + more)
        if self.bucket.is_cuda:
            self._heard = torch.zeros(len(WISHES), dtype=dtype, pin_memory=True)
            self._arrived: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def __call__(self, share: Selection) -> None:
        self.own.reset()
        self.gradients(share)
        for part, gradient in zip(self.parts, self._own_gradients(), strict=True):
            torch.mul(gradient, self.weight, out=part.view_as(gradient))
        self.added.copy_(self.own.totals)
        for index, flag in enumerate(self.interrupt.flags()):
            self.flags[index] = flag
        with _peers():
            dist.all_reduce(self.bucket)
        for part, gradient in zip(self.parts, self._own_gradients(), strict=True):
            gradient.copy_(part.view_as(gradient))
        self.sums.totals += self.added
        self._hear()

    def _own_gradients(self) -> list[Tensor]:
        """Raises RunError where a parameter has none, since the processes could differ in that."""
        found = [p.grad for p in self.parameters.values() if p.grad is not None]
        if len(found) < len(self.parameters):
            name = next(name for name, p in self.parameters.items() if p.grad is None)
            raise RunError(
                f"the model's {name} takes no part in the scores; with several processes every "
                "parameter must, or have requires_grad off"
            )
        return found

    def _hear(self) -> None:
        """Take in the signals that came with the sum.

        On a GPU those of the step before, which have arrived by now: nobody waits for a number.
        """
        if not self.flags.is_cuda:
            self.interrupt.hear(self.flags.tolist())
            return
        self._arrived.synchronize()
        self.interrupt.hear(self._heard.tolist())
        self._heard.copy_(self.flags, non_blocking=True)
        self._arrived.record()


def refuse(model: nn.Module, batch_size: int, world: World) -> None:
    """Refuse what several processes cannot do as one does.

    Raises:
        UsageError: fewer pictures in a batch than processes.
        RunError: a layer that computes statistics of the whole batch.
    """
    if world.size > batch_size:
        raise UsageError(
            f"--batch-size {batch_size}: fewer pictures than the {world.size} processes that share "
            "them"
        )
    for name, layer in model.named_modules():
        whole = isinstance(layer, nn.modules.batchnorm._BatchNorm)
        if world.size > 1 and whole and not isinstance(layer, nn.SyncBatchNorm):
            raise RunError(
                f"the model's {name} takes statistics of a batch, of which each process has a "
                "share only; train it with one process"
            )
