"""A training step and an evaluation's, and the one place that chooses how they are taken.

    eager      autograd and torch's operations: any model, any device
    compiled   gradients from one compiled CPU loop, for chains of layers (compiled_step.py)
    graph      the whole step as one CUDA graph (cuda_graph.py)

A step takes a selection of a Loader: indices [N] into its pictures. No step waits for a number.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..data.loader import Loader
from ..interrupt import Interrupt
from ..metrics import Sums, rate_loss
from ..session import Session
from ..spiking import SequenceModule
from ..spiking.backend import resolve
from ..spiking.monitor import is_observed
from .cuda_graph import GRAPHS, GraphStep, LearningRate
from .flat_parameters import FlatParameters
from .shared_gradients import SharedGradients

Step = Callable[[Tensor], None]


def choose_step(session: Session) -> tuple[str, str]:
    """How a training step is taken: "compiled", "graph" or "eager", and why it is eager ("": not).

    A graph that the device cannot capture becomes eager when that shows; see `GraphStep`.
    """
    why = _why_eager(session)
    if why:
        return "eager", why
    return ("graph" if session.device.type in GRAPHS else "compiled"), ""


def _why_eager(session: Session) -> str:
    if not session.graph:
        return "--no-graph"
    if session.world.size > 1 and session.device.type != "cpu":
        return f"{session.world.size} processes sum their gradients in it"
    if session.device.type not in GRAPHS and (why := _why_not_compiled(session)):
        return why
    return "the model has hooks or observers" if is_observed(session.model) else ""


def _why_not_compiled(session: Session) -> str:
    if session.precision.dtype is torch.float16:
        return "float16"
    if session.device.type != "cpu":
        return f"on {session.device.type}"
    named = session.model.named_modules()
    layers = {name: m for name, m in named if isinstance(m, SequenceModule)}
    if not layers:
        return "the model has no spiking layers"
    for name, layer in layers.items():
        if resolve(layer.backend, session.device) != "numba":
            return f"{name} runs in torch"
    from .compiled_step import refusal  # needs numba

    return refusal(session.model, half=session.precision.dtype is not None) or ""


def training_step(session: Session, sums: Sums, interrupt: Interrupt | None = None) -> Step:
    """The function that takes one optimization step on a batch and adds the batch to `sums`.

    With several processes it takes this process's share of the batch, and passes the signals that
    any of them has received to `interrupt`.
    """
    own = sums if session.world.size == 1 else Sums(session.device)
    gradients, update = _gradients_and_update(session, own)
    if session.world.size > 1:
        gradients = SharedGradients(session, gradients, own, sums, interrupt or Interrupt())

    def step(selection: Tensor) -> None:
        gradients(selection)
        update()

    return _on_device(session, step) if session.device.type in GRAPHS else step


def _gradients_and_update(session: Session, sums: Sums) -> tuple[Step, Callable[[], None]]:
    """What adds a batch to `sums` and leaves its gradients in .grad; what updates the weights."""
    if choose_step(session)[0] == "compiled":
        from .compiled_step import CompiledGradients  # needs numba

        flat = FlatParameters(session)
        half = session.precision.dtype is not None
        return CompiledGradients(session.model, flat, session.train, sums, half), flat.step

    def update() -> None:
        session.scaler.step(session.optimizer)
        session.scaler.update()

    return eager_gradients(session, sums), update


def eager_gradients(session: Session, sums: Sums) -> Step:
    """The function that adds a batch to `sums` and leaves its gradients, by autograd, in .grad.

    Gradients are scaled by the session's scaler.
    """

    def gradients(selection: Tensor) -> None:
        x, labels = session.train.take(selection)
        with session.precision.autocast():
            rates = session.model(x)
        loss = rate_loss(rates, labels)
        session.optimizer.zero_grad()
        session.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        sums.add(loss, rates.detach(), labels)

    return gradients


def _on_device(session: Session, step: Step) -> Step:
    """The step on a device with graphs: its learning rate in a tensor, as a graph where it may be.

    An eager step takes the rate from the same tensor, so that both give the same numbers.
    """
    rate = LearningRate(session.optimizer, session.device)

    def with_rate(selection: Tensor) -> None:
        with rate.in_optimizer():
            step(selection)

    graph = choose_step(session)[0] == "graph"
    chosen = _as_graph(session, with_rate, "a training step") if graph else with_rate

    def scheduled(selection: Tensor) -> None:
        rate.update()
        chosen(selection)

    return scheduled


def _as_graph(session: Session, step: Step, name: str) -> Step:
    graph = GRAPHS[session.device.type](session.device)
    return GraphStep(step, graph, f"{name} of {session.experiment.model}")


class Evaluation:
    """A step over a loader's pictures that learns nothing, and its sums.

    Call it with a selection. Where an evaluation is repeated, keep it: a graph serves every pass.
    """

    def __init__(self, session: Session, loader: Loader) -> None:
        self.loader = loader
        self.sums = Sums(session.device)
        self._model = session.model
        self._eager = eager_evaluation(session, loader, self.sums)
        self._graph: Step | None = None
        if choose_step(session)[0] == "graph":
            self._graph = _as_graph(session, self._eager, "an evaluation")

    def __call__(self, selection: Tensor) -> None:
        if self._graph is None or is_observed(self._model):  # an observer needs every batch
            self._eager(selection)
        else:
            self._graph(selection)


def eager_evaluation(session: Session, loader: Loader, sums: Sums) -> Step:
    """The function that adds a batch of `loader` to `sums`, under the autocast of training."""

    def step(selection: Tensor) -> None:
        with torch.inference_mode(), session.precision.autocast():
            x, labels = loader.take(selection)
            rates = session.model(x)
            sums.add(rate_loss(rates, labels), rates, labels)

    return step
