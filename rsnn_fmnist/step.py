"""One optimisation step, and the sums that a pass over the pictures leaves on the device.

Sums stay on the device, so that no batch waits for a number; they are read once an epoch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional
from torch.optim import Optimizer


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
        self.totals[1:3] += hits
        self.totals[3] += len(labels)

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


Step = Callable[[Tensor, Tensor], None]  # pictures [N, H, W], labels [N]


def training_step(
    model: nn.Module, optimizer: Optimizer, scaler: GradScaler, precision: Precision, sums: Sums
) -> Step:
    """The function that takes one optimisation step on a batch and adds it to `sums`."""

    def step(x: Tensor, labels: Tensor) -> None:
        with precision.autocast():
            rates = model(x)
        loss = rate_loss(rates, labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        sums.add(loss, rates.detach(), labels)

    return step


def evaluation_step(model: nn.Module, precision: Precision, sums: Sums) -> Step:
    """The function that adds a batch to `sums` and learns nothing; under the same autocast."""

    def step(x: Tensor, labels: Tensor) -> None:
        with torch.inference_mode(), precision.autocast():
            rates = model(x)
            sums.add(rate_loss(rates, labels), rates, labels)

    return step
