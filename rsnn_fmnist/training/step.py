"""One optimisation step, and the sums that a pass over the pictures leaves on the device.

Sums stay on the device, so that no batch waits for a number; they are read once an epoch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional

from ..data.loader import Loader, Selection
from ..interrupt import Interrupt
from ..spiking import SequenceModule
from ..spiking.backend import resolve
from .cuda_graph import GRAPHS, Captured, Rate, listened_to

if TYPE_CHECKING:
    from ..session import Session


@dataclass(frozen=True)
class Precision:
    """Automatic mixed precision on a device; dtype None: none, everything in full precision."""

    device: torch.device
    dtype: torch.dtype | None = None

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def scaler(self) -> GradScaler:
        """Gradient scaling, which only float16 needs: its gradients underflow."""
        return GradScaler(self.device.type, enabled=self.dtype is torch.float16)


class Sums:
    """Running sums over pictures: loss, hits at top 1, hits at top 5, pictures."""

    def __init__(self, device: torch.device) -> None:
        wide = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self.totals = torch.zeros(4, dtype=wide, device=device)
        self._ks = torch.tensor([1, 5], device=device)

    def add(self, loss: Tensor, rates: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, rates [N, classes] and labels [N]."""
        hits = (ranks(rates, labels)[:, None] < self._ks).sum(0)
        self.totals[0].add_(loss.detach(), alpha=len(labels))
        self.totals[1:3].add_(hits)
        self.totals[3].add_(len(labels))

    def reset(self) -> None:
        """Begin anew, in place."""
        self.totals.zero_()

    def wait(self) -> None:
        """Return when the device has done the work so far."""
        self.totals.tolist()

    def means(self) -> tuple[float, float, float]:
        """Mean loss, and accuracies at top 1 and top 5 in percent; waits for the device."""
        loss, top1, top5, count = self.totals.tolist()
        return loss / count, 100 * top1 / count, 100 * top5 / count


def gradient_norm(model: nn.Module) -> float | None:
    """The L2 norm of all gradients together, as the last step left them; None before any step.

    With gradient scaling it is that of the unscaled gradients, which is what the optimizer leaves.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients).item() if gradients else None


def ranks(rates: Tensor, labels: Tensor) -> Tensor:
    """How many classes j come before the label y, [N]: r_j > r_y, or r_j = r_y and j < y.

    Rates take few values, so ties are common; the lower class wins them. A class whose rate is
    not a number comes first, and so does every class where the label's is not.
    """
    r_y = rates.gather(1, labels[:, None])
    j = torch.arange(rates.shape[1], device=rates.device)
    behind = (rates < r_y) | ((rates == r_y) & (j > labels[:, None]))
    return rates.shape[1] - 1 - behind.sum(1)


def rate_loss(rates: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error between rates [N, classes] and one-hot labels [N]; float32 at least."""
    rates = rates.to(torch.promote_types(rates.dtype, torch.float32))
    classes = torch.arange(rates.shape[1], device=rates.device)
    one_hot = (labels[:, None] == classes).to(rates.dtype)
    return functional.mse_loss(rates, one_hot)


Step = Callable[[Selection], None]  # a selection of a Loader; see loader.Loader.selections


def training_step(session: "Session", sums: Sums, interrupt: Interrupt | None = None) -> Step:
    """The function that takes one optimisation step on a batch and adds it to `sums`.

    Where several processes take the step together, it is given this one's share of the batch, and
    leaves every one's signals with `interrupt`.
    """
    if session.world.size > 1:
        from ..world import SharedGradients

        gradients: Step = SharedGradients(session, sums, interrupt or Interrupt())
    else:
        gradients = own_gradients(session, sums)

    def step(selection: Selection) -> None:
        gradients(selection)
        session.scaler.step(session.optimizer)
        session.scaler.update()

    return _on_its_device(session, step) if session.device.type in GRAPHS else step


def _on_its_device(session: "Session", step: Step) -> Step:
    """The step where it can be a graph: one, if it may, and its learning rate in a tensor."""
    rate = Rate(session.optimizer, session.device)

    def with_rate(selection: Selection) -> None:
        with rate.lent():
            step(selection)

    graph = layer_by_layer(session) is None
    whole = _captured(session, with_rate, "a training step") if graph else with_rate

    def scheduled(selection: Selection) -> None:
        rate.take_up()
        whole(selection)

    return scheduled


def _captured(session: "Session", step: Step, name: str) -> Step:
    graph = GRAPHS[session.device.type](session.device)
    return Captured(step, graph, f"{name} of {session.experiment.model}")


def own_gradients(session: "Session", sums: Sums) -> Step:
    """The function that adds a batch to `sums` and leaves its gradients in the model's .grad."""
    if session.device.type not in GRAPHS and layer_by_layer(session) is None:
        from .compiled_step import Gradients

        return Gradients(session.model, session.train, sums)
    return eager_gradients(session, sums)


def eager_gradients(session: "Session", sums: Sums) -> Step:
    """Autograd's, layer by layer, scaled by the session's scaler: for any model and device."""

    def gradients(selection: Selection) -> None:
        x, labels = session.train.take(selection)
        with session.precision.autocast():
            rates = session.model(x)
        loss = rate_loss(rates, labels)
        session.optimizer.zero_grad()
        session.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        sums.add(loss, rates.detach(), labels)

    return gradients


def layer_by_layer(session: "Session") -> str | None:
    """Why a step goes layer by layer; None: it is one graph of the device or one compiled loop.

    A model that proves impossible to capture goes layer by layer all the same; see `captured`.
    """
    if not session.whole_step:
        return "--no-graph"
    if session.world.size > 1 and session.device.type != "cpu":
        return f"{session.world.size} processes take it together"
    if session.device.type in GRAPHS:
        return "somebody listens to its layers" if listened_to(session.model) else None
    if session.precision.dtype is not None:
        return "mixed precision"
    if session.device.type != "cpu":
        return f"on {session.device.type}"
    named = session.model.named_modules()
    layers = {name: m for name, m in named if isinstance(m, SequenceModule)}
    if not layers:
        return "it has no spiking layers"
    for name, layer in layers.items():
        if resolve(layer.backend, session.device) != "numba":
            return f"{name} runs in torch"
    from .compiled_step import refusal

    return refusal(session.model)


def evaluation(session: "Session", loader: Loader) -> tuple[Step, Sums]:
    """An evaluation's step and its sums, begun anew.

    What every epoch evaluates on keeps its step: one that is a graph serves all passes.
    """
    if loader not in (session.val, session.test):
        sums = Sums(session.device)
        return evaluation_step(session, loader, sums), sums
    if loader not in session.evaluations:
        sums = Sums(session.device)
        step = evaluation_step(session, loader, sums)
        session.evaluations[loader] = _evaluating_whole(session, step), sums
    step, sums = session.evaluations[loader]
    sums.reset()
    return step, sums


def _evaluating_whole(session: "Session", step: Step) -> Step:
    """The step as a graph, where it can be one and while nobody has to see every batch."""
    if session.device.type not in GRAPHS or not session.whole_step or session.world.size > 1:
        return step
    whole = _captured(session, step, "an evaluation")

    def chosen(selection: Selection) -> None:
        (step if listened_to(session.model) else whole)(selection)

    return chosen


def evaluation_step(session: "Session", loader: Loader, sums: Sums) -> Step:
    """The function that adds a batch of `loader` to `sums` and learns nothing; same autocast."""

    def step(selection: Selection) -> None:
        with torch.inference_mode(), session.precision.autocast():
            x, labels = loader.take(selection)
            rates = session.model(x)
            sums.add(rate_loss(rates, labels), rates, labels)

    return step
