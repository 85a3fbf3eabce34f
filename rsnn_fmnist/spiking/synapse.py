"""SynapseFilter: a stateful synapse, a leaky trace of the spikes that have passed through it.

The equation, forward and backward, is that of `filter_step`. `filter_sequence` calls it step by
step and is the reference that every kernel is compared with. A layer has one time constant; one per
channel is left out.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from . import backend
from .sequence import Reference, SequenceModule, as_float, at_rest, first_step, unroll
from .settings import flag, number


def filter_step(x: Tensor, y: Tensor, *, k: Tensor | float) -> tuple[Tensor, Tensor]:
    """Advance the trace by one step.

    Forward:
        y_next = y - (1 - x) y k + x        decay where there is no spike, then add the input

    Backward:
        dy_next/dy = 1 - (1 - x) k
        dy_next/dx = 1 + y k
        dy_next/dk = -(1 - x) y             summed over steps, samples and features
    and, where it is learnt, k = sigmoid(w) and dk/dw = k (1 - k).

    A spike (x = 1) suspends the decay, so y grows without bound if there is a spike at every step.

    Args:
        x, y: input and trace, [N, ...]; y in float32 at least.
        k: the decay of one step, 1 / tau, in (0, 1); a number or a scalar tensor.
    Returns:
        y_next twice: the output in x's dtype, and the state for the next step in y's.
    Source: Diehl and Cook 2015, doi:10.3389/fncom.2015.00099 (exponential trace); the suspended
    decay is that of SpikingJelly's LowPassSynapse.
    """
    y_next = y - (1 - x) * y * k + x
    return y_next.to(x.dtype), y_next


def filter_sequence(x_seq: Tensor, y: Tensor, *, k: Tensor | float) -> tuple[Tensor, Tensor]:
    """Run `filter_step` along x_seq [T, N, ...] from y [N, ...] -> (y_seq [T, N, ...], last y).

    Raises:
        ValueError: x_seq has no steps.
    """
    return unroll(partial(filter_step, k=k), x_seq, y)


class SynapseFilter(SequenceModule):
    """A low-pass filter over spikes, see `filter_step`; the state is the trace y, 0 at rest.

    Args:
        tau: time constant in steps, > 1.
        learnable: whether to learn it, by the scalar parameter w, -ln(tau - 1) at the start.
    Raises:
        TypeError: tau is not a number, or learnable not a bool.
        ValueError: tau is not above 1, or not finite.
    """

    observer: Callable[[Tensor], None] | None = None  # called with y of n steps, [n, N, ...]

    def __init__(self, tau: float = 100.0, learnable: bool = False) -> None:
        super().__init__()
        tau = number("tau", tau)
        if not (math.isfinite(tau) and tau > 1):
            raise ValueError(f"tau is {tau}; a synapse's time constant is finite and above 1")
        self._fixed_k = 1 / tau
        if flag("learnable", learnable):
            self.w = nn.Parameter(torch.tensor(-math.log(tau - 1)))

    @property
    def learnable(self) -> bool:
        """Whether the time constant is the parameter w; to keep it as it is, freeze w."""
        return hasattr(self, "w")

    def decay(self) -> Tensor | float:
        """k = 1 / tau: a number or, where it is learnt, a scalar tensor with a gradient to w.

        Raises:
            ValueError: w was replaced by more than one value.
        """
        if not self.learnable:
            return self._fixed_k
        if self.w.dim() > 0:
            raise ValueError(
                f"w has shape {list(self.w.shape)}; a SynapseFilter has one time constant, so w is "
                "a scalar"
            )
        return torch.sigmoid(self.w)

    @property
    def tau(self) -> float:
        """The present time constant in steps; infinite where k is so small that it is 0."""
        with torch.no_grad():
            k = float(self.decay())
        return 1 / k if k else math.inf

    def reference(self) -> Reference:
        return filter_sequence, {"k": self.decay()}

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = as_float(x)
        y = at_rest(x) if state is None else state
        y, state = filter_step(x, y, k=self.decay())
        if self.observer is not None:
            self.observer(y.detach()[None])
        return y, state

    def sequence(self, x_seq: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x_seq = as_float(x_seq)
        reference, settings = self.reference()
        y = at_rest(first_step(x_seq)) if state is None else state
        run = backend.implementation(reference, x_seq, self.backend, **settings)
        y_seq, y = run(x_seq, y, **settings)
        if self.observer is not None:
            self.observer(y_seq.detach())
        return y_seq, y

    def extra_repr(self) -> str:
        return f"tau={self.tau:g}, learnable={self.learnable}"
