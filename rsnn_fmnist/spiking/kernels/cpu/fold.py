"""A linear layer before a recurrent one, folded into the recurrent one's half for the input.

    rc(cat(W x + b, y)) = (for_x W) x + for_y y + (for_x b + bias)

So the layers take one product a step instead of two, forward and backward, and keep nothing in
between; from the gradients of the folded matrix and bias, G and g, follow once a batch

    dL/dfor_x = G W^T + g b^T,  dL/dW = for_x^T G,  dL/db = for_x^T g,  dL/dbias = g

It rounds differently than two products do, and is left out where what lies between is rounded, in
mixed precision. The folded matrix, [F, J + F] with for_y in it, and its bias lie behind the
parameters.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import LINEAR, RECURRENT
from .openmp import reassociated
from .rows import Array
from .tiles import lanes

FOLD = np.dtype(
    [
        ("inputs", np.int64),  # J
        ("outputs", np.int64),  # F, of both layers
        # indices of first values: of the linear layer, the recurrent one, and what they become
        ("linear", np.int64),
        ("linear_bias", np.int64),  # this and the next may be absent, below 0
        ("recurrent_bias", np.int64),
        ("recurrent", np.int64),
        ("weight", np.int64),
        ("bias", np.int64),
    ],
    align=True,
)


def plan(layers: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Fold what can be folded -> the layers that are left, the folds, values behind `count`."""
    left: list[Any] = []
    folds, size = [], 0
    for layer in layers:
        if layer["kind"] != RECURRENT or not left or left[-1]["kind"] != LINEAR:
            left.append(layer.copy())
            continue
        before, merged = left.pop(), layer.copy()
        fold = np.zeros((), FOLD)
        fold["inputs"], fold["outputs"] = before["inputs"], layer["outputs"]
        fold["linear"], fold["linear_bias"] = before["weight"], before["bias"]
        fold["recurrent"], fold["recurrent_bias"] = layer["weight"], layer["bias"]
        fold["weight"] = count + size
        size += int(layer["outputs"] * (before["inputs"] + layer["outputs"]))
        fold["bias"] = count + size
        size += int(layer["outputs"])
        merged["inputs"], merged["weight"], merged["bias"] = (
            before["inputs"],
            fold["weight"],
            fold["bias"],
        )
        left.append(merged)
        folds.append(fold)
    return np.array(left, layers.dtype), np.array(folds, FOLD), size


@reassociated
def add_scaled(target: Array, factor: Any, source: Array) -> None:
    """target += factor * source."""
    for j in range(target.size):
        target[j] += factor * source[j]


@reassociated
def dot(a: Array, b: Array) -> Any:
    total = a.dtype.type(0)
    for j in range(a.size):
        total += a[j] * b[j]
    return total


@reassociated
def fold(folds: Any, values: Array) -> None:
    """Fill in the folded matrices and biases, from the parameters in front of them."""
    zero = values.dtype.type(0)
    for f in folds:
        size, columns = f.outputs, f.inputs + f.outputs
        for k in range(size):
            target = lanes(values, f.weight + k * columns, columns)
            source = lanes(values, f.recurrent + k * 2 * size, 2 * size)
            bias = values[f.recurrent_bias + k] if f.recurrent_bias >= 0 else zero
            for j in range(f.inputs):
                target[j] = zero
            for m in range(size):
                row = lanes(values, f.linear + m * f.inputs, f.inputs)
                add_scaled(lanes(target, 0, f.inputs), source[m], row)
                if f.linear_bias >= 0:
                    bias += source[m] * values[f.linear_bias + m]
                target[f.inputs + m] = source[size + m]
            values[f.bias + k] = bias


@reassociated
def unfold(folds: Any, values: Array, grads: Array) -> None:
    """Add to the gradients of the parameters what follows from those of the folded ones."""
    for f in folds:
        size, columns = f.outputs, f.inputs + f.outputs
        for k in range(size):
            matrix, bias = lanes(grads, f.weight + k * columns, columns), grads[f.bias + k]
            weights = lanes(values, f.recurrent + k * 2 * size, 2 * size)
            target = lanes(grads, f.recurrent + k * 2 * size, 2 * size)
            for m in range(size):
                first = f.linear + m * f.inputs
                row = lanes(matrix, 0, f.inputs)
                target[m] += dot(row, lanes(values, first, f.inputs))
                target[size + m] += matrix[f.inputs + m]
                add_scaled(lanes(grads, first, f.inputs), weights[m], row)
                if f.linear_bias >= 0:
                    target[m] += bias * values[f.linear_bias + m]
                    grads[f.linear_bias + m] += weights[m] * bias
            if f.recurrent_bias >= 0:
                grads[f.recurrent_bias + k] += bias
