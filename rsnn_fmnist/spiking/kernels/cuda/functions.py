"""The CUDA kernels as functions of tensors, with gradients for autograd.

All tensors of a call are contiguous and on one device. Inputs and outputs have their own dtype;
states and potentials have the dtype to compute in, float64 or float32. There are first derivatives
only. `fire` and `fire_recurrently` also return the potential before the reset, h.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...neuron import NeuronSettings
from ...surrogate import ATan, Erf, PiecewiseQuadratic, Sigmoid, SoftSign
from ..calls import refuse_batched_gradients
from . import launch
from .launch import Limits

TAKES_HALF = True  # x and s may be float16 or bfloat16
GIVEN = 0  # in `enum Slope` of neuron.cuh; any other surrogate's `slope` is called, for all steps
SLOPES: dict[type, tuple[int, Callable[[float], float]]] = {  # value of Slope; alpha -> scale
    ATan: (1, lambda alpha: math.pi / 2 * alpha),
    Sigmoid: (2, lambda alpha: 1.0),
    Erf: (3, lambda alpha: alpha / math.sqrt(math.pi)),
    SoftSign: (4, lambda alpha: 1.0),
    PiecewiseQuadratic: (5, lambda alpha: alpha**2),
}
THREADS = 64  # of a block; few, so that even a small layer occupies many multiprocessors
MOST_FEATURES = 1024  # of the recurrent container: CUDA's limit on the threads of a block


class NeuronConstants(NamedTuple):
    """`neuron.NeuronSettings` as the kernels take them: the struct of this name in neuron.cuh."""

    tau: float
    v_threshold: float
    v_rest: float
    alpha: float
    scale: float
    leaky: bool
    hard: bool
    attached: bool
    slope: int


class Plan(NamedTuple):
    """How recurrent.cu is launched."""

    shape: str  # one of launch.SHAPES
    grid: int
    block: tuple[int, int]
    shared_bytes: int


def constants_of(neuron: NeuronSettings) -> NeuronConstants:
    """A layer's settings as the kernels take them."""
    slope, scale = SLOPES.get(type(neuron.surrogate), (GIVEN, float))
    return NeuronConstants(
        tau=1.0 if neuron.tau is None else float(neuron.tau),
        v_threshold=float(neuron.v_threshold),
        v_rest=float(neuron.v_rest),
        alpha=float(neuron.surrogate.alpha),
        scale=scale(neuron.surrogate.alpha),
        leaky=neuron.tau is not None,
        hard=neuron.v_reset is not None,
        attached=not neuron.detach_reset,
        slope=slope,
    )


def fire(
    x: Tensor, v: Tensor, neuron: NeuronSettings, keep_h: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Run neurons along x [T, ...] from v [...] -> (s, h or None, last v), without a gradient."""
    s, v_last = torch.empty_like(x), torch.empty_like(v)
    h = torch.empty_like(x, dtype=v.dtype) if keep_h else None
    constants = packed(constants_of(neuron), v.dtype)
    _launch_lanes("neuron_forward<{}>", x, 0, x, v, s, h, v_last, *_lanes(x), constants)
    return s, h, v_last


def fire_recurrently(
    i: Tensor, for_y: Tensor, y: Tensor, v: Tensor, neuron: NeuronSettings, keep_h: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """`fire` on i [T, ..., F] + for_y y[t-1], for_y [F, F] -> (s, h or None, last y, last v).

    for_y may be a view of any strides; y has the shape and dtype of v.
    """
    s, y_last, v_last = torch.empty_like(i), torch.empty_like(i[0]), torch.empty_like(v)
    h = torch.empty_like(i, dtype=v.dtype) if keep_h else None
    plan = forward_plan(i.shape[-1], _samples(i), v.dtype, launch.limits(i.device))
    if plan.shape.endswith("false"):  # not staged: stride_f = 1, so that threads read whole lines
        for_y = for_y.t().contiguous().t()
    launch.launch(
        f"recurrent_forward<{{}}, {plan.shape}>",
        i.dtype,
        *plan[1:],
        i,
        *_matrix(for_y),
        y,
        v,
        s,
        h,
        y_last,
        v_last,
        np.int32(_samples(i)),
        np.int32(i.shape[0]),
        packed(constants_of(neuron), v.dtype),
    )
    return s, h, y_last, v_last


def filtered(
    x: Tensor, y: Tensor, k: Tensor | float, keep_trace: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Run the synapse filter along x [T, ...] from y [...] -> (y_seq, trace or None, last y).

    Without a gradient. trace is y_seq before it is rounded to x's dtype; y_seq itself if that is
    y's dtype too. k is a number, or one value on the device in y's dtype.
    """
    y_seq, y_last = torch.empty_like(x), torch.empty_like(y)
    rounded = x.dtype != y.dtype
    trace = torch.empty_like(x, dtype=y.dtype) if keep_trace and rounded else None
    _launch_lanes(
        "filter_forward<{}>", x, 0, x, y, *_decay(k, y.dtype), y_seq, trace, y_last, *_lanes(x)
    )
    return y_seq, (trace if rounded else y_seq), y_last


class Fire(torch.autograd.Function):
    """`fire`: (x, v) -> (s, h, last v); h has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v: Tensor, neuron: NeuronSettings
    ) -> tuple[Tensor, Tensor, Tensor]:
        s, h, v = fire(x, v, neuron, keep_h=True)
        assert h is not None
        ctx.save_for_backward(h)
        ctx.mark_non_differentiable(h)
        ctx.neuron, ctx.dtype = neuron, x.dtype
        ctx.set_materialize_grads(False)
        return s, h, v

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_s: Tensor | None, _: None, grad_v: Tensor | None
    ) -> tuple[Tensor, Tensor | None, None]:
        refuse_batched_gradients("cupy", grad_s, grad_v)
        (h,) = ctx.saved_tensors
        grad_x = torch.empty_like(h, dtype=ctx.dtype)
        grad_v_first = torch.empty_like(h[0]) if ctx.needs_input_grad[1] else None
        _launch_lanes(
            "neuron_backward<{}>",
            grad_x,
            0,
            _contiguous(grad_s),
            _contiguous(grad_v),
            h,
            _slopes(h, ctx.neuron),
            grad_x,
            grad_v_first,
            *_lanes(h),
            packed(constants_of(ctx.neuron), h.dtype),
        )
        return grad_x, grad_v_first, None


class FireRecurrently(torch.autograd.Function):
    """`fire_recurrently`: (i, for_y, y, v) -> (s, h, last y, last v); h has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, i: Tensor, for_y: Tensor, y: Tensor, v: Tensor, neuron: NeuronSettings
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s, h, y_last, v_last = fire_recurrently(i, for_y, y, v, neuron, keep_h=True)
        assert h is not None
        ctx.save_for_backward(h, for_y, y, s)
        ctx.mark_non_differentiable(h)
        ctx.neuron = neuron
        ctx.set_materialize_grads(False)
        return s, h, y_last, v_last

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_s: Tensor | None, _: None, grad_y: Tensor | None, grad_v: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, None]:
        refuse_batched_gradients("cupy", grad_s, grad_y, grad_v)
        h, for_y, y, s = ctx.saved_tensors
        grad_i = torch.empty_like(s)
        grad_y_first = torch.empty_like(y) if ctx.needs_input_grad[2] else None
        grad_v_first = torch.empty_like(y) if ctx.needs_input_grad[3] else None
        plan = backward_plan(h.shape[-1], _samples(h), h.dtype, launch.limits(h.device))
        launch.launch(
            f"recurrent_backward<{{}}, {plan.shape}>",
            s.dtype,
            *plan[1:],
            _contiguous(grad_s),
            _contiguous(grad_y),
            _contiguous(grad_v),
            *_matrix(for_y),
            h,
            _slopes(h, ctx.neuron),
            grad_i,
            grad_y_first,
            grad_v_first,
            np.int32(_samples(h)),
            np.int32(h.shape[0]),
            packed(constants_of(ctx.neuron), h.dtype),
        )
        grad_for_y = _products(grad_i, s, y) if ctx.needs_input_grad[1] else None
        return grad_i, grad_for_y, grad_y_first, grad_v_first, None


class Filter(torch.autograd.Function):
    """`filtered`: (x, y, k) -> (y_seq, last y)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, k: Tensor | float) -> tuple[Tensor, Tensor]:
        y_seq, trace, y_last = filtered(x, y, k, keep_trace=True)
        ctx.fixed = None if isinstance(k, Tensor) else k
        ctx.save_for_backward(x, y, trace, k if isinstance(k, Tensor) else None)
        ctx.set_materialize_grads(False)
        return y_seq, y_last

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, grad_last: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        refuse_batched_gradients("cupy", grad, grad_last)
        x, y, trace, k = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grad_y = torch.empty_like(y) if ctx.needs_input_grad[1] else None
        sums = y.new_empty(_blocks(x), dtype=torch.float64) if ctx.needs_input_grad[2] else None
        _launch_lanes(
            "filter_backward<{}>",
            x,
            THREADS * 8,  # block_sum adds in float64
            _contiguous(grad),
            _contiguous(grad_last),
            x,
            y,
            trace,
            *_decay(ctx.fixed if k is None else k, y.dtype),
            grad_x,
            grad_y,
            sums,
            *_lanes(x),
        )
        return grad_x, grad_y, None if sums is None else sums.sum().to(y.dtype)


def forward_plan(features: int, samples: int, compute: torch.dtype, limits: Limits) -> Plan:
    """The launch of recurrent_forward.

    A block's shared memory holds the spikes of two steps, and the weights if they fit.
    """
    weights = features * (features | 1) * compute.itemsize
    return _plan(features, samples, weights, 2 * 8 * -(-features // 8), 0, limits)


def backward_plan(features: int, samples: int, compute: torch.dtype, limits: Limits) -> Plan:
    """The launch of recurrent_backward.

    A block's shared memory holds the gradients of two steps, and the weights if they fit.
    """
    weights = features * features * compute.itemsize
    return _plan(features, samples, weights, 0, 2 * features * compute.itemsize, limits)


def _plan(
    features: int, samples: int, weights: int, of_row: int, of_sample: int, limits: Limits
) -> Plan:
    """Stage the weights in shared memory if a block can hold them.

    A row of a block has 4 samples, so that each weight is read once for all of them, if that leaves
    a block for every multiprocessor or the weights are not staged; else it has 1.

    Args:
        weights: bytes of all weights.
        of_row, of_sample: further bytes of a row of a block, and of each of its samples.
    """
    rows = max(1, THREADS // max(1, features))

    def shared_bytes(in_row: int) -> int:
        return rows * (of_row + in_row * of_sample)

    in_row = 4 if samples >= 4 * rows * limits.multiprocessors else 1
    staged = weights + shared_bytes(in_row) <= limits.shared_bytes
    in_row = in_row if staged else 4
    return Plan(
        f"{in_row}, {str(staged).lower()}",
        -(-samples // (rows * in_row)),
        (features, rows),
        shared_bytes(in_row) + weights * staged,
    )


@lru_cache(maxsize=64)
def packed(constants: NeuronConstants, compute: torch.dtype) -> np.ndarray:
    """The constants as a struct to pass by value, its numbers in the dtype to compute in."""
    number = np.float64 if compute == torch.float64 else np.float32
    fields = [
        (name, number if kind is float else np.int32)
        for name, kind in NeuronConstants.__annotations__.items()
    ]
    return np.array([tuple(constants)], dtype=np.dtype(fields, align=True))


def _launch_lanes(
    kernel: str, like: Tensor, shared_bytes: int, *arguments: launch.Argument
) -> None:
    """Launch a kernel with a thread for each lane of `like` [T, ...]."""
    launch.launch(kernel, like.dtype, _blocks(like), (THREADS, 1), shared_bytes, *arguments)


def _blocks(x_seq: Tensor) -> int:
    return -(-x_seq[0].numel() // THREADS)


def _lanes(x_seq: Tensor) -> tuple[np.int64, np.int32]:
    """The arguments lanes, steps."""
    return np.int64(x_seq[0].numel()), np.int32(x_seq.shape[0])


def _samples(x_seq: Tensor) -> int:
    """N of [T, ..., F]: the axes between T and F as one."""
    return math.prod(x_seq.shape[1:-1])


def _matrix(weight: Tensor) -> tuple[Tensor, np.int64, np.int64]:
    """The arguments weight, stride_f, stride_j."""
    return weight, np.int64(weight.stride(0)), np.int64(weight.stride(1))


def _decay(k: Tensor | float, compute: torch.dtype) -> tuple[Tensor | None, np.generic]:
    """The arguments k_learnt, k_fixed."""
    number = np.float64 if compute == torch.float64 else np.float32
    return (k, number(0)) if isinstance(k, Tensor) else (None, number(k))


def _slopes(h: Tensor, neuron: NeuronSettings) -> Tensor | None:
    """The surrogate's slopes at all steps; None if the kernels compute them."""
    if type(neuron.surrogate) in SLOPES:
        return None
    return neuron.surrogate.slope(h - neuron.v_threshold).contiguous()


def _contiguous(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.contiguous()


def _products(grad_i: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """The gradient of for_y, [F, F]: grad_i[t] y[t-1]^T, summed over steps and samples."""
    features = s.shape[-1]
    with torch.autocast(s.device.type, enabled=False):
        total = grad_i[0].reshape(-1, features).t() @ y.to(s.dtype).reshape(-1, features)
        total.addmm_(grad_i[1:].reshape(-1, features).t(), s[:-1].reshape(-1, features))
    return total.to(y.dtype)
