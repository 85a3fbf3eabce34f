"""One step of neurons and of synapse filters on a row of lanes, and rounding; what kernels share.

A lane is one neuron of one sample. The equations, forward and backward, are those of the step
functions `neuron.if_step`, `neuron.lif_step` and `synapse.filter_step`, and of the surrogates'
`slope`. Their operations are done in the same order, without fused multiply-adds, so that a charge
close to the threshold is rounded, and fires, as in the reference.

Neurons work in place: a row holds a layer's input, then its charged potential h, and in the
backward pass the gradient of the input. So a row is loaded and stored once, and LLVM need not ask
whether two arrays overlap.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .openmp import inlined, inner

Array = NDArray[np.floating]

GIVEN, ATAN, SOFT_SIGN, PIECEWISE_QUADRATIC = range(4)  # values of NeuronConstants.slope


class NeuronConstants(NamedTuple):
    """`neuron.NeuronSettings` as the loops take them."""

    leaky: bool  # lif_step; else if_step
    tau: float
    v_threshold: float
    v_rest: float  # v_reset if the reset is hard, else 0
    hard: bool
    attached: bool  # a gradient passes through the reset
    slope: int  # which surrogate's; GIVEN: the slopes are passed to the call
    alpha: float


@inner
def flat(block: Array) -> Array:
    """A contiguous array as one row of lanes."""
    return block.reshape(block.size)


@inlined
def fire_row(h: Array, v: Array, s: Array, constants: NeuronConstants) -> None:
    """`if_step` or `lif_step`: h holds the input and becomes the charge; advances v, fills s."""
    real = h.dtype.type
    tau, v_rest = real(constants.tau), real(constants.v_rest)
    v_threshold = real(constants.v_threshold)
    for j in range(h.size):
        charged = v[j] + (h[j] - (v[j] - v_rest)) / tau if constants.leaky else v[j] + h[j]
        fires = charged >= v_threshold
        h[j] = charged
        s[j] = real(1) if fires else real(0)
        after = v_rest if constants.hard else charged - v_threshold
        v[j] = after if fires else charged


@inlined
def slope_row(h: Array, slope: Array, constants: NeuronConstants) -> None:
    """Fill `slope` with the surrogate's slopes at h - v_threshold, unless they were given."""
    real = h.dtype.type
    v_threshold, alpha = real(constants.v_threshold), real(constants.alpha)
    if constants.slope == ATAN:
        half, scale = real(constants.alpha / 2), real(np.pi / 2 * constants.alpha)
        for j in range(h.size):
            u = scale * (h[j] - v_threshold)
            slope[j] = half / (real(1) + u * u)
    elif constants.slope == SOFT_SIGN:
        for j in range(h.size):
            u = real(1) + abs(alpha * (h[j] - v_threshold))
            slope[j] = alpha / (real(2) * (u * u))
    elif constants.slope == PIECEWISE_QUADRATIC:
        for j in range(h.size):
            u = alpha - alpha * alpha * abs(h[j] - v_threshold)
            slope[j] = real(0) if u < 0 else u


@inlined
def fire_row_backward(
    grad_s: Array, grad_v: Array, h: Array, slope: Array, constants: NeuronConstants
) -> None:
    """One step backward. In place, grad_v becomes dL/dv from dL/dv_next, h becomes dL/di."""
    real = h.dtype.type
    v_threshold, v_rest = real(constants.v_threshold), real(constants.v_rest)
    to_input = real(1 / constants.tau) if constants.leaky else real(1)
    to_potential = real(1 - 1 / constants.tau) if constants.leaky else real(1)
    largest = np.finfo(h.dtype).max  # an infinite h times a slope of 0 would be NaN
    for j in range(h.size):
        # r, as in if_step: kept is 1 - s or 1, jump is v_reset - h or -v_threshold
        kept = real(0) if constants.hard and h[j] >= v_threshold else real(1)
        jump = v_rest - min(h[j], largest) if constants.hard else -v_threshold
        r = kept + jump * slope[j] if constants.attached else kept
        grad_h = grad_s[j] * slope[j] + grad_v[j] * r
        h[j] = grad_h * to_input
        grad_v[j] = grad_h * to_potential


@inlined
def filter_row(x: Array, y: Array, y_next: Array, k: float) -> None:
    """`filter_step`; fills y_next."""
    real = x.dtype.type
    for j in range(x.size):
        y_next[j] = y[j] - (real(1) - x[j]) * y[j] * real(k) + x[j]


@inlined
def filter_row_backward(
    grad: Array, grad_y: Array, x: Array, y: Array, grad_x: Array, grad_k: Array, k: float
) -> None:
    """One step backward: fills grad_x and adds to grad_k; grad_y becomes that of y from y_next's.

    grad: the gradient of y_next as an output; it adds to that of y_next as a state.
    """
    real = x.dtype.type
    for j in range(x.size):
        total = grad_y[j] + grad[j]
        decays = real(1) - x[j]
        grad_x[j] = total * (real(1) + y[j] * real(k))
        grad_k[j] -= total * decays * y[j]
        grad_y[j] = total * (real(1) - decays * real(k))


@inlined
def fill(row: Array, value: Any) -> None:
    for j in range(row.size):
        row[j] = value


@inlined
def copy(source: Array, target: Array) -> None:
    for j in range(source.size):
        target[j] = source[j]


@inlined
def nearest(u: np.uint32) -> np.uint32:
    """The nearest bfloat16, ties to even, of the float32 with these bits."""
    number = (u & np.uint32(0x7FFFFFFF)) <= np.uint32(0x7F800000)  # or NaN, which stays one
    up = np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1)) if number else np.uint32(0)
    return np.uint32((u + up) & np.uint32(0xFFFF0000))


@inlined
def rounded(source: Array, target: Array) -> None:
    """target = source, another row, in bfloat16; both are float32."""
    a, b = source.view(np.uint32), target.view(np.uint32)
    for j in range(a.size):
        b[j] = nearest(a[j])


@inlined
def round_row(row: Array) -> None:
    """As `rounded`, in place: LLVM vectorizes that only where it sees one array."""
    a = row.view(np.uint32)
    for j in range(a.size):
        a[j] = nearest(a[j])
