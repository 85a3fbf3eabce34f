"""A chain's layers as records, and where a block of samples keeps their values; see `chain`."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .openmp import inlined
from .rows import NeuronConstants

LINEAR, NEURON, FILTER, RECURRENT = range(4)
ABSENT = -1  # no such parameter

LAYER = np.dtype(
    [
        ("kind", np.int64),
        ("inputs", np.int64),
        ("outputs", np.int64),
        ("weight", np.int64),  # index of its first value among the parameters, or of a filter's w
        ("bias", np.int64),  # likewise; both may be ABSENT
        ("k", np.float64),  # a filter's decay if it is not learnt
        ("leaky", np.bool_),  # this and the next seven are NeuronConstants
        ("tau", np.float64),
        ("v_threshold", np.float64),
        ("v_rest", np.float64),
        ("hard", np.bool_),
        ("attached", np.bool_),
        ("slope", np.int64),
        ("alpha", np.float64),
        # Where things lie, set by `lay_out`: the features in front of them in the space of a block,
        # in the part for all steps or in that for one step, which comes behind it.
        ("x", np.int64),  # its input
        ("out", np.int64),  # its output
        ("h", np.int64),  # a neuron's input, then potential, then gradient of the input
        ("trace", np.int64),  # a filter's trace, of which the output may be rounded
        ("grad", np.int64),  # the gradient of its output
        ("grad_stays", np.bool_),  # in the part for all steps, for the gradient of a weight
        ("in_place", np.bool_),  # h is where the layer before has its output
        ("state", np.int64),  # for one step: state, its gradient, and a spare row
    ],
    align=True,
)


class Block(NamedTuple):
    """How the values of a block of samples lie in its space.

    [features for all steps, T, n], then [features for one step, n] from index `passing` on.
    """

    steps: int
    n: int  # samples, whole vectors
    half: bool
    passing: int
    zeros: int  # index of zeros behind the weights: the bias of layers without one


def lay_out(layers: NDArray[Any], pixels: int, half: bool) -> tuple[int, int]:
    """Set where each layer's values lie -> features kept for all steps, and for one step."""
    kept, passing = pixels, 0
    for d, layer in enumerate(layers):
        before = layers[d - 1] if d else None
        after = layers[d + 1] if d + 1 < len(layers) else None
        outputs = int(layer["outputs"])
        layer["x"] = before["out"] if before is not None else 0
        layer["out"], kept = kept, kept + outputs
        if layer["kind"] == LINEAR:
            # the neurons behind it turn its output into the gradient of its output
            layer["grad_stays"], layer["grad"] = True, layer["out"]
            if after is None or after["kind"] != NEURON:
                layer["grad"], kept = kept, kept + outputs
            continue
        layer["grad"], passing = passing, passing + outputs
        layer["state"], passing = passing, passing + 3 * outputs
        if layer["kind"] == FILTER:
            layer["trace"] = layer["out"]
            if half:
                layer["trace"], kept = kept, kept + outputs
            continue
        layer["h"] = kept
        if layer["kind"] == NEURON and before is not None and before["kind"] == LINEAR:
            layer["in_place"], layer["h"] = True, before["out"]
        else:
            kept += outputs
    return kept, passing


@inlined
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


@inlined
def width(layer: Any) -> int:
    """The columns of the layer's weight; of a recurrent one, [F, 2 F], for_x comes first."""
    return layer.inputs + (layer.outputs if layer.kind == RECURRENT else 0)
