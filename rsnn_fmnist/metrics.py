"""The loss, the ranks behind the accuracies, and sums that stay on the device.

No batch waits for a number: sums are read once an epoch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def rate_loss(rates: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error between rates [N, classes] and one-hot labels [N], in float32 at least."""
    rates = rates.to(torch.promote_types(rates.dtype, torch.float32))
    classes = torch.arange(rates.shape[1], device=rates.device)
    one_hot = (labels[:, None] == classes).to(rates.dtype)
    return functional.mse_loss(rates, one_hot)


def ranks(rates: Tensor, labels: Tensor) -> Tensor:
    """The number of classes j ranked before the label y, [N]: r_j > r_y, or r_j = r_y and j < y.

    Rates take few values, so ties are common; the lower class wins. A class whose rate is NaN ranks
    before the label, and so does every class where the label's rate is NaN.
    """
    r_y = rates.gather(1, labels[:, None])
    j = torch.arange(rates.shape[1], device=rates.device)
    behind = (rates < r_y) | ((rates == r_y) & (j > labels[:, None]))
    return rates.shape[1] - 1 - behind.sum(1)


class Sums:
    """Running sums over pictures, on the device: loss, hits at top 1, hits at top 5, pictures."""

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
        """Set all sums to 0, in place."""
        self.totals.zero_()

    def wait(self) -> None:
        """Block until the device has finished the work queued so far."""
        self.totals.tolist()

    def means(self) -> tuple[float, float, float]:
        """Mean loss, and top-1 and top-5 accuracy in percent; waits for the device."""
        loss, top1, top5, count = self.totals.tolist()
        return loss / count, 100 * top1 / count, 100 * top5 / count


def gradient_norm(model: nn.Module) -> float | None:
    """The L2 norm over all gradients of the last step; None before the first.

    With gradient scaling, that of the unscaled gradients, which the optimizer leaves behind.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients).item() if gradients else None
