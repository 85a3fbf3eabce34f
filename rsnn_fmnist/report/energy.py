"""What a picture costs on hardware that computes only where an input is not 0.

Synaptic operations are counted as by Rueckauer et al. 2017 (doi:10.3389/fnins.2017.00682): spikes
times fan-out. For comparison there are the multiply-accumulates of the same network without spikes,
which uses every weight at every step. A synapse filter is part of the synapses that follow it.

Accumulates and multiply-accumulates are distinguished as by NeuroBench (Yik et al. 2025,
doi:10.1038/s41467-025-56739-4, "synaptic operations"). An input of 0 costs nothing. Any other input
costs, at each synapse, an accumulate if all inputs of the layer are spikes, else a
multiply-accumulate: inputs may be pixels, or a filter's trace, which persists between spikes.

Biases and the arithmetic of neurons and filters are left out.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import ParametrizationList

from ..spiking import LinearRecurrentContainer, SequenceModule, SynapseFilter

# Joules of an operation in 32-bit floating point, 45 nm. Source: Horowitz 2014,
# doi:10.1109/ISSCC.2014.6757323: 0.9 pJ for an addition, 3.7 pJ for a multiplication.
ACCUMULATE, MULTIPLY_ACCUMULATE = 0.9e-12, 4.6e-12

HOOKED = (nn.Linear, nn.Conv1d, nn.Conv2d, LinearRecurrentContainer, SynapseFilter)
WITHOUT_SYNAPSES = (nn.LayerNorm, nn.RMSNorm, ParametrizationList)  # though with matrices, perhaps


@dataclass(frozen=True)
class Operations:
    """Operations per picture; the module's docstring defines how they are counted."""

    synaptic_operations: float  # spikes times fan-out
    accumulates: float  # in layers whose inputs are spikes
    multiply_accumulates: float  # in the other layers
    dense_multiply_accumulates: float  # of the same network without spikes

    @property
    def joules(self) -> float:
        """The energy of the operations alone, without memory and leakage."""
        accumulates = self.accumulates * ACCUMULATE
        return accumulates + self.multiply_accumulates * MULTIPLY_ACCUMULATE

    @property
    def dense_joules(self) -> float:
        """The same for the network without spikes."""
        return self.dense_multiply_accumulates * MULTIPLY_ACCUMULATE


@torch.no_grad()
def count_operations(model: nn.Module, batches: Iterable[Tensor]) -> Operations:
    """Count the operations of `model` on pictures, without changing either.

    The weights of Linear, Conv1d, Conv2d and LinearRecurrentContainer are counted. Products of two
    activations, as in attention written with torch.matmul, are left out.

    Args:
        batches: pictures [N, H, W] as the network receives them.
    Raises:
        ValueError: no pictures; a module of another kind that has weights, a parameter of two axes
            or more, such as ConvTranspose2d or MultiheadAttention; a recurrent container or a
            filter that another module runs step by step, so that its hook is not called; a filter's
            output that is modified before the next layer.
    """
    counter, pictures = _Counter(), 0
    with ExitStack() as stack:
        for name, module in model.named_modules():
            _refuse_unknown(name, module)
            if isinstance(module, HOOKED):
                _refuse_nested(model, name, module)
                hook = partial(counter.hook, name)
                handle = module.register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        for x in batches:
            model(x)
            counter.end_batch()
            pictures += len(x)
    if not pictures:
        raise ValueError("there are no pictures to count operations on")
    return counter.operations(pictures)


def _refuse_unknown(name: str, module: nn.Module) -> None:
    if isinstance(module, (*HOOKED, *WITHOUT_SYNAPSES)):
        return
    for own, p in module.named_parameters(recurse=False):
        if p.dim() >= 2:
            kinds = ", ".join(kind.__name__ for kind in HOOKED[:-1])
            raise ValueError(
                f"{name or 'the model'}, a {type(module).__name__}, has weights ({own}) whose "
                f"operations cannot be counted; known are {kinds}"
            )


def _refuse_nested(model: nn.Module, name: str, module: nn.Module) -> None:
    parts = name.split(".") if name else []
    around = [model.get_submodule(".".join(parts[:n])) for n in range(len(parts))]
    if not isinstance(module, LinearRecurrentContainer | SynapseFilter):
        return
    if any(isinstance(outer, SequenceModule) for outer in around):
        kind = "filter" if isinstance(module, SynapseFilter) else "container"
        raise ValueError(f"{name}: operations of a {kind} in a container cannot be counted")


def active_synapses(layer: nn.Module, x: Tensor) -> float:
    """The number of a layer's synapses whose input, in x, is not 0.

    A convolution of ones counts them at its outputs; padding counts as 0.
    """
    if isinstance(layer, nn.Linear):
        return float((x != 0).sum().item() * layer.out_features)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    convolve: Any = functional.conv1d if isinstance(layer, nn.Conv1d) else functional.conv2d
    active, ones = (x != 0).double(), torch.ones_like(layer.weight, dtype=torch.float64)
    shape = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return float(convolve(active, ones, None, *shape).sum().item())


def _only_spikes(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())


@dataclass
class _Tally:
    """The inputs of one layer so far."""

    active: float = 0.0  # synapses whose input is not 0
    dense: float = 0.0  # all synapses
    only_spikes: bool = True

    def add(self, layer: nn.Module, x: Tensor) -> None:
        self.active += active_synapses(layer, x)
        self.dense += active_synapses(layer, torch.ones_like(x))
        self.only_spikes &= _only_spikes(x)


@dataclass
class _Trace:
    """A filter's output, and its input or, behind another filter, that filter's."""

    name: str
    output: Tensor
    source: Tensor
    used: bool = False  # a layer has received it unmodified
    suspect: str = ""  # a layer that has received what may be the trace, modified

    def is_in(self, x: Tensor) -> bool:
        """Whether x is the output, in the same or another shape."""
        same = x.data_ptr() == self.output.data_ptr() and x.numel() == self.output.numel()
        return x is self.output or (same and x.is_contiguous() and self.output.is_contiguous())


class _Counter:
    """Counts, in forward hooks, the inputs of every layer with synapses."""

    def __init__(self) -> None:
        self._inputs: dict[str, _Tally] = {}
        self._sources: dict[str, _Tally] = {}  # a filter's input in place of its output
        self._traces: list[_Trace] = []

    def hook(
        self,
        name: str,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        named_inputs: dict[str, Tensor],
        output: Tensor,
    ) -> None:
        """Called after a module has run.

        A recurrent container's synapses receive its input and, one step later, its output, which
        may be spikes where the input is not; the output of the last step is counted too.
        """
        (x,) = (*inputs, *named_inputs.values())
        if isinstance(module, SynapseFilter):
            source = self._source(x)
            self._traces.append(_Trace(name, output, x if source is None else source))
        elif isinstance(module, LinearRecurrentContainer):
            self._add(f"{name}.rc x", module.rc, x)
            self._add(f"{name}.rc y", module.rc, output)
        else:
            self._add(name, module, x)

    def _add(self, name: str, layer: nn.Module, x: Tensor) -> None:
        self._inputs.setdefault(name, _Tally()).add(layer, x)
        source = self._source(x)
        if source is not None:
            self._sources.setdefault(name, _Tally()).add(layer, source)
        elif not _only_spikes(x):
            for trace in self._traces:
                trace.suspect = trace.suspect or name

    def _source(self, x: Tensor) -> Tensor | None:
        """The input, shaped as x, of the filter whose output x is; None: of no filter."""
        for trace in self._traces:
            if trace.is_in(x):
                trace.used = True
                return trace.source.reshape(x.shape)
        return None

    def end_batch(self) -> None:
        """Forget the traces.

        Raises:
            ValueError: a trace of spikes has reached no layer unmodified, though one received
                something else than spikes.
        """
        for trace in self._traces:
            if trace.suspect and not trace.used and _only_spikes(trace.source):
                raise ValueError(
                    f"{trace.name}: its output is modified before {trace.suspect} receives it, so "
                    "synaptic operations cannot be counted; pass it on unmodified"
                )
        self._traces.clear()

    def operations(self, pictures: int) -> Operations:
        """Per picture."""
        inputs = self._inputs.values()
        spikes = sum(tally.active for tally in inputs if tally.only_spikes)
        others = sum(tally.active for tally in inputs if not tally.only_spikes)
        traces = {name for name, tally in self._inputs.items() if not tally.only_spikes}
        sources = [tally for name, tally in self._sources.items() if name in traces]
        filtered = sum(tally.active for tally in sources if tally.only_spikes)
        dense = sum(tally.dense for tally in inputs)
        totals = (spikes + filtered, spikes, others, dense)
        return Operations(*(total / pictures for total in totals))
