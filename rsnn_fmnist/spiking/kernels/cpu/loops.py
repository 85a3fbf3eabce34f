"""The time loops of the CPU kernels, compiled by numba: arrays in, arrays filled.

Every array is C-contiguous and of one float dtype. T steps; L lanes, one for each neuron of each
sample; N samples of F features where features mix. A loop gets (part, parts) and works on that
share of the lanes or samples only, so that shares can run side by side and no result depends on
their number. The equations stand in `neuron`, `synapse` and `surrogate`, their derivatives with
them; the order of operations is theirs too, without contraction, so that a charge close to the
threshold is rounded, and fires, as in the reference.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .openmp import compiled, fork, reassociated

Array = NDArray[np.floating]  # [T, L], [T, N, F] or a row of these

LINE = 16  # lanes that share a cache line, which two threads had better not write to
FOURS = 4  # samples that `add_product` takes together, so that no share splits them

GIVEN, ATAN, SOFT_SIGN, PIECEWISE_QUADRATIC = range(4)  # Cell.slope: how slopes are computed


class Cell(NamedTuple):
    """The neurons of a layer: `neuron.if_step`, or `neuron.lif_step` where leaky."""

    leaky: bool
    tau: float
    v_threshold: float
    v_rest: float  # v_reset where hard, else 0
    hard: bool
    attached: bool  # a gradient passes through the reset
    slope: int  # GIVEN: the slopes come with the call
    alpha: float


@compiled
def share(part: int, parts: int, count: int, group: int) -> tuple[int, int]:
    """Where this part of `count` items begins and ends; it consists of whole groups."""
    groups = (count + group - 1) // group
    return part * groups // parts * group, min((part + 1) * groups // parts * group, count)


@compiled
def flat(block: Array) -> Array:
    """A contiguous block as one row of lanes."""
    return block.reshape(block.size)


@compiled
def fire_row(i: Array, v: Array, s: Array, h: Array, cell: Cell) -> None:
    """One step of lanes with input i, potential v (advanced in place); fills s and h."""
    of = i.dtype.type
    tau, v_threshold, v_rest = of(cell.tau), of(cell.v_threshold), of(cell.v_rest)
    for j in range(i.size):
        charged = v[j] + (i[j] - (v[j] - v_rest)) / tau if cell.leaky else v[j] + i[j]
        fires = charged >= v_threshold
        h[j] = charged
        s[j] = of(1) if fires else of(0)
        after = v_rest if cell.hard else charged - v_threshold
        v[j] = after if fires else charged


@compiled
def slope_row(h: Array, slope: Array, cell: Cell) -> None:
    """Fill `slope` with the surrogate's at h - v_threshold, unless it was given."""
    of = h.dtype.type
    v_threshold, alpha = of(cell.v_threshold), of(cell.alpha)
    if cell.slope == ATAN:
        half, scale = of(cell.alpha / 2), of(np.pi / 2 * cell.alpha)
        for j in range(h.size):
            u = scale * (h[j] - v_threshold)
            slope[j] = half / (of(1) + u * u)
    elif cell.slope == SOFT_SIGN:
        for j in range(h.size):
            u = of(1) + abs(alpha * (h[j] - v_threshold))
            slope[j] = alpha / (of(2) * (u * u))
    elif cell.slope == PIECEWISE_QUADRATIC:
        for j in range(h.size):
            u = alpha - alpha * alpha * abs(h[j] - v_threshold)
            slope[j] = of(0) if u < 0 else u


@compiled
def fire_row_backward(grad_s: Array, grad_v: Array, h: Array, slope: Array, cell: Cell) -> None:
    """One step backward: grad_v goes from the step's end to its start, slope becomes grad_i.

    With r = dv/dh: dL/dh = dL/ds slope + dL/dv r, shared out by the charge.
    """
    of = h.dtype.type
    v_threshold, v_rest = of(cell.v_threshold), of(cell.v_rest)
    to_input = of(1 / cell.tau) if cell.leaky else of(1)
    to_potential = of(1 - 1 / cell.tau) if cell.leaky else of(1)
    for j in range(h.size):
        kept = of(0) if cell.hard and h[j] >= v_threshold else of(1)
        jump = v_rest - h[j] if cell.hard else -v_threshold
        r = kept + jump * slope[j] if cell.attached else kept
        grad_h = grad_s[j] * slope[j] + grad_v[j] * r
        slope[j] = grad_h * to_input
        grad_v[j] = grad_h * to_potential


@compiled
def neuron_part(part: int, parts: int, x: Array, v: Array, s: Array, h: Array, cell: Cell) -> None:
    """Lanes over all steps: fills s and h [T, L]; v [L] goes from the first state to the last.

    An h of one row, [1, L], is only working space: nothing is kept for a backward pass.
    """
    a, b = share(part, parts, x.shape[1], LINE)
    last_row = h.shape[0] - 1
    for t in range(x.shape[0]):
        fire_row(x[t, a:b], v[a:b], s[t, a:b], h[min(t, last_row), a:b], cell)


@compiled
def neuron(threads: int, *arguments: Any) -> None:
    fork(neuron_part, threads, arguments)


@compiled
def neuron_backward_part(
    part: int, parts: int, grad_s: Array, grad_v: Array, h: Array, grad_x: Array, cell: Cell
) -> None:
    """Lanes back through all steps; grad_x holds the slopes on entry where they are given."""
    a, b = share(part, parts, h.shape[1], LINE)
    for t in range(h.shape[0] - 1, -1, -1):
        slope_row(h[t, a:b], grad_x[t, a:b], cell)
        fire_row_backward(grad_s[t, a:b], grad_v[a:b], h[t, a:b], grad_x[t, a:b], cell)


@compiled
def neuron_backward(threads: int, *arguments: Any) -> None:
    fork(neuron_backward_part, threads, arguments)


@reassociated
def add_product(rows: Array, matrix: Array, total: Array) -> None:
    """total [N, K] += rows [N, J] @ matrix [K, J] transposed, four samples at a time.

    The order of a sum over features is no reference's to prescribe: each BLAS has its own.
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
    weight: Array,
    y: Array,
    v: Array,
    s: Array,
    h: Array,
    cell: Cell,
) -> None:
    """Samples over all steps, with the input i_x[t] + weight y[t-1].

    Args:
        i_x, s, h: [T, N, F]; h as in `neuron_part`.
        weight: [F, F], the half for y.
        y, v: [N, F], from the first state to the last.
    """
    a, b = share(part, parts, y.shape[0], FOURS)
    last_row = h.shape[0] - 1
    i = np.empty_like(y[a:b])
    for t in range(i_x.shape[0]):
        i[:] = i_x[t, a:b]
        add_product(y[a:b] if t == 0 else s[t - 1, a:b], weight, i)
        fire_row(flat(i), flat(v[a:b]), flat(s[t, a:b]), flat(h[min(t, last_row), a:b]), cell)
    y[a:b] = s[-1, a:b]


@compiled
def recurrent(threads: int, *arguments: Any) -> None:
    fork(recurrent_part, threads, arguments)


@compiled
def recurrent_backward_part(
    part: int,
    parts: int,
    grad_s: Array,
    weight_t: Array,
    grad_y: Array,
    grad_v: Array,
    h: Array,
    grad_i: Array,
    cell: Cell,
) -> None:
    """Samples back through all steps; weight_t [F, F] is the weight's half for y, transposed."""
    a, b = share(part, parts, grad_y.shape[0], FOURS)
    for t in range(h.shape[0] - 1, -1, -1):
        grad_y[a:b] += grad_s[t, a:b]
        slope_row(flat(h[t, a:b]), flat(grad_i[t, a:b]), cell)
        fire_row_backward(
            flat(grad_y[a:b]), flat(grad_v[a:b]), flat(h[t, a:b]), flat(grad_i[t, a:b]), cell
        )
        grad_y[a:b] = 0
        add_product(grad_i[t, a:b], weight_t, grad_y[a:b])


@compiled
def recurrent_backward(threads: int, *arguments: Any) -> None:
    fork(recurrent_backward_part, threads, arguments)


@compiled
def filter_row(x: Array, y: Array, y_next: Array, k: float) -> None:
    """One step of `synapse.filter_step`."""
    of = x.dtype.type
    for j in range(x.size):
        y_next[j] = y[j] - (of(1) - x[j]) * y[j] * of(k) + x[j]


@compiled
def filter_row_backward(
    grad: Array, grad_y: Array, x: Array, y: Array, grad_x: Array, grad_k: Array, k: float
) -> None:
    """One step backward: grad_y goes from y_next to y; fills grad_x, adds to grad_k."""
    of = x.dtype.type
    for j in range(x.size):
        total = grad_y[j] + grad[j]
        decays = of(1) - x[j]
        grad_x[j] = total * (of(1) + y[j] * of(k))
        grad_k[j] -= total * decays * y[j]
        grad_y[j] = total * (of(1) - decays * of(k))


@compiled
def synapse_part(part: int, parts: int, x: Array, y: Array, y_seq: Array, k: float) -> None:
    """Lanes over all steps: fills y_seq [T, L] on from y [L]."""
    a, b = share(part, parts, x.shape[1], LINE)
    filter_row(x[0, a:b], y[a:b], y_seq[0, a:b], k)
    for t in range(1, x.shape[0]):
        filter_row(x[t, a:b], y_seq[t - 1, a:b], y_seq[t, a:b], k)


@compiled
def synapse(threads: int, *arguments: Any) -> None:
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
    """Lanes back through all steps; grad_k [L] is k's gradient lane by lane."""
    a, b = share(part, parts, x.shape[1], LINE)
    for t in range(x.shape[0] - 1, -1, -1):
        before = y if t == 0 else y_seq[t - 1]
        filter_row_backward(
            grad[t, a:b], grad_y[a:b], x[t, a:b], before[a:b], grad_x[t, a:b], grad_k[a:b], k
        )


@compiled
def synapse_backward(threads: int, *arguments: Any) -> None:
    fork(synapse_backward_part, threads, arguments)
