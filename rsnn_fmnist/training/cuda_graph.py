"""A step as one graph of the device: eager a few times, then captured, then replayed.

A graph is the work of a step, recorded once; a replay does it again, on the same memory, with one
launch. So whatever changes between replays is in tensors: the batch, the learning rate, counters,
gradient scaling. Python's own numbers in a model are frozen at the capture, and hooks run only
there. Steps of several processes are left out.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import random_state
from ..errors import first_line, warn

Work = Callable[[], None]

WARM_UP = 3  # eager batches: they compile kernels and allocate what a replay reads
SYNCHRONIZES = "called a synchronizing CUDA operation"  # torch's warning, where enabled
PROTOTYPE = "Synchronization debug mode is a prototype"  # torch's warning about that warning


class Graph(Protocol):
    """Work recorded on a device."""

    def warm_up(self, work: Work) -> str | None:
        """Do the work where it will be captured; return what a graph cannot hold of it, or None."""

    def capture(self, work: Work) -> None:
        """Record the work without doing it; raises the device's error where it cannot."""

    def replay(self) -> None:
        """Do the recorded work."""


class CudaGraph:
    """A Graph on a CUDA device, recorded on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None

    def warm_up(self, work: Work) -> str | None:
        obstacles: list[str] = []
        others = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(others)
        with torch.cuda.stream(self._stream), watching(obstacles):
            work()
        others.wait_stream(self._stream)
        return obstacles[0] if obstacles else None

    def capture(self, work: Work) -> None:
        graph = torch.cuda.CUDAGraph()
        # after a failed capture torch.cuda.graph leaves its stream current; this does not
        with torch.cuda.stream(self._stream):
            try:
                with torch.cuda.graph(graph, stream=self._stream):
                    work()
            except Exception:
                graph.reset()
                raise
        self._graph = graph

    def replay(self) -> None:
        assert self._graph is not None
        self._graph.replay()


GRAPHS: dict[str, Callable[[torch.device], Graph]] = {"cuda": CudaGraph}  # by type of device


@contextmanager
def watching(obstacles: list[str]) -> Iterator[None]:
    """Append what happens inside that a CUDA graph cannot hold, or would freeze.

    Known before the capture, since not every torch undoes a failed capture completely.
    """
    before = random_state.on_host()
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in caught:
        if SYNCHRONIZES in str(warning.message):
            where = f"{Path(warning.filename).name}, line {warning.lineno}"
            obstacles.append(f"it waits for the device in {where}")
        elif PROTOTYPE not in str(warning.message):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if random_state.on_host() != before:
        obstacles.append("it draws random numbers on the CPU")


class GraphStep:
    """A step that becomes a graph; call it with a selection [N].

    The first WARM_UP selections are eager. Then the step is captured, and replayed from there on. A
    selection of another length than the first is eager; so are all where the capture fails, which a
    warning reports.

    Args:
        step: reads from tensors whatever changes from call to call.
        graph: a fresh one.
        name: of the step, in the warning.
    """

    def __init__(self, step: Callable[[Tensor], None], graph: Graph, name: str) -> None:
        self.step = step
        self.graph: Graph | None = graph
        self.name = name
        self.selection: Tensor | None = None  # what the graph reads, as long as the first
        self.warm_ups_left = WARM_UP
        self.captured = False
        self.obstacle: str | None = None

    def __call__(self, selection: Tensor) -> None:
        if self.selection is None:
            self.selection = torch.empty_like(selection)
        if self.graph is None or selection.shape != self.selection.shape:
            self.step(selection)
            return
        self.selection.copy_(selection)
        if self.warm_ups_left:
            self.warm_ups_left -= 1
            self.obstacle = self.graph.warm_up(partial(self.step, self.selection))
            return
        if not self.captured and not self._capture(self.graph, self.selection):
            self.step(selection)
            return
        self.graph.replay()

    def _capture(self, graph: Graph, selection: Tensor) -> bool:
        """Whether the capture succeeds; it is tried once."""
        try:
            if self.obstacle is not None:
                raise RuntimeError(self.obstacle)
            graph.capture(partial(self.step, selection))
            self.captured = True
        except Exception as error:  # from the device, torch or a user's model
            warn(f"{self.name} cannot be a graph ({first_line(_cause(error))}): it is eager")
            self.graph = None
        return self.captured


def _cause(error: BaseException) -> BaseException:
    """The first error of a chain: one failure in a capture brings about others."""
    while error.__context__ is not None:
        error = error.__context__
    return error


class LearningRate:
    """The optimizer's learning rate in a tensor on the device, where a graph reads it anew.

    The scheduler's own stays a number, exact, and plain in a checkpoint. The tensor is float32,
    which is how torch's fused optimizers read it on CUDA.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        self.tensor = torch.zeros((), dtype=torch.float32, device=device)
        self.number = 0.0

    def update(self) -> None:
        """Copy the scheduler's rate to the tensor; outside of what is captured."""
        (group,) = self.optimizer.param_groups
        if group["lr"] != self.number:
            self.number = group["lr"]
            self.tensor.fill_(self.number)

    @contextmanager
    def in_optimizer(self) -> Iterator[None]:
        """The optimizer reads the tensor inside."""
        (group,) = self.optimizer.param_groups
        scheduled = group["lr"]
        group["lr"] = self.tensor
        try:
            yield
        finally:
            group["lr"] = scheduled
