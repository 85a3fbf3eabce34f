"""Products of weights with blocks of samples, and the rearrangements that these need; see `chain`.

K and J are features, n the samples of a block, L the samples of all steps of a block. The order of
a sum here is that of no reference, as it differs from one BLAS to the next.
"""

import numpy as np

from .loops import Array
from .openmp import compiled, reassociated


@reassociated
def add_product(weight: Array, first: int, x: Array, out: Array) -> None:
    """out [K, n] += weight[:, first : first + J] @ x [J, n], two rows and four terms at once."""
    pairs, fours = out.shape[0] // 2 * 2, x.shape[0] // 4 * 4
    for k in range(0, pairs, 2):
        out_0, out_1 = out[k], out[k + 1]
        for j in range(0, fours, 4):
            x_0, x_1, x_2, x_3 = x[j], x[j + 1], x[j + 2], x[j + 3]
            a, b = weight[k, first + j : first + j + 4], weight[k + 1, first + j : first + j + 4]
            a_0, a_1, a_2, a_3 = a[0], a[1], a[2], a[3]
            b_0, b_1, b_2, b_3 = b[0], b[1], b[2], b[3]
            for n in range(out_0.size):
                out_0[n] += a_0 * x_0[n] + a_1 * x_1[n] + a_2 * x_2[n] + a_3 * x_3[n]
                out_1[n] += b_0 * x_0[n] + b_1 * x_1[n] + b_2 * x_2[n] + b_3 * x_3[n]
    for k in range(out.shape[0]):
        for j in range(fours if k < pairs else 0, x.shape[0]):
            out_k, x_j, a_j = out[k], x[j], weight[k, first + j]
            for n in range(out_k.size):
                out_k[n] += a_j * x_j[n]


@reassociated
def add_outer(grad: Array, x: Array, lag: int, grad_weight: Array, first: int) -> None:
    """grad_weight[:, first : first + J] += grad[:, lag:] @ x transposed, two rows, four columns.

    grad [K, L], x [J, L]: the sums run along the samples of all steps, with x `lag` samples (one
    step, where y[t-1] meets dL/di[t]) behind grad.
    """
    pairs, fours = grad.shape[0] // 2 * 2, x.shape[0] // 4 * 4
    zero = grad.dtype.type(0)
    for k in range(0, pairs, 2):
        g, d = grad[k, lag:], grad[k + 1, lag:]
        for j in range(0, fours, 4):
            x_0, x_1, x_2, x_3 = x[j], x[j + 1], x[j + 2], x[j + 3]
            a_0 = a_1 = a_2 = a_3 = b_0 = b_1 = b_2 = b_3 = zero
            for n in range(g.size):
                a_0 += g[n] * x_0[n]
                a_1 += g[n] * x_1[n]
                a_2 += g[n] * x_2[n]
                a_3 += g[n] * x_3[n]
                b_0 += d[n] * x_0[n]
                b_1 += d[n] * x_1[n]
                b_2 += d[n] * x_2[n]
                b_3 += d[n] * x_3[n]
            upper, lower = grad_weight[k, first + j :], grad_weight[k + 1, first + j :]
            upper[0] += a_0
            upper[1] += a_1
            upper[2] += a_2
            upper[3] += a_3
            lower[0] += b_0
            lower[1] += b_1
            lower[2] += b_2
            lower[3] += b_3
    for k in range(grad.shape[0]):
        for j in range(fours if k < pairs else 0, x.shape[0]):
            g, x_j, single = grad[k, lag:], x[j], zero
            for n in range(g.size):
                single += g[n] * x_j[n]
            grad_weight[k, first + j] += single


@reassociated
def add_rows(rows: Array, total: Array) -> None:
    """total [K] += the sums of rows [K, L]."""
    for k in range(rows.shape[0]):
        row, single = rows[k], rows.dtype.type(0)
        for n in range(row.size):
            single += row[n]
        total[k] += single


@compiled
def transposed(weight: Array, first: int, count: int) -> Array:
    """weight[:, first : first + count] transposed, contiguous."""
    turned = np.empty((count, weight.shape[0]), weight.dtype)
    for j in range(count):
        for k in range(weight.shape[0]):
            turned[j, k] = weight[k, first + j]
    return turned


@compiled
def feature_first(x: Array, space: Array) -> Array:
    """x [T, F, n] copied into space as [F, T n]."""
    steps, features, lanes = x.shape
    turned = space[: x.size].reshape(features, steps, lanes)
    for f in range(features):
        for t in range(steps):
            source, target = x[t, f], turned[f, t]
            for n in range(lanes):
                target[n] = source[n]
    return turned.reshape(features, steps * lanes)
