"""The loops of `loops` as functions of tensors, and their gradients, written by hand, for autograd.

Tensors have one float dtype, the state's shape is that of x at one step, and gradients can be
taken once. `fire` and `fire_recurrently` also give the potential before the reset, h.
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...surrogate import ATan, PiecewiseQuadratic, SoftSign, Surrogate
from . import loops
from .loops import Cell

SLOPES: dict[type, int] = {  # of any other surrogate `slope` is called, for all steps at once
    ATan: loops.ATAN,
    SoftSign: loops.SOFT_SIGN,
    PiecewiseQuadratic: loops.PIECEWISE_QUADRATIC,
}
GRAIN = 65536  # multiplications that are worth one more thread


def fire(x: Tensor, v: Tensor, cell: Cell, keep_h: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run neurons along x [T, ...] from v [...] -> (s, h, v), without a gradient.

    h is [T, ...] where it is kept, else [1, ...] and only the last step's.
    """
    s, h, v = torch.empty_like(x), _potentials(x, keep_h), v.clone()
    loops.neuron(_threads(x.numel()), _lanes(x), _row(v), _lanes(s), _lanes(h), cell)
    return s, h, v


def fire_recurrently(
    i: Tensor, feedback: Tensor, y: Tensor, v: Tensor, cell: Cell, keep_h: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`fire` on i [T, ..., F] + feedback [F, F] y[t-1], from y and v -> (s, h, y, v)."""
    s, h, y, v = torch.empty_like(i), _potentials(i, keep_h), y.clone(), v.clone()
    loops.recurrent(
        _threads(i.numel() * i.shape[-1]),
        _samples(i),
        feedback.contiguous().numpy(),
        _rows(y),
        _rows(v),
        _samples(s),
        _samples(h),
        cell,
    )
    return s, h, y, v


def filtered(x: Tensor, y: Tensor, k: float) -> tuple[Tensor, Tensor]:
    """Run the synapse filter along x [T, ...] from y [...] -> (y_seq, y), without a gradient."""
    y_seq = torch.empty_like(x)
    loops.synapse(_threads(x.numel()), _lanes(x), _row(y), _lanes(y_seq), k)
    return y_seq, y_seq[-1].clone()


class Fire(torch.autograd.Function):
    """`fire`, all of h: (x, v) -> (s, h, v)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v: Tensor, cell: Cell, surrogate: Surrogate
    ) -> tuple[Tensor, Tensor, Tensor]:
        s, h, v = fire(x.detach(), v.detach(), cell, keep_h=True)
        ctx.save_for_backward(h)
        ctx.mark_non_differentiable(h)
        ctx.cell, ctx.surrogate = cell, surrogate
        ctx.set_materialize_grads(False)
        return s, h, v

    @staticmethod
    def backward(
        ctx: Any, grad_s: Tensor | None, _: None, grad_v: Tensor | None
    ) -> tuple[Tensor, Tensor, None, None]:
        _refuse_second_derivatives()
        (h,) = ctx.saved_tensors
        grad_s, grad_v = _given(grad_s, h), _copied(grad_v, h[0])
        grad_x = _slopes(h, ctx.cell, ctx.surrogate)
        loops.neuron_backward(
            _threads(h.numel()), _lanes(grad_s), _row(grad_v), _lanes(h), _lanes(grad_x), ctx.cell
        )
        return grad_x, grad_v, None, None


class FireRecurrently(torch.autograd.Function):
    """`fire_recurrently`, all of h: (i, feedback, y, v) -> (s, h, y, v)."""

    @staticmethod
    def forward(
        ctx: Any,
        i: Tensor,
        feedback: Tensor,
        y: Tensor,
        v: Tensor,
        cell: Cell,
        surrogate: Surrogate,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s, h, y_last, v_last = fire_recurrently(
            i.detach(), feedback.detach(), y.detach(), v.detach(), cell, keep_h=True
        )
        ctx.save_for_backward(h, feedback, y, s)
        ctx.mark_non_differentiable(h)
        ctx.cell, ctx.surrogate = cell, surrogate
        ctx.set_materialize_grads(False)
        return s, h, y_last, v_last

    @staticmethod
    def backward(
        ctx: Any, grad_s: Tensor | None, _: None, grad_y: Tensor | None, grad_v: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        _refuse_second_derivatives()
        h, feedback, y, s = ctx.saved_tensors
        grad_s, grad_y, grad_v = _given(grad_s, h), _copied(grad_y, h[0]), _copied(grad_v, h[0])
        grad_i = _slopes(h, ctx.cell, ctx.surrogate)
        loops.recurrent_backward(
            _threads(h.numel() * h.shape[-1]),
            _samples(grad_s),
            feedback.t().contiguous().numpy(),
            _rows(grad_y),
            _rows(grad_v),
            _samples(h),
            _samples(grad_i),
            ctx.cell,
        )
        features = h.shape[-1]
        before, after = grad_i[:1].reshape(-1, features), grad_i[1:].reshape(-1, features)
        with torch.autocast("cpu", enabled=False):
            grad_feedback = after.t() @ s[:-1].reshape(-1, features)
            grad_feedback.addmm_(before.t(), y.reshape(-1, features))
        return grad_i, grad_feedback, grad_y, grad_v, None, None


class Filter(torch.autograd.Function):
    """`filtered`: (x, y, k) -> (y_seq, y).

    y_seq is kept for the backward pass, not copied: edited in place before that, autograd refuses.
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
        _refuse_second_derivatives()
        x, y, y_seq = ctx.saved_tensors
        grad, grad_y = _given(grad, x), _copied(grad_y, y)
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


def _refuse_second_derivatives() -> None:
    """Gradients are computed with a graph of their own only under create_graph=True."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "backend 'numba' has no second derivatives (create_graph=True); choose backend torch"
        )


def number(k: Tensor | float) -> float:
    """A setting that may be learnt, as the loops take it; no gradient."""
    return float(k.item() if isinstance(k, Tensor) else k)


def _threads(multiplications: int) -> int:
    """How many of torch's threads the work is worth."""
    return min(torch.get_num_threads(), 1 + multiplications // GRAIN)


def _potentials(x: Tensor, keep_h: bool) -> Tensor:
    """Space for h: every step's, or one step's that all write to."""
    return torch.empty_like(x if keep_h else x[:1])


def _slopes(h: Tensor, cell: Cell, surrogate: Surrogate) -> Tensor:
    """Space for the gradient that the loops fill; it holds the slopes where they are given."""
    space = torch.empty_like(h)
    return (
        space.copy_(surrogate.slope(h - cell.v_threshold)) if cell.slope == loops.GIVEN else space
    )


def _given(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient to read: zero where nothing depends on the output."""
    return torch.zeros_like(like) if gradient is None else gradient.contiguous()


def _copied(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient to go on from, in place."""
    if gradient is None:
        return torch.zeros_like(like)
    return gradient.clone(memory_format=torch.contiguous_format)


def _lanes(x_seq: Tensor) -> NDArray[Any]:
    """[T, ...] as the loops' [T, L]; shares memory."""
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
