"""A whole training step's mathematics for a chain of layers, compiled by numba into one loop.

From uint8 columns to the gradient of every weight: gather, normalise, run the layers forward, take
the loss of `step.rate_loss`, and run back. A block of samples passes through all layers before the
next one starts, so that what it computes stays in the processor's cache. Neurons and filters are
`loops`'s own.

What a layer puts out for a block is [T, F, n]: the n samples last, so that products with a weight
run along samples and everything else along all of [F, n]. Left out: half precision, surrogates
whose slope is GIVEN, and layers without steps in time.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .loops import (
    Array,
    Cell,
    fire_row,
    fire_row_backward,
    flat,
    neuron_backward_part,
    neuron_part,
    share,
    slope_row,
    synapse_backward_part,
    synapse_part,
)
from .openmp import compiled, fork, reassociated

LANES = 64  # samples of a block at most

LINEAR, NEURON, FILTER, RECURRENT = range(4)

LAYER = np.dtype(
    [
        ("kind", np.int64),
        ("inputs", np.int64),
        ("outputs", np.int64),
        ("weight", np.int64),  # where it begins among the parameters; a filter's w; -1: none
        ("bias", np.int64),  # likewise
        ("out", np.int64),  # features that lie before its output in a block's space
        ("h", np.int64),  # likewise before its potentials
        ("k", np.float64),  # a filter's decay where it is not learnt
        ("leaky", np.bool_),  # from here on a Cell
        ("tau", np.float64),
        ("v_threshold", np.float64),
        ("v_rest", np.float64),
        ("hard", np.bool_),
        ("attached", np.bool_),
        ("slope", np.int64),
        ("alpha", np.float64),
    ],
    align=True,
)


@compiled
def cell_of(layer: Any) -> Cell:
    return Cell(
        layer.leaky,
        layer.tau,
        layer.v_threshold,
        layer.v_rest,
        layer.hard,
        layer.attached,
        layer.slope,
        layer.alpha,
    )


@compiled
def weight_of(layer: Any, parameters: Array) -> Array:
    """[outputs, inputs]; a recurrent layer's is [F, 2 F], the half for its input first."""
    columns = layer.inputs * (2 if layer.kind == RECURRENT else 1)
    values = parameters[layer.weight : layer.weight + layer.outputs * columns]
    return values.reshape(layer.outputs, columns)


@compiled
def transposed(weight: Array, first: int, count: int) -> Array:
    """weight[:, first : first + count] transposed, contiguous."""
    turned = np.empty((count, weight.shape[0]), weight.dtype)
    for j in range(count):
        for k in range(weight.shape[0]):
            turned[j, k] = weight[k, first + j]
    return turned


@compiled
def block(space: Array, first: int, features: int, steps: int, lanes: int) -> Array:
    """The features that lie behind `first` others in space, [T, F, n]; shares memory."""
    return space[first * steps * lanes :][: features * steps * lanes].reshape(
        steps, features, lanes
    )


@compiled
def rows(x: Array) -> Array:
    """[T, F, n] as the lanes [T, L] of `loops`."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2])


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
    """grad_weight[:, first : first + J] += grad @ x transposed, two rows and four columns at once.

    grad [K, L], x [J, L]: the sums run along the samples of all steps, x's `lag` of them behind.
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


@compiled
def linear(layer: Any, parameters: Array, x: Array, y: Array) -> None:
    """Fill y [T, K, n] with weight[:, :J] @ x [T, J, n] + bias."""
    weight, zero = weight_of(layer, parameters), x.dtype.type(0)
    for t in range(x.shape[0]):
        for k in range(y.shape[1]):
            row, bias = y[t, k], parameters[layer.bias + k] if layer.bias >= 0 else zero
            for n in range(row.size):
                row[n] = bias
        add_product(weight, 0, x[t], y[t])


@compiled
def linear_backward(layer: Any, x: Array, grad_y: Array, grads: Array, space: Array) -> None:
    """Add the weight's and the bias's gradients; x and grad_y are [T, J, n] and [T, K, n]."""
    grad = feature_first(grad_y, space)
    add_outer(grad, feature_first(x, space[grad.size :]), 0, weight_of(layer, grads), 0)
    if layer.bias >= 0:
        add_rows(grad, grads[layer.bias : layer.bias + layer.outputs])


@compiled
def linear_input(layer: Any, parameters: Array, grad_y: Array, grad_x: Array) -> None:
    """Fill grad_x [T, J, n] from grad_y [T, K, n]."""
    back = transposed(weight_of(layer, parameters), 0, layer.inputs)
    grad_x[:] = 0
    for t in range(grad_y.shape[0]):
        add_product(back, 0, grad_y[t], grad_x[t])


@compiled
def recurrent(layer: Any, parameters: Array, x: Array, i: Array, s: Array, h: Array) -> None:
    """Fill s and h [T, F, n]; i [T, F, n] is working space."""
    linear(layer, parameters, x, i)
    weight, cell = weight_of(layer, parameters), cell_of(layer)
    v = np.full(i[0].size, i.dtype.type(cell.v_rest))
    for t in range(i.shape[0]):
        if t > 0:
            add_product(weight, layer.inputs, s[t - 1], i[t])
        fire_row(flat(i[t]), v, flat(s[t]), flat(h[t]), cell)


@compiled
def recurrent_backward(
    layer: Any, parameters: Array, h: Array, grad_s: Array, grad_i: Array
) -> None:
    """Fill grad_i [T, F, n]; grad_s gets what comes back through the feedback added."""
    cell = cell_of(layer)
    back = transposed(weight_of(layer, parameters), layer.inputs, layer.inputs)
    grad_v = np.zeros(h[0].size, h.dtype)
    for t in range(h.shape[0] - 1, -1, -1):
        if t < h.shape[0] - 1:
            add_product(back, 0, grad_i[t + 1], grad_s[t])
        slope_row(flat(h[t]), flat(grad_i[t]), cell)
        fire_row_backward(flat(grad_s[t]), grad_v, flat(h[t]), flat(grad_i[t]), cell)


@compiled
def decay(layer: Any, parameters: Array) -> float:
    """A filter's k, as `synapse.SynapseFilter.decay` has it."""
    one = parameters.dtype.type(1)
    return one / (one + np.exp(-parameters[layer.weight])) if layer.weight >= 0 else layer.k


@compiled
def forward(layers: Any, parameters: Array, x: Array, space: Array, spare: Array) -> None:
    """Fill each layer's output and potentials in `space`, x [T, F, n] being at its beginning."""
    steps, _, lanes = x.shape
    for layer in layers:
        y = block(space, layer.out, layer.outputs, steps, lanes)
        if layer.kind == LINEAR:
            linear(layer, parameters, x, y)
        elif layer.kind == FILTER:
            rest = np.zeros(x[0].size, x.dtype)
            synapse_part(0, 1, rows(x), rest, rows(y), decay(layer, parameters))
        else:
            h = block(space, layer.h, layer.outputs, steps, lanes)
            if layer.kind == NEURON:
                v = np.full(x[0].size, x.dtype.type(layer.v_rest))
                neuron_part(0, 1, rows(x), v, rows(y), rows(h), cell_of(layer))
            else:
                i = block(spare, 0, layer.outputs, steps, lanes)
                recurrent(layer, parameters, x, i, y, h)
        x = y


@compiled
def backward(
    layers: Any,
    parameters: Array,
    x: Array,
    space: Array,
    spares: tuple[Array, Array, Array],
    grads: Array,
) -> None:
    """Add every parameter's gradient to `grads`; spares[0] begins with that of the last output."""
    steps, _, lanes = x.shape
    grad, other, turned = spares
    for depth in range(len(layers) - 1, -1, -1):
        layer = layers[depth]
        before = 0 if depth == 0 else layers[depth - 1].out
        x = block(space, before, layer.inputs, steps, lanes)
        y = block(space, layer.out, layer.outputs, steps, lanes)
        grad_y = block(grad, 0, layer.outputs, steps, lanes)
        grad_x = block(other, 0, layer.inputs, steps, lanes)
        if layer.kind == FILTER:
            k, rest = decay(layer, parameters), np.zeros(x[0].size, x.dtype)
            grad_rest, grad_k = np.zeros_like(rest), np.zeros_like(rest)
            synapse_backward_part(
                0, 1, rows(grad_y), grad_rest, rows(x), rest, rows(y), rows(grad_x), grad_k, k
            )
            if layer.weight >= 0:
                grads[layer.weight] += grad_k.sum() * k * (1 - k)
        elif layer.kind == LINEAR:
            linear_backward(layer, x, grad_y, grads, turned)
            if depth > 0:
                linear_input(layer, parameters, grad_y, grad_x)
        else:
            h = block(space, layer.h, layer.outputs, steps, lanes)
            if layer.kind == NEURON:
                grad_v = np.zeros(x[0].size, x.dtype)
                cell = cell_of(layer)
                neuron_backward_part(0, 1, rows(grad_y), grad_v, rows(h), rows(grad_x), cell)
            else:
                recurrent_backward(layer, parameters, h, grad_y, grad_x)
                feedback_backward(layer, y, grad_x, grads, turned)
                linear_backward(layer, x, grad_x, grads, turned)
                grad, other = other, grad
                if depth > 0:
                    linear_input(layer, parameters, grad_x, grad_y)
        grad, other = other, grad


@compiled
def feedback_backward(layer: Any, s: Array, grad_i: Array, grads: Array, space: Array) -> None:
    """Add the gradient of the weight's half for the spikes of the step before."""
    grad = feature_first(grad_i, space)
    spikes = feature_first(s, space[grad.size :])
    add_outer(grad, spikes, s.shape[2], weight_of(layer, grads), layer.inputs)


@compiled
def gather(
    columns: NDArray[np.uint8],
    chosen: NDArray[np.int64],
    scale: float,
    shift: float,
    x: Array,
) -> None:
    """Fill x [T, H, n] with the chosen pictures of columns [M, T, H], normalised."""
    of = x.dtype.type
    for t in range(x.shape[0]):
        for j in range(x.shape[1]):
            row = x[t, j]
            for n in range(row.size):
                row[n] = of(shift) + of(scale) * of(columns[chosen[n], t, j])


@compiled
def answer(
    s: Array,
    labels: NDArray[np.int64],
    chosen: NDArray[np.int64],
    count: int,
    grad: Array,
    sums: NDArray[np.float64],
) -> None:
    """Add a block's rates, the means of s [T, C, n], to `step.Sums`; fill the loss's gradient.

    labels, chosen: of all pictures, and which of them these are.
    count: samples of the whole batch, over which the loss is a mean.
    """
    of = s.dtype.type
    steps, classes, lanes = s.shape
    rates = np.zeros(classes * lanes, s.dtype)
    for t in range(steps):
        spikes = flat(s[t])
        for j in range(rates.size):
            rates[j] += spikes[j]
    for j in range(rates.size):
        rates[j] /= of(steps)
    for n in range(lanes):
        y, behind, loss = labels[chosen[n]], 0, 0.0
        r_y = rates[y * lanes + n]
        for c in range(classes):
            r = rates[c * lanes + n]
            behind += r < r_y or (r == r_y and c > y)
            error = r - of(c == y)
            loss += float(error) * float(error)
            grad[0, c, n] = of(2) * error / of(count * classes * steps)
        sums[0] += loss / classes
        sums[1] += classes - 1 - behind < 1
        sums[2] += classes - 1 - behind < 5
        sums[3] += 1
    for t in range(1, steps):
        grad[t] = grad[0]


@compiled
def chain_part(
    part: int,
    parts: int,
    columns: NDArray[np.uint8],
    labels: NDArray[np.int64],
    indices: NDArray[np.int64],
    scale: float,
    shift: float,
    layers: Any,
    parameters: Array,
    spaces: Array,
    grads: Array,
    sums: NDArray[np.float64],
) -> None:
    """This part's blocks; spaces [parts, 4, S], grads [parts, P] and sums [parts, 4].

    spaces: what the layers put out, two gradients, and what is turned feature first.
    """
    lanes = min(LANES, (len(indices) + parts - 1) // parts)
    a, b = share(part, parts, len(indices), lanes)
    grads[part], sums[part] = 0, 0
    space, grad, other = spaces[part, 0], spaces[part, 1], spaces[part, 2]
    steps, pixels = columns.shape[1:]
    last = layers[-1]
    for first in range(a, b, lanes):
        chosen = indices[first : min(first + lanes, b)]
        x = block(space, 0, pixels, steps, len(chosen))
        gather(columns, chosen, scale, shift, x)
        forward(layers, parameters, x, space, grad)
        s = block(space, last.out, last.outputs, steps, len(chosen))
        grad_s = block(grad, 0, last.outputs, steps, len(chosen))
        answer(s, labels, chosen, len(indices), grad_s, sums[part])
        backward(layers, parameters, x, space, (grad, other, spaces[part, 3]), grads[part])


@compiled
def chain(threads: int, *arguments: Any) -> None:
    fork(chain_part, threads, arguments)
