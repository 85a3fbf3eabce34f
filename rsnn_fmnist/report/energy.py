"""What a picture costs a network on hardware that computes only where something happens.

Synaptic operations are counted as by Rueckauer et al. 2017 (doi:10.3389/fnins.2017.00682): spikes
times fan-out, beside the multiply-accumulates of the same network without spikes, which takes every
weight at every step. A synapse filter is part of the synapses behind it.

Accumulates and multiply-accumulates are told apart as by NeuroBench (Yik et al. 2025,
doi:10.1038/s41467-025-56739-4, "synaptic operations"): an input that is 0 costs nothing; one of a
layer that hears only spikes costs an accumulate at each synapse; any other, such as a pixel or a
filter's trace, which goes on between spikes, a multiply-accumulate there.

Biases and the arithmetic of neurons and filters are left out.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..spiking import LinearRecurrentContainer, SequenceModule, SynapseFilter

# Joules of an operation in 32-bit floating point, 45 nm. Source: Horowitz 2014,
# doi:10.1109/ISSCC.2014.6757323: 0.9 pJ an addition, 3.7 pJ a multiplication.
ACCUMULATE, MULTIPLY_ACCUMULATE = 0.9e-12, 4.6e-12

HEARD = (nn.Linear, nn.Conv1d, nn.Conv2d, LinearRecurrentContainer, SynapseFilter)


@dataclass(frozen=True)
class Energy:
    """Operations a picture; the module says how they are counted."""

    synaptic_operations: float  # spikes times fan-out
    accumulates: float  # at synapses that hear spikes
    multiply_accumulates: float  # at synapses that hear anything else
    dense_multiply_accumulates: float  # of the same network without spikes

    @property
    def joules(self) -> float:
        """Of the spiking network, operations only; memory and leakage are left out."""
        accumulates = self.accumulates * ACCUMULATE
        return accumulates + self.multiply_accumulates * MULTIPLY_ACCUMULATE

    @property
    def dense_joules(self) -> float:
        """Of the same network without spikes."""
        return self.dense_multiply_accumulates * MULTIPLY_ACCUMULATE


@dataclass
class _Tally:
    """What has come to the synapses of one layer."""

    operations: float = 0.0
    dense: float = 0.0
    spikes: bool = True  # nothing but 0 and 1 so far

    def add(self, layer: nn.Module, x: Tensor) -> None:
        """Add the input x of the layer."""
        self.operations += reached(layer, x)
        self.dense += reached(layer, torch.ones_like(x))
        self.spikes = self.spikes and _only_spikes(x)


def reached(layer: nn.Module, x: Tensor) -> float:
    """How many synapses of a layer lead from the elements of x that are not 0.

    A convolution with every weight 1 counts them at its outputs; padding is taken for 0.
    """
    if isinstance(layer, nn.Linear):
        return float((x != 0).sum().item() * layer.out_features)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    convolve: Any = functional.conv1d if isinstance(layer, nn.Conv1d) else functional.conv2d
    active, ones = (x != 0).double(), torch.ones_like(layer.weight, dtype=torch.float64)
    shape = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return float(convolve(active, ones, None, *shape).sum().item())


@dataclass
class _Trace:
    """What a filter has made of its source."""

    name: str
    output: Tensor
    source: Tensor
    reached: bool = False  # another layer, as it is
    strangers: list[str] = field(default_factory=list)  # layers that then heard something unknown

    def is_in(self, x: Tensor) -> bool:
        """Whether x is the output, in the same or another shape."""
        same = x.data_ptr() == self.output.data_ptr() and x.numel() == self.output.numel()
        return x is self.output or (same and x.is_contiguous() and self.output.is_contiguous())


def _only_spikes(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())


class _Listener:
    """Hears, by forward hooks, what comes to every layer with synapses."""

    def __init__(self) -> None:
        self.heard: dict[str, _Tally] = {}
        self.through_filters: dict[str, _Tally] = {}
        self._traces: list[_Trace] = []

    def hear(
        self,
        name: str,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        named_inputs: dict[str, Tensor],
        output: Tensor,
    ) -> None:
        """The hook of a module that has run.

        The synapses of a recurrent container hear its input and, one step later, its output, which
        may be spikes where the input is not; those of the last step are counted as the rest.
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
        self.heard.setdefault(name, _Tally()).add(layer, x)
        source = self._source(x)
        if source is not None:
            self.through_filters.setdefault(name, _Tally()).add(layer, source)
        elif not _only_spikes(x):
            for trace in self._traces:
                trace.strangers.append(name)

    def _source(self, x: Tensor) -> Tensor | None:
        """What went into the filter, or the first of several, that x came out of, shaped as x."""
        for trace in self._traces:
            if trace.is_in(x):
                trace.reached = True
                return trace.source.reshape(x.shape)
        return None

    def end_batch(self) -> None:
        """Forget the traces.

        Raises:
            ValueError: a trace of spikes has come to no layer, though one heard something unknown.
        """
        for trace in self._traces:
            if trace.strangers and not trace.reached and _only_spikes(trace.source):
                raise ValueError(
                    f"{trace.name}: its output is changed before {trace.strangers[0]} hears it, "
                    "so that synaptic operations cannot be counted; hand it on as it is"
                )
        self._traces.clear()


@torch.no_grad()
def measure(model: nn.Module, batches: Iterable[Tensor]) -> Energy:
    """Count the operations of `model` on pictures; neither is changed.

    Linear, Conv1d, Conv2d and LinearRecurrentContainer are counted, other weights are not.

    Args:
        batches: pictures [N, H, W] as the network is given them.
    Raises:
        ValueError: no pictures; a recurrent container or a filter that is run step by step inside
            another module over time, so that it cannot be heard; a filter's output that is changed
            on its way to the next layer.
    """
    listener, pictures = _Listener(), 0
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, HEARD):
                _refuse_nested(model, name, module)
                hear = partial(listener.hear, name)
                hook = module.register_forward_hook(hear, with_kwargs=True)
                stack.callback(hook.remove)
        for x in batches:
            model(x)
            listener.end_batch()
            pictures += len(x)
    if not pictures:
        raise ValueError("there are no pictures to count operations on")
    heard = listener.heard
    behind = {name: tally for name, tally in listener.through_filters.items() if tally.spikes}
    accumulates = sum(tally.operations for tally in heard.values() if tally.spikes)
    others = sum(tally.operations for tally in heard.values() if not tally.spikes)
    through_filters = sum(t.operations for name, t in behind.items() if not heard[name].spikes)
    dense = sum(tally.dense for tally in heard.values())
    return Energy(
        (accumulates + through_filters) / pictures,
        accumulates / pictures,
        others / pictures,
        dense / pictures,
    )


def _refuse_nested(model: nn.Module, name: str, module: nn.Module) -> None:
    parts = name.split(".") if name else []
    around = [model.get_submodule(".".join(parts[:n])) for n in range(len(parts))]
    by_steps = any(isinstance(outer, SequenceModule) for outer in around)
    if isinstance(module, LinearRecurrentContainer | SynapseFilter) and by_steps:
        kind = "filter" if isinstance(module, SynapseFilter) else "container"
        raise ValueError(f"{name}: operations of a {kind} in a container cannot be counted")
