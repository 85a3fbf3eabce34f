"""The processes of one run, as torchrun starts them; with one process nothing here has an effect.

Every process holds the whole state of the run and computes its share of each batch, so the states
are equal after every batch. training/shared_gradients.py sums their gradients. Left out: models too
large for one device, and a number of processes that changes while a run trains.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import random_state
from .arguments import TORCHRUN
from .errors import RunError, first_line
from .interrupt import Interrupt
from .metrics import Sums

TIMEOUT = timedelta(minutes=5)  # how long a process waits for another one that is alive but busy

T = TypeVar("T")


class PeerLostError(RunError):
    """Another process of the run has ended, or does not answer."""

    alike = True


@dataclass(frozen=True)
class World:
    """The processes of a run as one of them sees it: process `rank` of `size`.

    Attributes:
        local_rank: its number on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> "World":
        """From torchrun's environment variables; one process without them.

        Raises:
            RunError: one is missing, no number, or too large for the number of processes.
        """
        values = [os.environ.get(name, "") for name in TORCHRUN]
        if not any(values):
            return cls()
        if all(map(str.isdecimal, values)):
            world = cls(*map(int, values))
            if max(world.rank, world.local_rank) < world.size:
                return world
        named = zip(TORCHRUN, values, strict=True)
        shown = ", ".join(f"{name}={value}" if value else f"no {name}" for name, value in named)
        raise RunError(
            f"the environment has {shown}, which is no process of a run: start several processes "
            "with torchrun, or unset these variables"
        )

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, indices: Tensor) -> Tensor:
        """This process's part of a batch [N]; the parts differ by at most one picture."""
        least, more = divmod(len(indices), self.size)
        start = self.rank * least + min(self.rank, more)
        return indices[start : start + least + (self.rank < more)]

    def on_first(self, do: Callable[[], T]) -> T:
        """Call `do` on the first process only; all return its result, or raise its RunError."""
        if self.size == 1:
            return do()
        outcome: list[Any] = _attempt(do) if self.first else [None, None]
        with peers():
            dist.broadcast_object_list(outcome)
        result, error = outcome
        if error:
            raise _alike(error)
        return result

    def on_all(self, do: Callable[[], T]) -> T:
        """Call `do` on every process; a RunError on one of them is raised on all."""
        if self.size == 1:
            return do()
        result, error = _attempt(do)
        errors: list[RunError | None] = [None] * self.size
        with peers():
            dist.all_gather_object(errors, error)
        failed = next((rank for rank, error in enumerate(errors) if error), None)
        if failed is not None:
            where = f"process {failed}: " if failed else ""
            first = errors[failed] or RunError("")
            raise _alike(type(first)(f"{where}{first}")) from error
        return result

    def gather(self, value: T) -> list[T]:
        """On the first process the values of all, by rank; on the others an empty list."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with peers():
            dist.gather_object(value, values if self.first else None)
        return values if self.first else []

    def begin(self, model: nn.Module) -> None:
        """Give all processes the first one's weights, and the others random states of their own."""
        if self.size == 1:
            return
        model.load_state_dict(self.on_first(lambda: _on_cpu(model)))
        if not self.first:
            random_state.seed(int(torch.randint(2**62, ())) + self.rank)

    def complete(self, sums: Sums, interrupt: Interrupt) -> None:
        """Replace each process's `sums` by the sum over all of them.

        Raises:
            InterruptedRunError: one of the processes has received a signal.
        """
        if self.size == 1:
            return
        flags = sums.totals.new_tensor(interrupt.flags())
        both = torch.cat([sums.totals, flags])
        with peers():
            dist.all_reduce(both)
        sums.totals.copy_(both[: len(sums.totals)])
        interrupt.agree(both[len(sums.totals) :].tolist())
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


def _on_cpu(model: nn.Module) -> dict[str, Any]:
    state = model.state_dict()
    return {name: v.cpu() if isinstance(v, Tensor) else v for name, v in state.items()}


@contextmanager
def processes(device: str) -> Iterator[World]:
    """The world of this process, connected: with NCCL between GPUs, with gloo between CPUs.

    Args:
        device: the value of --device.
    Raises:
        RunError: the processes cannot connect.
    """
    world = World.of_environment()
    if world.size == 1:
        yield world
        return
    # An optimizer imports this; inside a group that would keep the group's threads, which can abort
    # the process at its end.
    importlib.import_module("torch._dynamo")
    gpus = torch.cuda.is_available() and device != "cpu"
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the processes of this run cannot connect: {first_line(error)}") from error
    try:
        yield world
        with suppress(RuntimeError):  # none leaves while another one still waits for a sum
            dist.barrier()
    finally:
        dist.destroy_process_group()


@contextmanager
def peers() -> Iterator[None]:
    """Around every wait for the other processes: a failure of torch becomes PeerLostError."""
    try:
        yield
    except RuntimeError as error:  # torch has many kinds, one for each transport
        raise PeerLostError(
            "another process of this run has ended, or does not answer; start the run again with "
            "--resume auto to continue from its last checkpoint"
        ) from error
