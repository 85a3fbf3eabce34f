"""The time loops of the CPU kernels, compiled by numba; they read arrays and fill arrays.

All arrays of a call are C-contiguous and have one float dtype. Shapes: T steps; L lanes, one for
each neuron of each sample; N samples of F features where features mix. A function that takes
(part, parts) works on that share of the lanes or samples only, so shares can run in parallel and
no result depends on their number.

The equations, forward and backward, are those of the step functions `neuron.if_step`,
`neuron.lif_step`, `synapse.filter_step` and `recurrent.linear_recurrent_step`, and of the
surrogates' `slope`. Their operations are done in the same order, without fused multiply-adds, so
that a charge close to the threshold is rounded, and fires, as in the reference.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .openmp import compiled, fork, reassociated

Array = NDArray[np.floating]  # [T, L], [T, N, F] or a row of these

LINE = 16  # lanes that share a cache line; two threads that write to one slow each other down
FOURS = 4  # samples that `add_product` computes together, so that no share splits them

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


@compiled
def share(part: int, parts: int, count: int, group: int) -> tuple[int, int]:
    """The first item of this part of `count` items and the first behind it; whole groups each."""
    groups = (count + group - 1) // group
    return part * groups // parts * group, min((part + 1) * groups // parts * group, count)


@compiled
def flat(block: Array) -> Array:
    """A contiguous array as one row of lanes."""
    return block.reshape(block.size)


@compiled
def fire_row(i: Array, v: Array, s: Array, h: Array, constants: NeuronConstants) -> None:
    """`if_step` or `lif_step` with input i: advances v in place, fills s and h."""
    real = i.dtype.type
    tau, v_rest = real(constants.tau), real(constants.v_rest)
    v_threshold = real(constants.v_threshold)
    for j in range(i.size):
        charged = v[j] + (i[j] - (v[j] - v_rest)) / tau if constants.leaky else v[j] + i[j]
        fires = charged >= v_threshold
        h[j] = charged
        s[j] = real(1) if fires else real(0)
        after = v_rest if constants.hard else charged - v_threshold
        v[j] = after if fires else charged


@compiled
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


@compiled
def fire_row_backward(
    grad_s: Array, grad_v: Array, h: Array, slope: Array, constants: NeuronConstants
) -> None:
    """One step backward. In place, grad_v becomes dL/dv from dL/dv_next, slope becomes dL/di."""
    real = h.dtype.type
    v_threshold, v_rest = real(constants.v_threshold), real(constants.v_rest)
    to_input = real(1 / constants.tau) if constants.leaky else real(1)
    to_potential = real(1 - 1 / constants.tau) if constants.leaky else real(1)
    for j in range(h.size):
        # r, as in if_step: kept is 1 - s or 1, jump is v_reset - h or -v_threshold
        kept = real(0) if constants.hard and h[j] >= v_threshold else real(1)
        jump = v_rest - h[j] if constants.hard else -v_threshold
        r = kept + jump * slope[j] if constants.attached else kept
        grad_h = grad_s[j] * slope[j] + grad_v[j] * r
        slope[j] = grad_h * to_input
        grad_v[j] = grad_h * to_potential


@compiled
def neuron_part(
    part: int, parts: int, x: Array, v: Array, s: Array, h: Array, constants: NeuronConstants
) -> None:
    """Run lanes over all steps: fills s and h [T, L]; v [L] becomes the last potential.

    An h of one row, [1, L], is overwritten at each step; it cannot serve a backward pass.
    """
    a, b = share(part, parts, x.shape[1], LINE)
    last_row = h.shape[0] - 1
    for t in range(x.shape[0]):
        fire_row(x[t, a:b], v[a:b], s[t, a:b], h[min(t, last_row), a:b], constants)


@compiled
def neuron(threads: int, *arguments: Any) -> None:
    """`neuron_part` on so many threads."""
    fork(neuron_part, threads, arguments)


@compiled
def neuron_backward_part(
    part: int,
    parts: int,
    grad_s: Array,
    grad_v: Array,
    h: Array,
    grad_x: Array,
    constants: NeuronConstants,
) -> None:
    """The backward pass of lanes over all steps: fills grad_x [T, L], advances grad_v [L].

    Slopes that are GIVEN are in grad_x beforehand.
    """
    a, b = share(part, parts, h.shape[1], LINE)
    for t in range(h.shape[0] - 1, -1, -1):
        slope_row(h[t, a:b], grad_x[t, a:b], constants)
        fire_row_backward(grad_s[t, a:b], grad_v[a:b], h[t, a:b], grad_x[t, a:b], constants)


@compiled
def neuron_backward(threads: int, *arguments: Any) -> None:
    """`neuron_backward_part` on so many threads."""
    fork(neuron_backward_part, threads, arguments)


@reassociated
def add_product(rows: Array, matrix: Array, total: Array) -> None:
    """total [N, K] += rows [N, J] @ matrix [K, J] transposed, four samples at a time.

    The order of these sums differs from the reference's, as it does from one BLAS to the next.
    """
    fours = rows.shape[0] // 4 * 4
    zero = rows.dtype.type(0)
    for n in range(0, fours, 4):
        for k in range(matrix.shape[0]):
            sum_0 = sum_1 = sum_2 = sum_3 = zero
            for j in range(matrix.shape[1]):
                weight = matrix[k, j]
                sum_0 += weight * rows[n, j]
                sum_1 += weight * rows[n + 1, j]
                sum_2 += weight * rows[n + 2, j]
                sum_3 += weight * rows[n + 3, j]
            total[n, k] += sum_0
            total[n + 1, k] += sum_1
            total[n + 2, k] += sum_2
            total[n + 3, k] += sum_3
    for n in range(fours, rows.shape[0]):
        for k in range(matrix.shape[0]):
            single = zero
            for j in range(matrix.shape[1]):
                single += matrix[k, j] * rows[n, j]
            total[n, k] += single


@compiled
def recurrent_part(
    part: int,
    parts: int,
    i_x: Array,
    for_y: Array,
    y: Array,
    v: Array,
    s: Array,
    h: Array,
    constants: NeuronConstants,
) -> None:
    """Run samples over all steps, with i[t] = i_x[t] + for_y y[t-1].

    Args:
        i_x: [T, N, F], for_x x + bias.
        for_y: [F, F].
        y, v: [N, F]; become the last output and potential.
        s, h: [T, N, F], filled; h as in `neuron_part`.
    """
    a, b = share(part, parts, y.shape[0], FOURS)
    last_row = h.shape[0] - 1
    i = np.empty_like(y[a:b])
    for t in range(i_x.shape[0]):
        i[:] = i_x[t, a:b]
        add_product(y[a:b] if t == 0 else s[t - 1, a:b], for_y, i)
        fire_row(flat(i), flat(v[a:b]), flat(s[t, a:b]), flat(h[min(t, last_row), a:b]), constants)
    y[a:b] = s[-1, a:b]


@compiled
def recurrent(threads: int, *arguments: Any) -> None:
    """`recurrent_part` on so many threads."""
    fork(recurrent_part, threads, arguments)


@compiled
def recurrent_backward_part(
    part: int,
    parts: int,
    grad_s: Array,
    for_y_t: Array,
    grad_y: Array,
    grad_v: Array,
    h: Array,
    grad_i: Array,
    constants: NeuronConstants,
) -> None:
    """The backward pass of samples over all steps: fills grad_i [T, N, F], advances the others.

    grad_y and grad_v [N, F] become the gradients of the first state. for_y_t is for_y transposed.
    """
    a, b = share(part, parts, grad_y.shape[0], FOURS)
    for t in range(h.shape[0] - 1, -1, -1):
        grad_y[a:b] += grad_s[t, a:b]
        slope_row(flat(h[t, a:b]), flat(grad_i[t, a:b]), constants)
        fire_row_backward(
            flat(grad_y[a:b]), flat(grad_v[a:b]), flat(h[t, a:b]), flat(grad_i[t, a:b]), constants
        )
        grad_y[a:b] = 0
        add_product(grad_i[t, a:b], for_y_t, grad_y[a:b])


@compiled
def recurrent_backward(threads: int, *arguments: Any) -> None:
    """`recurrent_backward_part` on so many threads."""
    fork(recurrent_backward_part, threads, arguments)


@compiled
def filter_row(x: Array, y: Array, y_next: Array, k: float) -> None:
    """`filter_step`; fills y_next."""
    real = x.dtype.type
    for j in range(x.size):
        y_next[j] = y[j] - (real(1) - x[j]) * y[j] * real(k) + x[j]


@compiled
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


@compiled
def synapse_part(part: int, parts: int, x: Array, y: Array, y_seq: Array, k: float) -> None:
    """Run lanes over all steps from y [L]: fills y_seq [T, L]."""
    a, b = share(part, parts, x.shape[1], LINE)
    filter_row(x[0, a:b], y[a:b], y_seq[0, a:b], k)
    for t in range(1, x.shape[0]):
        filter_row(x[t, a:b], y_seq[t - 1, a:b], y_seq[t, a:b], k)


@compiled
def synapse(threads: int, *arguments: Any) -> None:
    """`synapse_part` on so many threads."""
    fork(synapse_part, threads, arguments)


@compiled
def synapse_backward_part(
    part: int,
    parts: int,
    grad: Array,
    grad_y: Array,
    x: Array,
    y: Array,
    y_seq: Array,
    grad_x: Array,
    grad_k: Array,
    k: float,
) -> None:
    """The backward pass of lanes over all steps: fills grad_x [T, L], adds to grad_k [L].

    grad_y [L] becomes the gradient of the first state; the sum of grad_k is that of k.
    """
    a, b = share(part, parts, x.shape[1], LINE)
    for t in range(x.shape[0] - 1, -1, -1):
        before = y if t == 0 else y_seq[t - 1]
        filter_row_backward(
            grad[t, a:b], grad_y[a:b], x[t, a:b], before[a:b], grad_x[t, a:b], grad_k[a:b], k
        )


@compiled
def synapse_backward(threads: int, *arguments: Any) -> None:
    """`synapse_backward_part` on so many threads."""
    fork(synapse_backward_part, threads, arguments)
