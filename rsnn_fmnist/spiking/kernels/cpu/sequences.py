"""Backend "numba": the references' names and signatures, on the CPU.

They compute in float32, or in float64 if the input or the state is float64; the output has the
input's dtype. Potentials are stored only if a gradient may be needed or there is an observer.
`refusal` returns why a call cannot be run.
"""

from torch import Tensor

from ...neuron import IF, LIF, NeuronSettings, Observer
from ...sequence import State
from .. import calls
from ..calls import refusal
from . import functions

__all__ = ["filter_sequence", "linear_recurrent_sequence", "neuron_sequence", "refusal"]


def neuron_sequence(
    x_seq: Tensor, v: Tensor, *, neuron: NeuronSettings, observe: Observer | None = None
) -> tuple[Tensor, Tensor]:
    """`spiking.neuron.neuron_sequence`."""
    return calls.neuron_sequence(functions, x_seq, v, neuron, observe)


def filter_sequence(x_seq: Tensor, y: Tensor, *, k: Tensor | float) -> tuple[Tensor, Tensor]:
    """`spiking.synapse.filter_sequence`."""
    x, y = calls.prepared(functions, x_seq, y)
    if calls.differentiable(x, y, k):
        y_seq, y = functions.Filter.apply(x, y, k)
    else:
        y_seq, y = functions.filtered(x, y, functions.number(k))
    return y_seq.to(x_seq.dtype), y


def linear_recurrent_sequence(
    x_seq: Tensor, state: State, *, weight: Tensor, bias: Tensor | None, sub_module: IF | LIF
) -> tuple[Tensor, State]:
    """`spiking.recurrent.linear_recurrent_sequence` around an IF or LIF."""
    return calls.linear_recurrent_sequence(functions, x_seq, state, weight, bias, sub_module)
