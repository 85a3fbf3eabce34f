"""Backend "cupy": the references' names and signatures, on a CUDA device.

They compute in float32, or in float64 if the input or the state is float64; half precision is read
and written as it is. Potentials are stored only if a gradient may be needed or there is an
observer. `refusal` returns why a call cannot be run, `missing` what a device lacks.
"""

from typing import Any

from torch import Tensor

from ...neuron import IF, LIF, NeuronSettings, Observer
from ...sequence import State
from .. import calls
from . import functions
from .launch import missing

__all__ = ["filter_sequence", "linear_recurrent_sequence", "missing", "neuron_sequence", "refusal"]


def refusal(
    x_seq: Tensor, *, k: Tensor | float = 0.0, weight: Tensor | None = None, **settings: Any
) -> str | None:
    """Why x_seq [T, ...] cannot be run with a reference's keyword arguments; None: it can."""
    if isinstance(k, Tensor) and k.device != x_seq.device:
        return f"k is on {k.device}, the input on {x_seq.device}"
    if weight is not None and weight.shape[0] > functions.MOST_FEATURES:
        return (
            f"the layer has {weight.shape[0]} features, and a block only "
            f"{functions.MOST_FEATURES} threads"
        )
    return calls.refusal(x_seq, k=k, weight=weight, **settings)


def neuron_sequence(
    x_seq: Tensor, v: Tensor, *, neuron: NeuronSettings, observe: Observer | None = None
) -> tuple[Tensor, Tensor]:
    """`spiking.neuron.neuron_sequence`."""
    return calls.neuron_sequence(functions, x_seq, v, neuron, observe)


def filter_sequence(x_seq: Tensor, y: Tensor, *, k: Tensor | float) -> tuple[Tensor, Tensor]:
    """`spiking.synapse.filter_sequence`; a k that is a tensor stays on the device."""
    x, y = calls.prepared(functions, x_seq, y)
    if isinstance(k, Tensor):
        k = k.to(y.dtype)
    if calls.differentiable(x, y, k):
        y_seq, y = functions.Filter.apply(x, y, k)
    else:
        y_seq, _, y = functions.filtered(x, y, k, keep_trace=False)
    return y_seq.to(x_seq.dtype), y


def linear_recurrent_sequence(
    x_seq: Tensor, state: State, *, weight: Tensor, bias: Tensor | None, sub_module: IF | LIF
) -> tuple[Tensor, State]:
    """`spiking.recurrent.linear_recurrent_sequence` around an IF or LIF."""
    return calls.linear_recurrent_sequence(functions, x_seq, state, weight, bias, sub_module)
