"""The time loops of the CPU kernels, compiled by numba; they read arrays and fill arrays.

All arrays of a call are C-contiguous and have one float dtype. Shapes: T steps; L lanes, one for
each neuron of each sample; N samples of F features where features mix. A function that takes
(part, parts) works on that share of the lanes or samples only, so shares can run in parallel and
no result depends on their number.

What happens at a step is in rows.py, and `recurrent.linear_recurrent_step` has the equations of the
feedback.
"""

from typing import Any

import numpy as np

from .openmp import compiled, fork, inner, reassociated
from .rows import (
    GIVEN,
    Array,
    NeuronConstants,
    filter_row,
    filter_row_backward,
    fire_row,
    fire_row_backward,
    flat,
    slope_row,
)

LINE = 16  # lanes that share a cache line; two threads that write to one slow each other down
FOURS = 4  # samples that `add_product` computes together, so that no share splits them


@inner
def share(part: int, parts: int, count: int, group: int) -> tuple[int, int]:
    """The first item of this part of `count` items and the first behind it; whole groups each."""
    groups = (count + group - 1) // group
    return part * groups // parts * group, min((part + 1) * groups // parts * group, count)


@inner
def neuron_part(
    part: int, parts: int, x: Array, v: Array, s: Array, h: Array, constants: NeuronConstants
) -> None:
    """Run lanes over all steps: fills s and h [T, L]; v [L] becomes the last potential.

    An h of one row, [1, L], is overwritten at each step; it cannot serve a backward pass.
    """
    a, b = share(part, parts, x.shape[1], LINE)
    last_row = h.shape[0] - 1
    for t in range(x.shape[0]):
        row = h[min(t, last_row), a:b]
        row[:] = x[t, a:b]
        fire_row(row, v[a:b], s[t, a:b], constants)


@compiled
def neuron(threads: int, *arguments: Any) -> None:
    """`neuron_part` on so many threads."""
    fork(neuron_part, threads, arguments)


@inner
def row_backward(
    grad_s: Array,
    grad_v: Array,
    h: Array,
    slope: Array,
    grad_i: Array,
    constants: NeuronConstants,
) -> None:
    """`fire_row_backward` that keeps h: fills grad_i, which holds the slopes if they are GIVEN."""
    if constants.slope == GIVEN:
        slope[:] = grad_i
    else:
        slope_row(h, slope, constants)
    grad_i[:] = h
    fire_row_backward(grad_s, grad_v, grad_i, slope, constants)


@inner
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
    slope = np.empty_like(grad_v[a:b])
    for t in range(h.shape[0] - 1, -1, -1):
        row_backward(grad_s[t, a:b], grad_v[a:b], h[t, a:b], slope, grad_x[t, a:b], constants)


@compiled
def neuron_backward(threads: int, *arguments: Any) -> None:
    """`neuron_backward_part` on so many threads."""
    fork(neuron_backward_part, threads, arguments)


@reassociated
def add_product(rows: Array, matrix: Array, total: Array) -> None:
    """total [N, K] += rows [N, J] @ matrix [K, J] transposed, four samples at a time.

    Samples come first here, as in torch's tensors; the products of products.py have them last.
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


@inner
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
    for t in range(i_x.shape[0]):
        i = h[min(t, last_row), a:b]
        i[:] = i_x[t, a:b]
        add_product(y[a:b] if t == 0 else s[t - 1, a:b], for_y, i)
        fire_row(flat(i), flat(v[a:b]), flat(s[t, a:b]), constants)
    y[a:b] = s[-1, a:b]


@compiled
def recurrent(threads: int, *arguments: Any) -> None:
    """`recurrent_part` on so many threads."""
    fork(recurrent_part, threads, arguments)


@inner
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
    now, potential, slope = flat(grad_y[a:b]), flat(grad_v[a:b]), np.empty_like(flat(grad_v[a:b]))
    for t in range(h.shape[0] - 1, -1, -1):
        grad_y[a:b] += grad_s[t, a:b]
        row_backward(now, potential, flat(h[t, a:b]), slope, flat(grad_i[t, a:b]), constants)
        grad_y[a:b] = 0
        add_product(grad_i[t, a:b], for_y_t, grad_y[a:b])


@compiled
def recurrent_backward(threads: int, *arguments: Any) -> None:
    """`recurrent_backward_part` on so many threads."""
    fork(recurrent_backward_part, threads, arguments)


@inner
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


@inner
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
