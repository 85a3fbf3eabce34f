"""What a compiled training step computes for a chain of layers: one loop, compiled by numba.

It goes from uint8 pictures to the gradient of every weight: gather and normalize a batch, run the
layers forward, take the loss and the sums of `metrics.rate_loss` and `metrics.Sums`, run the layers
backward. The equations are those of the step functions; rows.py has the neurons and the filters,
products.py the products. Left out: float16, surrogates whose slope is GIVEN, and layers without a
time axis.

Time is outside and layers inside: a block of samples passes through all layers at one step before
the next step begins, so that the rows of a step stay in the processor's first cache. In a row the n
samples of a block are last, [F, n]; n is whole vectors, and a block that has fewer samples repeats
its last one, without a gradient. What the backward pass needs is kept for all steps, [T, F, n], and
overwritten where that is possible: a neuron's potentials lie where its input was, and the gradients
of the input where the potentials were.

With `half`, everything is rounded to bfloat16 where torch's autocast on the CPU rounds it: pixels,
a linear layer's weights, output and gradients, a filter's output and its gradient. Neurons, traces
and the feedback of a recurrent layer are in float32.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fold import fold, unfold
from .layout import FILTER, LINEAR, NEURON, RECURRENT, Block, constants_of, width
from .loops import share
from .openmp import compiled, fork, inlined, inner
from .products import add_outer, product, transpose
from .rows import (
    Array,
    copy,
    fill,
    filter_row,
    filter_row_backward,
    fire_row,
    fire_row_backward,
    round_row,
    rounded,
    slope_row,
)
from .tiles import VECTOR, lanes

SAMPLES = 64  # the most of a block; more would leave the second cache
PIXELS = 4  # read at once, as a word


@inner
def round_linear(layers: Any, values: Array) -> None:
    """Round what a linear layer has in half precision: weight and bias, or their gradients."""
    for layer in layers:
        if layer.kind == LINEAR or layer.kind == RECURRENT:
            for k in range(layer.outputs):
                row = lanes(values, layer.weight + k * width(layer), layer.inputs)
                round_row(row)
            if layer.bias >= 0:
                bias = lanes(values, layer.bias, layer.outputs)
                round_row(bias)


@inner
def prepared(
    layers: Any, folds: Any, size: int, parameters: Array, half: bool
) -> tuple[Array, Array]:
    """The parameters as the layers use them, `size` in all, and the same with weights transposed.

    Behind both are zeros, as many as the widest layer has features.
    """
    widest = 0
    for layer in layers:
        widest = max(widest, layer.inputs, layer.outputs)
    straight = np.zeros(size + widest, parameters.dtype)
    straight[: len(parameters)] = parameters
    fold(folds, straight)
    if half:
        round_linear(layers, straight)
    turned = straight.copy()
    for layer in layers:
        if layer.kind == LINEAR or layer.kind == RECURRENT:
            transpose(turned, layer.weight, layer.outputs, width(layer))
    return straight, turned


@inner
def decay(layer: Any, parameters: Array) -> float:
    """A filter's k, as in `synapse.SynapseFilter.decay`."""
    one = parameters.dtype.type(1)
    return one / (one + np.exp(-parameters[layer.weight])) if layer.weight >= 0 else layer.k


@inner
def gather(
    words: NDArray[np.uint32],
    chosen: NDArray[np.int64],
    t: int,
    scale: float,
    shift: float,
    word: NDArray[np.uint32],
    x: Array,
) -> None:
    """Fill x [H n] with column t of pictures `chosen` [n], times scale plus shift.

    On little-endian machines, which are all that numba supports.

    Args:
        words: all pictures [M, T H / 4]; the first of the four pixels of a word is its lowest byte.
        word: space for one word of each picture, [n].
    """
    real, n = x.dtype.type, len(chosen)
    times, plus = real(scale), real(shift)
    pixels = x.size // n
    held = -1
    for j in range(pixels):
        w, byte = divmod(t * pixels + j, PIXELS)
        if w != held:
            held = w
            for i in range(n):
                word[i] = words[chosen[i], w]
        row, by = lanes(x, j * n, n), np.uint32(8 * byte)
        for i in range(n):
            row[i] = plus + times * real(np.int32((word[i] >> by) & np.uint32(255)))


@inlined
def grad_at(layer: Any, t: int, block: Block) -> int:
    """Where the gradient of a layer's output at step t begins."""
    if layer.grad_stays:
        return (layer.grad * block.steps + t * layer.outputs) * block.n
    return block.passing + layer.grad * block.n


@inner
def forward_step(
    t: int, block: Block, layers: Any, turned: Array, decays: Array, space: Array
) -> None:
    """Run all layers at step t."""
    steps, n = block.steps, block.n
    for d in range(len(layers)):
        layer = layers[d]
        inputs, outputs = layer.inputs, layer.outputs
        size, state = outputs * n, block.passing + layer.state * n
        x, y = (layer.x * steps + t * inputs) * n, (layer.out * steps + t * outputs) * n
        if layer.kind == FILTER:
            trace = (layer.trace * steps + t * outputs) * n
            before = lanes(space, state if t == 0 else trace - size, size)
            filter_row(lanes(space, x, size), before, lanes(space, trace, size), decays[d])
            if block.half:
                rounded(lanes(space, trace, size), lanes(space, y, size))
            continue
        i = y if layer.kind == LINEAR else (layer.h * steps + t * outputs) * n
        if layer.kind != NEURON:
            bias = layer.bias if layer.bias >= 0 else block.zeros
            product(False, turned, bias, layer.weight, outputs, space, x, inputs, i, outputs, n)
            if block.half:
                round_row(lanes(space, i, size))
        elif not layer.in_place:
            copy(lanes(space, x, size), lanes(space, i, size))
        if layer.kind == RECURRENT and t > 0:
            for_y = layer.weight + inputs * outputs
            product(True, turned, 0, for_y, outputs, space, y - size, outputs, i, outputs, n)
        if layer.kind != LINEAR:
            s, v = lanes(space, y, size), lanes(space, state, size)
            fire_row(lanes(space, i, size), v, s, constants_of(layer))


@inner
def backward_step(
    t: int, block: Block, layers: Any, straight: Array, decays: Array, space: Array
) -> None:
    """Run all layers backward at step t: gradients of inputs and states."""
    steps, n = block.steps, block.n
    for d in range(len(layers) - 1, -1, -1):
        layer = layers[d]
        inputs, outputs = layer.inputs, layer.outputs
        size = outputs * n
        state = block.passing + layer.state * n
        grad_state, spare = lanes(space, state + size, size), lanes(space, state + 2 * size, size)
        grad, to = grad_at(layer, t, block), grad_at(layers[max(d - 1, 0)], t, block)
        grad_i = grad
        if layer.kind == FILTER:
            x, trace = (layer.x * steps + t * inputs) * n, (layer.trace * steps + t * outputs) * n
            before = lanes(space, state if t == 0 else trace - size, size)
            filter_row_backward(
                lanes(space, grad, size), grad_state, lanes(space, x, size), before,
                lanes(space, to, size), spare, decays[d],
            )  # fmt: skip
            if block.half:
                round_row(lanes(space, to, size))
            continue
        if layer.kind != LINEAR:
            h = (layer.h * steps + t * outputs) * n
            if layer.kind == RECURRENT and t + 1 < steps:
                product(
                    True, straight, 0, layer.weight + inputs, inputs + outputs, space, h + size,
                    outputs, grad, outputs, n,
                )  # fmt: skip
            row, constants = lanes(space, h, size), constants_of(layer)
            slope_row(row, spare, constants)
            fire_row_backward(lanes(space, grad, size), grad_state, row, spare, constants)
            grad_i = h
            if layer.kind == NEURON:
                if block.half:
                    round_row(row)
                if d > 0 and not layer.in_place:
                    copy(row, lanes(space, to, size))
                continue
            if block.half:  # the feedback takes the gradient of i as it is
                rounded(row, lanes(space, grad, size))
                grad_i = grad
        if d > 0:
            product(
                False, straight, block.zeros, layer.weight, width(layer), space, grad_i, outputs,
                to, inputs, n,
            )  # fmt: skip
            if block.half:
                round_row(lanes(space, to, inputs * n))


@inner
def add_gradients(
    block: Block, layers: Any, decays: Array, space: Array, ones: Array, sums: Array
) -> None:
    """Add a block's gradients of all parameters to `sums` [P]."""
    steps, n = block.steps, block.n
    for d in range(len(layers)):
        layer = layers[d]
        inputs, outputs = layer.inputs, layer.outputs
        size = outputs * n
        if layer.kind == FILTER and layer.weight >= 0:
            k, grad_k = decays[d], lanes(space, block.passing + layer.state * n + 2 * size, size)
            sums[layer.weight] += grad_k.sum() * k * (1 - k)
        if layer.kind == NEURON or layer.kind == FILTER:
            continue
        grad = (layer.h if layer.kind == RECURRENT else layer.grad) * steps * n
        if layer.kind == RECURRENT:
            s = layer.out * steps * n
            add_outer(
                space, grad + size, outputs, space, s, n, size, outputs, steps - 1, sums,
                layer.weight + inputs, inputs + outputs, n,
            )  # fmt: skip
            if block.half:
                round_row(lanes(space, grad, steps * size))
        x = layer.x * steps * n
        add_outer(
            space, grad, outputs, space, x, n, inputs * n, inputs, steps, sums, layer.weight,
            width(layer), n,
        )  # fmt: skip
        if layer.bias >= 0:
            add_outer(space, grad, outputs, ones, 0, 0, 0, 1, steps, sums, layer.bias, 1, n)


@inner
def add_loss(
    counts: Array,
    labels: NDArray[np.int64],
    chosen: NDArray[np.int64],
    block: Block,
    batch: int,
    grad: Array,
    totals: NDArray[np.float64],
) -> None:
    """Add a block's loss and hits to `metrics.Sums`; fill grad with the gradient of the loss.

    Args:
        counts, grad: spikes of the last layer over all steps, and dL/ds at each step: [C n].
        labels, chosen: the labels of all pictures [M], and the block's pictures among them; where
            there are fewer than n, the samples behind have no gradient.
        batch: samples of the whole batch, over which `metrics.rate_loss` is a mean.
        totals: those of `metrics.Sums`, [4].
    """
    real, steps, n = counts.dtype.type, counts.dtype.type(block.steps), block.n
    classes = len(grad) // n
    fill(grad, real(0))
    for i in range(len(chosen)):
        y, behind, loss = labels[chosen[i]], 0, 0.0
        r_y = counts[y * n + i] / steps
        for c in range(classes):
            r = counts[c * n + i] / steps
            behind += r < r_y or (r == r_y and c > y)
            error = r - real(c == y)
            loss += float(error) * float(error)
            grad[c * n + i] = real(2) * error / real(batch * classes * block.steps)
        totals[0] += loss / classes
        totals[1] += classes - 1 - behind < 1
        totals[2] += classes - 1 - behind < 5
        totals[3] += 1


@inner
def chain_part(
    part: int,
    parts: int,
    words: NDArray[np.uint32],
    steps: int,
    labels: NDArray[np.int64],
    indices: NDArray[np.int64],
    scale: float,
    shift: float,
    layers: Any,
    kept: int,
    half: bool,
    straight: Array,
    turned: Array,
    spaces: Array,
    grads: Array,
    totals: NDArray[np.float64],
) -> None:
    """Compute this part's share of a batch.

    Args:
        words: all pictures, as in `gather`.
        labels, indices: all labels [M]; the pictures of the batch [N].
        scale, shift: the normalization of a pixel.
        layers, kept: records of LAYER and the features kept for all steps, from `lay_out`.
        straight, turned: of `prepared`.
        spaces: working space of each part.
        grads, totals: each part's gradients, of folded matrices too, and totals of `metrics.Sums`
            [parts, 4]; zeros, to which it adds.
    """
    n = min(SAMPLES, -(-len(indices) // (parts * VECTOR)) * VECTOR)
    first, behind = share(part, parts, len(indices), n)
    space, sums = spaces[part], grads[part]
    real = space.dtype.type
    block = Block(steps, n, half, kept * steps * n, grads.shape[1])
    last, pixels = layers[-1], layers[0].inputs
    ones, size = np.ones(n, space.dtype), last.outputs * n
    counts, error = np.empty(size, space.dtype), np.empty(size, space.dtype)
    chosen, word = np.empty(n, np.int64), np.empty(n, np.uint32)
    decays = np.zeros(len(layers), space.dtype)
    for d in range(len(layers)):
        if layers[d].kind == FILTER:
            decays[d] = decay(layers[d], straight)
    for a in range(first, behind, n):
        count = min(n, behind - a)
        for i in range(n):
            chosen[i] = indices[a + min(i, count - 1)]
        for layer in layers:
            if layer.kind != LINEAR:
                state = block.passing + layer.state * n
                fill(lanes(space, state, 3 * layer.outputs * n), real(0))
                if layer.kind != FILTER:
                    fill(lanes(space, state, layer.outputs * n), real(layer.v_rest))
        fill(counts, real(0))
        for t in range(steps):
            x = lanes(space, t * pixels * n, pixels * n)
            gather(words, chosen, t, scale, shift, word, x)
            if half:
                round_row(x)
            forward_step(t, block, layers, turned, decays, space)
            y = lanes(space, (last.out * steps + t * last.outputs) * n, size)
            for j in range(size):
                counts[j] += y[j]
        add_loss(counts, labels, chosen[:count], block, len(indices), error, totals[part])
        if half:
            round_row(error)
        for t in range(steps - 1, -1, -1):
            copy(error, lanes(space, grad_at(last, t, block), size))
            backward_step(t, block, layers, straight, decays, space)
        add_gradients(block, layers, decays, space, ones, sums)


@compiled
def chain(
    threads: int,
    words: NDArray[np.uint32],
    steps: int,
    labels: NDArray[np.int64],
    indices: NDArray[np.int64],
    scale: float,
    shift: float,
    layers: Any,
    folds: Any,
    kept: int,
    half: bool,
    parameters: Array,
    spaces: Array,
    grads: Array,
    parts: NDArray[np.float64],
    gradient: Array,
    totals: NDArray[np.float64],
) -> None:
    """Fill `gradient` [P] with that of the parameters [P]; add the batch to `totals` [4].

    The other arguments are those of `chain_part` on so many threads, whose totals are `parts`, and
    `folds` of `fold.plan`.
    """
    straight, turned = prepared(layers, folds, grads.shape[1], parameters, half)
    grads[:] = 0  # here, since there may be fewer parts than threads
    parts[:] = 0
    fork(
        chain_part,
        threads,
        (
            words, steps, labels, indices, scale, shift, layers, kept, half, straight, turned,
            spaces, grads, parts,
        ),
    )  # fmt: skip
    totals += parts[0]
    for part in range(1, threads):
        grads[0] += grads[part]
        totals += parts[part]
    unfold(folds, straight, grads[0])
    gradient[:] = grads[0, : len(gradient)]
    if half:
        round_linear(layers, gradient)
