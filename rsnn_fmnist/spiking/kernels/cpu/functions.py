"""The loops of `loops` as functions of tensors, with gradients for autograd.

All tensors of a call have one float dtype, and states have the shape of x at one step. There are
first derivatives only. `fire` and `fire_recurrently` also return the potential before the reset, h.
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...neuron import NeuronSettings
from ...surrogate import ATan, PiecewiseQuadratic, SoftSign
from ..calls import refuse_batched_gradients
from . import loops, rows
from .rows import NeuronConstants

TAKES_HALF = False  # x and s are float32 or float64
SLOPES: dict[type, int] = {  # any other surrogate's `slope` is called, once for all steps
    ATan: rows.ATAN,
    SoftSign: rows.SOFT_SIGN,
    PiecewiseQuadratic: rows.PIECEWISE_QUADRATIC,
}
GRAIN = 65536  # multiplications that are worth one more thread


def constants_of(neuron: NeuronSettings) -> NeuronConstants:
    """A layer's settings as the loops take them."""
    return NeuronConstants(
        leaky=neuron.tau is not None,
        tau=float(1 if neuron.tau is None else neuron.tau),
        v_threshold=float(neuron.v_threshold),
        v_rest=float(neuron.v_rest),
        hard=neuron.v_reset is not None,
        attached=not neuron.detach_reset,
        slope=SLOPES.get(type(neuron.surrogate), rows.GIVEN),
        alpha=float(neuron.surrogate.alpha),
    )


def fire(
    x: Tensor, v: Tensor, neuron: NeuronSettings, keep_h: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run neurons along x [T, ...] from v [...] -> (s, h, last v), without a gradient.

    h is [T, ...] if it is kept, else [1, ...], that of the last step.
    """
    s, h, v = torch.empty_like(x), _potentials(x, keep_h), v.clone()
    loops.neuron(
        _threads(x.numel()), _lanes(x), _row(v), _lanes(s), _lanes(h), constants_of(neuron)
    )
    return s, h, v


def fire_recurrently(
    i: Tensor, for_y: Tensor, y: Tensor, v: Tensor, neuron: NeuronSettings, keep_h: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`fire` on i [T, ..., F] + for_y y[t-1], for_y [F, F] -> (s, h, last y, last v)."""
    s, h, y, v = torch.empty_like(i), _potentials(i, keep_h), y.clone(), v.clone()
    loops.recurrent(
        _threads(i.numel() * i.shape[-1]),
        _samples(i),
        for_y.contiguous().numpy(),
        _rows(y),
        _rows(v),
        _samples(s),
        _samples(h),
        constants_of(neuron),
    )
    return s, h, y, v


def filtered(x: Tensor, y: Tensor, k: float) -> tuple[Tensor, Tensor]:
    """Run the synapse filter along x [T, ...] from y [...] -> (y_seq, last y), no gradient."""
    y_seq = torch.empty_like(x)
    loops.synapse(_threads(x.numel()), _lanes(x), _row(y), _lanes(y_seq), k)
    return y_seq, y_seq[-1].clone()


class Fire(torch.autograd.Function):
    """`fire` with h of all steps: (x, v) -> (s, h, last v); h has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v: Tensor, neuron: NeuronSettings
    ) -> tuple[Tensor, Tensor, Tensor]:
        s, h, v = fire(x.detach(), v.detach(), neuron, keep_h=True)
        ctx.save_for_backward(h)
        ctx.mark_non_differentiable(h)
        ctx.neuron = neuron
        ctx.set_materialize_grads(False)
        return s, h, v

    @staticmethod
    def backward(
        ctx: Any, grad_s: Tensor | None, _: None, grad_v: Tensor | None
    ) -> tuple[Tensor, Tensor, None]:
        _refuse_other_derivatives(grad_s, grad_v)
        (h,) = ctx.saved_tensors
        grad_s, grad_v = _contiguous(grad_s, h), _copied(grad_v, h[0])
        constants = constants_of(ctx.neuron)
        grad_x = _slopes(h, ctx.neuron)
        loops.neuron_backward(
            _threads(h.numel()), _lanes(grad_s), _row(grad_v), _lanes(h), _lanes(grad_x), constants
        )
        return grad_x, grad_v, None


class FireRecurrently(torch.autograd.Function):
    """`fire_recurrently` with h of all steps: (i, for_y, y, v) -> (s, h, last y, last v)."""

    @staticmethod
    def forward(
        ctx: Any, i: Tensor, for_y: Tensor, y: Tensor, v: Tensor, neuron: NeuronSettings
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s, h, y_last, v_last = fire_recurrently(
            i.detach(), for_y.detach(), y.detach(), v.detach(), neuron, keep_h=True
        )
        ctx.save_for_backward(h, for_y, y, s)
        ctx.mark_non_differentiable(h)
        ctx.neuron = neuron
        ctx.set_materialize_grads(False)
        return s, h, y_last, v_last

    @staticmethod
    def backward(
        ctx: Any, grad_s: Tensor | None, _: None, grad_y: Tensor | None, grad_v: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        _refuse_other_derivatives(grad_s, grad_y, grad_v)
        h, for_y, y, s = ctx.saved_tensors
        grad_s = _contiguous(grad_s, h)
        grad_y, grad_v = _copied(grad_y, h[0]), _copied(grad_v, h[0])
        grad_i = _slopes(h, ctx.neuron)
        loops.recurrent_backward(
            _threads(h.numel() * h.shape[-1]),
            _samples(grad_s),
            for_y.t().contiguous().numpy(),
            _rows(grad_y),
            _rows(grad_v),
            _samples(h),
            _samples(grad_i),
            constants_of(ctx.neuron),
        )
        features = h.shape[-1]
        before, after = grad_i[:1].reshape(-1, features), grad_i[1:].reshape(-1, features)
        with torch.autocast("cpu", enabled=False):
            grad_for_y = after.t() @ s[:-1].reshape(-1, features)
            grad_for_y.addmm_(before.t(), y.reshape(-1, features))
        return grad_i, grad_for_y, grad_y, grad_v, None


class Filter(torch.autograd.Function):
    """`filtered`: (x, y, k) -> (y_seq, last y).

    y_seq is saved for the backward pass without a copy; if it is edited in place before that,
    autograd raises an error.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, k: Tensor | float) -> tuple[Tensor, Tensor]:
        ctx.k = number(k)
        ctx.k_dtype = k.dtype if isinstance(k, Tensor) else None
        y_seq, y_last = filtered(x.detach(), y.detach(), ctx.k)
        ctx.save_for_backward(x, y, y_seq)
        ctx.set_materialize_grads(False)
        return y_seq, y_last

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_y: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        _refuse_other_derivatives(grad, grad_y)
        x, y, y_seq = ctx.saved_tensors
        grad, grad_y = _contiguous(grad, x), _copied(grad_y, y)
        grad_x, grad_k = torch.empty_like(x), torch.zeros_like(y)
        loops.synapse_backward(
            _threads(x.numel()),
            _lanes(grad),
            _row(grad_y),
            _lanes(x),
            _row(y),
            _lanes(y_seq),
            _lanes(grad_x),
            _row(grad_k),
            ctx.k,
        )
        if ctx.k_dtype is None:
            return grad_x, grad_y, None
        # numpy's order of summation is the same for any number of threads, torch's is not
        total = grad_k.numpy().sum(dtype="float64")
        return grad_x, grad_y, torch.tensor(total, dtype=ctx.k_dtype)


def _refuse_other_derivatives(*gradients: Tensor | None) -> None:
    """Raise if autograd records this backward pass (create_graph=True) or batches its gradients."""
    refuse_batched_gradients("numba", *gradients)
    if torch.is_grad_enabled():
        raise RuntimeError(
            "backend 'numba' has no second derivatives (create_graph=True); choose backend torch"
        )


def number(k: Tensor | float) -> float:
    """k as the loops take it, without a gradient."""
    return float(k.item() if isinstance(k, Tensor) else k)


def _threads(multiplications: int) -> int:
    """How many of torch's threads to use."""
    return min(torch.get_num_threads(), 1 + multiplications // GRAIN)


def _potentials(x: Tensor, keep_h: bool) -> Tensor:
    """Space for h of all steps, or for one step, which each step overwrites."""
    return torch.empty_like(x if keep_h else x[:1])


def _slopes(h: Tensor, neuron: NeuronSettings) -> Tensor:
    """Space for the gradient that the loops fill; holds the slopes that they do not know."""
    space = torch.empty_like(h)
    if type(neuron.surrogate) not in SLOPES:
        space.copy_(neuron.surrogate.slope(h - neuron.v_threshold))
    return space


def _contiguous(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient to read; zero if nothing depends on the output."""
    return torch.zeros_like(like) if gradient is None else gradient.contiguous()


def _copied(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient for the loops to change in place; zero if nothing depends on the output."""
    if gradient is None:
        return torch.zeros_like(like)
    return gradient.clone(memory_format=torch.contiguous_format)


def _lanes(x_seq: Tensor) -> NDArray[Any]:
    """[T, ...] as [T, L]; shares memory."""
    return x_seq.numpy().reshape(x_seq.shape[0], -1)


def _row(x: Tensor) -> NDArray[Any]:
    """[...] as [L]; shares memory."""
    return x.numpy().reshape(-1)


def _rows(x: Tensor) -> NDArray[Any]:
    """[..., F] as [N, F]; shares memory."""
    return x.numpy().reshape(-1, x.shape[-1])


def _samples(x_seq: Tensor) -> NDArray[Any]:
    """[T, ..., F] as [T, N, F]; shares memory."""
    return x_seq.numpy().reshape(x_seq.shape[0], -1, x_seq.shape[-1])
