"""A step as one graph of the device: taken a few times, then captured, then replayed.

A graph is what the device is asked to do, recorded once; a replay does all of it again, on the
same memory, at the price of one launch. So what changes between replays lies in tensors: the batch,
the learning rate, counters, gradient scaling. What a model computes in Python's own numbers, and
whoever listens to its layers, takes part in the capture only. Steps of several processes, who have
to wait for each other, are left out.
"""

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from ..data.loader import Selection
from ..errors import warn

if TYPE_CHECKING:
    from .step import Step

Work = Callable[[], None]

WARM_UP = 3  # batches: they compile kernels, and make what a replay has to find in its place
SYNCHRONISES = "called a synchronizing CUDA operation"  # torch warns of it, if asked to
PROTOTYPE = "Synchronization debug mode is a prototype"  # and says so, once


class Graph(Protocol):
    """What a device was asked to do."""

    def warm_up(self, work: Work) -> str | None:
        """Do the work where it is going to be captured -> what no graph can hold of it, or None."""

    def capture(self, work: Work) -> None:
        """Record the work, which does nothing yet; raises what the device has against it."""

    def replay(self) -> None:
        """Do what was recorded."""


class CudaGraph:
    """A Graph of a CUDA device, recorded on a stream of its own."""

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
        # torch.cuda.graph leaves its stream the current one where the capture fails; this does not
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
    """Note what is done meanwhile that a CUDA graph cannot hold, or that it would freeze.

    A capture that fails is not undone by every torch without a trace; so what can be known before
    is looked for before.
    """
    drawn = torch.get_rng_state(), random.getstate()
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in told:
        if SYNCHRONISES in str(warning.message):
            where = f"{Path(warning.filename).name}, line {warning.lineno}"
            obstacles.append(f"it waits for the device in {where}")
        elif PROTOTYPE not in str(warning.message):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if not torch.equal(drawn[0], torch.get_rng_state()) or drawn[1] != random.getstate():
        obstacles.append("it draws random numbers on the CPU")


class Captured:
    """A step that becomes a graph; called with a selection, takes the step on it.

    The first WARM_UP selections are taken as they come. Then the step is captured, and from there
    on replayed. A selection of another shape than the first is taken as it comes; so is every one
    where the step cannot be captured, which is told in one line.

    Args:
        step: what changes from call to call it has in tensors.
        graph: a fresh one.
        name: what the line calls the step.
    """

    def __init__(self, step: "Step", graph: Graph, name: str) -> None:
        self.step = step
        self.graph: Graph | None = graph
        self.name = name
        self.selection: Selection = ()  # what the graph reads, as large as the first
        self.left = WARM_UP
        self.captured = False
        self.obstacle: str | None = None

    def __call__(self, selection: Selection) -> None:
        if not self.selection:
            self.selection = tuple(map(torch.empty_like, selection))
        if self.graph is None or not self._fits(selection):
            self.step(selection)
            return
        for kept, given in zip(self.selection, selection, strict=True):
            kept.copy_(given)
        if self.left:
            self.left -= 1
            self.obstacle = self.graph.warm_up(partial(self.step, self.selection))
            return
        if not self.captured and not self._capture(self.graph):
            self.step(selection)
            return
        self.graph.replay()

    def _fits(self, selection: Selection) -> bool:
        return [x.shape for x in selection] == [x.shape for x in self.selection]

    def _capture(self, graph: Graph) -> bool:
        """Whether the step is captured now; it is not tried twice."""
        try:
            if self.obstacle is not None:
                raise RuntimeError(self.obstacle)
            graph.capture(partial(self.step, self.selection))
            self.captured = True
        except Exception as error:  # whatever the device, torch or a user's model raises
            warn(f"{self.name} cannot be one graph ({_reason(error)}): it goes layer by layer")
            self.graph = None
        return self.captured


def _reason(error: BaseException) -> str:
    """The first line of what began it: one failure in a capture brings forth others."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Rate:
    """The optimizer's learning rate in a tensor on the device, where a graph reads it anew.

    The schedule's own stays a number, exact, and plain in a checkpoint. The tensor is float32,
    which is how torch's fused optimizers read it on CUDA.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        self.tensor = torch.zeros((), dtype=torch.float32, device=device)
        self.number = 0.0

    def take_up(self) -> None:
        """Take the schedule's; not a part of what is captured."""
        (group,) = self.optimizer.param_groups
        if group["lr"] != self.number:
            self.number = group["lr"]
            self.tensor.fill_(self.number)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The optimizer finds the tensor meanwhile."""
        (group,) = self.optimizer.param_groups
        scheduled = group["lr"]
        group["lr"] = self.tensor
        try:
            yield
        finally:
            group["lr"] = scheduled


def listened_to(model: nn.Module) -> bool:
    """Whether somebody has hooks in the model or in all modules, or observes its spiking layers."""
    everywhere = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return bool(everywhere) or any(
        m._forward_hooks
        or m._forward_pre_hooks
        or m._backward_hooks
        or m._backward_pre_hooks
        or getattr(m, "observer", None)
        for m in model.modules()
    )
