"""Spiking layers over time: neurons, a stateful synapse, recurrent containers.

Sequences are time first, [T, N, ...]: T steps, N samples. `sequence.SequenceModule` describes how
every module is called.
"""

from .backend import set_backend
from .monitor import record
from .neuron import IF, LIF, Observer
from .recurrent import ElementWiseRecurrentContainer, LinearRecurrentContainer
from .sequence import BackendUnavailableError, SequenceModule, TimeDistributed, step
from .surrogate import SURROGATES, ATan, Erf, PiecewiseQuadratic, Sigmoid, SoftSign, Surrogate
from .synapse import SynapseFilter

__all__ = [
    "IF",
    "LIF",
    "SURROGATES",
    "ATan",
    "BackendUnavailableError",
    "ElementWiseRecurrentContainer",
    "Erf",
    "LinearRecurrentContainer",
    "Observer",
    "PiecewiseQuadratic",
    "SequenceModule",
    "Sigmoid",
    "SoftSign",
    "Surrogate",
    "SynapseFilter",
    "TimeDistributed",
    "record",
    "set_backend",
    "step",
]
