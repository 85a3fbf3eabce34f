"""What a compiled training step computes for a chain of layers: one loop, compiled by numba.

It goes from uint8 pictures to the gradient of every weight: gather and normalize a batch, run the
layers forward, take the loss and the sums of `metrics.rate_loss` and `metrics.Sums`, run the layers
backward. A block of samples passes through all layers before the next block starts, so that its
values stay in the processor's cache. The equations are those that `loops` names, whose functions
run the neurons and the filters.

The output of a layer for a block is [T, F, n], the n samples last, so that products with a weight
run along samples, and everything else along all of [F, n]. Left out: half precision, surrogates
whose slope is GIVEN, and layers without a time axis.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .loops import (
    Array,
    NeuronConstants,
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
from .openmp import compiled, fork
from .products import add_outer, add_product, add_rows, feature_first, transposed

LANES = 64  # the most samples of a block

LINEAR, NEURON, FILTER, RECURRENT = range(4)

LAYER = np.dtype(
    [
        ("kind", np.int64),
        ("inputs", np.int64),
        ("outputs", np.int64),
        ("weight", np.int64),  # index of its first value among the parameters, or of a filter's w
        ("bias", np.int64),  # likewise; -1 where there is no such parameter
        ("out", np.int64),  # features in front of its output in a block's space
        ("h", np.int64),  # features in front of its potentials
        ("k", np.float64),  # a filter's decay if it is not learnt
        ("leaky", np.bool_),  # this and the rest are NeuronConstants
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
def constants_of(layer: Any) -> NeuronConstants:
    """The constants of a record's neurons."""
    return NeuronConstants(
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
    """The layer's weight, [outputs, inputs]; a recurrent layer's is [F, 2 F], for_x first."""
    columns = layer.inputs * (2 if layer.kind == RECURRENT else 1)
    values = parameters[layer.weight : layer.weight + layer.outputs * columns]
    return values.reshape(layer.outputs, columns)


@compiled
def block(space: Array, first: int, features: int, steps: int, lanes: int) -> Array:
    """The features behind the first `first` of space, as [T, F, n]; shares memory."""
    return space[first * steps * lanes :][: features * steps * lanes].reshape(
        steps, features, lanes
    )


@compiled
def rows(x: Array) -> Array:
    """[T, F, n] as lanes [T, L]; shares memory."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2])


@compiled
def linear(layer: Any, parameters: Array, x: Array, y: Array) -> None:
    """Fill y [T, K, n] with weight[:, :J] x + bias, for x [T, J, n]."""
    weight, zero = weight_of(layer, parameters), x.dtype.type(0)
    for t in range(x.shape[0]):
        for k in range(y.shape[1]):
            row, bias = y[t, k], parameters[layer.bias + k] if layer.bias >= 0 else zero
            for n in range(row.size):
                row[n] = bias
        add_product(weight, 0, x[t], y[t])


@compiled
def linear_backward(layer: Any, x: Array, grad_y: Array, grads: Array, space: Array) -> None:
    """Add the gradients of weight[:, :J] and the bias, for x [T, J, n] and grad_y [T, K, n]."""
    grad = feature_first(grad_y, space)
    add_outer(grad, feature_first(x, space[grad.size :]), 0, weight_of(layer, grads), 0)
    if layer.bias >= 0:
        add_rows(grad, grads[layer.bias : layer.bias + layer.outputs])


@compiled
def linear_input(layer: Any, parameters: Array, grad_y: Array, grad_x: Array) -> None:
    """Fill grad_x [T, J, n] from grad_y [T, K, n]: weight[:, :J] transposed, times grad_y."""
    back = transposed(weight_of(layer, parameters), 0, layer.inputs)
    grad_x[:] = 0
    for t in range(grad_y.shape[0]):
        add_product(back, 0, grad_y[t], grad_x[t])


@compiled
def recurrent(layer: Any, parameters: Array, x: Array, i: Array, s: Array, h: Array) -> None:
    """`linear_recurrent_step` around a neuron: fills s and h [T, F, n], and i as working space."""
    linear(layer, parameters, x, i)
    weight, constants = weight_of(layer, parameters), constants_of(layer)
    v = np.full(i[0].size, i.dtype.type(constants.v_rest))
    for t in range(i.shape[0]):
        if t > 0:
            add_product(weight, layer.inputs, s[t - 1], i[t])
        fire_row(flat(i[t]), v, flat(s[t]), flat(h[t]), constants)


@compiled
def recurrent_backward(
    layer: Any, parameters: Array, h: Array, grad_s: Array, grad_i: Array
) -> None:
    """Fill grad_i [T, F, n]; adds the gradient of the feedback, for_y^T dL/di, to grad_s."""
    constants = constants_of(layer)
    back = transposed(weight_of(layer, parameters), layer.inputs, layer.inputs)
    grad_v = np.zeros(h[0].size, h.dtype)
    for t in range(h.shape[0] - 1, -1, -1):
        if t < h.shape[0] - 1:
            add_product(back, 0, grad_i[t + 1], grad_s[t])
        slope_row(flat(h[t]), flat(grad_i[t]), constants)
        fire_row_backward(flat(grad_s[t]), grad_v, flat(h[t]), flat(grad_i[t]), constants)


@compiled
def decay(layer: Any, parameters: Array) -> float:
    """A filter's k, as in `synapse.SynapseFilter.decay`."""
    one = parameters.dtype.type(1)
    return one / (one + np.exp(-parameters[layer.weight])) if layer.weight >= 0 else layer.k


@compiled
def forward(layers: Any, parameters: Array, x: Array, space: Array, spare: Array) -> None:
    """Fill each layer's output and potentials in `space`, at whose beginning is x [T, F, n]."""
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
                neuron_part(0, 1, rows(x), v, rows(y), rows(h), constants_of(layer))
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
    """Add the gradient of every parameter to `grads`.

    spares: arrays of space's size; the first one begins with the gradient of the last output.
    """
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
                constants = constants_of(layer)
                neuron_backward_part(0, 1, rows(grad_y), grad_v, rows(h), rows(grad_x), constants)
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
    """Add the gradient of for_y, from s and grad_i [T, F, n]."""
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
    """Fill x [T, H, n] with `chosen` [n] of columns [M, T, H], times scale plus shift."""
    real = x.dtype.type
    for t in range(x.shape[0]):
        for j in range(x.shape[1]):
            row = x[t, j]
            for n in range(row.size):
                row[n] = real(shift) + real(scale) * real(columns[chosen[n], t, j])


@compiled
def add_loss(
    s: Array,
    labels: NDArray[np.int64],
    chosen: NDArray[np.int64],
    count: int,
    grad: Array,
    sums: NDArray[np.float64],
) -> None:
    """Add a block's loss and hits to `metrics.Sums`; fill grad with the gradient of the loss.

    Args:
        s, grad: spikes of the last layer, whose means over T are the rates, and dL/ds: [T, C, n].
        labels, chosen: the labels of all pictures [M], and the block's pictures among them [n].
        count: samples of the whole batch, over which `metrics.rate_loss` is a mean.
        sums: the totals of `metrics.Sums`, [4].
    """
    real = s.dtype.type
    steps, classes, lanes = s.shape
    rates = np.zeros(classes * lanes, s.dtype)
    for t in range(steps):
        spikes = flat(s[t])
        for j in range(rates.size):
            rates[j] += spikes[j]
    for j in range(rates.size):
        rates[j] /= real(steps)
    for n in range(lanes):
        y, behind, loss = labels[chosen[n]], 0, 0.0
        r_y = rates[y * lanes + n]
        for c in range(classes):
            r = rates[c * lanes + n]
            behind += r < r_y or (r == r_y and c > y)
            error = r - real(c == y)
            loss += float(error) * float(error)
            grad[0, c, n] = real(2) * error / real(count * classes * steps)
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
    """Compute this part's share of a batch.

    Args:
        columns, labels, indices: all pictures [M, T, H] and labels [M]; those of the batch [N].
        scale, shift: the normalization of a pixel.
        layers: records of LAYER; parameters: all weights and biases, [P].
        spaces: working space, [parts, 4, S]: the layers' outputs and potentials, two gradients,
            and copies with features first.
        grads, sums: each part's gradients [parts, P] and totals of `metrics.Sums` [parts, 4],
            filled.
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
        add_loss(s, labels, chosen, len(indices), grad_s, sums[part])
        backward(layers, parameters, x, space, (grad, other, spaces[part, 3]), grads[part])


@compiled
def chain(threads: int, *arguments: Any) -> None:
    """`chain_part` on so many threads."""
    fork(chain_part, threads, arguments)
