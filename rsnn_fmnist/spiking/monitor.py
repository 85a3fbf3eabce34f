"""Look inside a network while it runs: spikes, potentials before the reset, traces of synapses.

The values are those of the backend that runs: its kernels hand them to an observer, which a module
has only for as long as somebody looks. A layer is called by its attribute's name in the model, a
recurrent container counting as the neuron inside. A module that is used at several places is one
layer, by the name of the first: its uses stand one after the other, as further steps. Spiking
modules of a user's own that are no Neuron are not seen; nor is a copy of a model, though made
meanwhile.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .neuron import Neuron, Observer
from .synapse import SynapseFilter

EXACT = 2**24  # float32 holds every whole number up to here

M = TypeVar("M", bound=nn.Module)


def layers(model: nn.Module, kind: type[M]) -> dict[str, M]:
    """The modules of a kind in `model`, by name.

    "sn1" is model.sn1, or the neuron in the container model.sn1. Where a container holds several,
    they are "sn1.0", "sn1.2" and so on; the model itself is "model".
    """
    found = {path: module for path, module in model.named_modules() if isinstance(module, kind)}
    short = [_container(path) or "model" for path in found]
    return {
        name if short.count(name) == 1 else _without_containers(path): module
        for name, (path, module) in zip(short, found.items(), strict=True)
    }


def _container(path: str) -> str:
    """The outermost container around what stands at `path`; the path itself where there is none."""
    return ".".join(takewhile(lambda part: part != "sub_module", path.split(".")))


def _without_containers(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != "sub_module")


@dataclass(frozen=True)
class Layer:
    """What a layer of neurons did: spikes s and potentials before the reset h, [T, N, ...]."""

    s: Tensor
    h: Tensor
    v_threshold: float


class Recording(Mapping[str, Layer]):
    """What `record` has seen so far: a Layer for every layer of neurons that has run, by name.

    Steps stand in the order in which they were run. Tensors are detached and on their device.
    `order` has the names of all layers, synapse filters among them, as they stand in the model.
    """

    def __init__(self, model: nn.Module) -> None:
        neurons, filters = layers(model, Neuron), layers(model, SynapseFilter)
        self._thresholds = {name: neuron.v_threshold for name, neuron in neurons.items()}
        self._neurons: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in neurons}
        self._filters: dict[str, list[Tensor]] = {name: [] for name in filters}
        place = {module: number for number, module in enumerate(model.modules())}
        both: dict[str, nn.Module] = {**neurons, **filters}
        self.order = sorted(both, key=lambda name: place[both[name]])

    def __getitem__(self, name: str) -> Layer:
        parts = self._neurons[name]
        if not parts:
            raise KeyError(f"{name} has not run")
        s_parts, h_parts = zip(*parts, strict=True)
        s, h = _in_turn(name, s_parts), _in_turn(name, h_parts)
        return Layer(s, h, self._thresholds[name])

    def __iter__(self) -> Iterator[str]:
        return (name for name, parts in self._neurons.items() if parts)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def traces(self) -> dict[str, Tensor]:
        """The trace y [T, N, ...] of every synapse filter that has run, by name."""
        return {name: _in_turn(name, parts) for name, parts in self._filters.items() if parts}


def _in_turn(name: str, parts: Any) -> Tensor:
    """[n, N, ...] of successive steps as one [T, N, ...]."""
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"{name} has run on different shapes, {sorted(shapes)}: record each pass by itself"
        )
    return torch.cat(tuple(parts)) if len(parts) > 1 else parts[0]


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record every spiking layer of `model`: with record(model) as rec: model(x); rec["sn1"].h.

    Whatever runs the layers is recorded: forward, sequence or step, on any backend. It costs
    memory for s and h of every step; outside the context nothing.
    """
    recording = Recording(model)
    with ExitStack() as stack:
        for name, neuron in layers(model, Neuron).items():
            parts = recording._neurons[name]
            stack.enter_context(_observed(neuron, lambda s, h, p=parts: p.append((s.clone(), h))))
        for name, synapse in layers(model, SynapseFilter).items():
            traces = recording._filters[name]
            stack.enter_context(_observed(synapse, lambda y, p=traces: p.append(y.clone())))
        yield recording


@dataclass(frozen=True)
class Firing:
    """How a layer fires: spikes a neuron and step; shares of neurons, all in [0, 1]."""

    rate: float
    never: float  # share of neurons without a spike
    always: float  # share of neurons with a spike at every step


class SpikeCounts:
    """The spikes of every neuron, summed over steps and samples on the device, exactly."""

    def __init__(self) -> None:
        # a layer that is used on several shapes is as many layers here
        self._spikes: dict[str, dict[torch.Size, Tensor]] = {}
        self._steps: dict[str, dict[torch.Size, int]] = {}

    def observer(self, name: str) -> Observer:
        """What adds the spikes of a layer, s [n, N, ...]."""
        spikes, steps = self._spikes.setdefault(name, {}), self._steps.setdefault(name, {})

        def add(s: Tensor, _: Tensor) -> None:
            over = (0, 1) if s.dim() > 1 else (0,)
            shape, seen = s.shape[len(over) :], s.shape[: len(over)].numel()
            dtype = torch.float32 if seen <= EXACT else torch.int64  # the faster, if it is exact
            count = s.sum(over, dtype=dtype).long()
            spikes[shape] = spikes[shape] + count if shape in spikes else count
            steps[shape] = steps.get(shape, 0) + seen

        return add

    def cpu(self) -> "SpikeCounts":
        """The same on the CPU."""
        moved = SpikeCounts()
        moved._steps = self._steps
        moved._spikes = {
            name: {shape: count.cpu() for shape, count in spikes.items()}
            for name, spikes in self._spikes.items()
        }
        return moved

    def add(self, other: "SpikeCounts") -> None:
        """Add what was counted of other samples, on the same device."""
        for name, spikes in other._spikes.items():
            own, steps = self._spikes.setdefault(name, {}), self._steps.setdefault(name, {})
            for shape, count in spikes.items():
                own[shape] = own[shape] + count if shape in own else count
                steps[shape] = steps.get(shape, 0) + other._steps[name][shape]

    def firing(self) -> dict[str, Firing]:
        """How every layer that has run fires; waits for the device."""
        return {name: self._of(name) for name, spikes in self._spikes.items() if spikes}

    def _of(self, name: str) -> Firing:
        steps = self._steps[name]
        counts = {shape: count.cpu().double() for shape, count in self._spikes[name].items()}
        share = torch.cat([count.flatten() / steps[shape] for shape, count in counts.items()])
        rate, never, always = share.mean(), (share == 0).sum(), (share == 1).sum()
        return Firing(rate.item(), never.item() / len(share), always.item() / len(share))


@contextmanager
def count_spikes(model: nn.Module) -> Iterator[SpikeCounts]:
    """Count the spikes of every spiking layer of `model`; far cheaper than to record them."""
    counts = SpikeCounts()
    with ExitStack() as stack:
        for name, neuron in layers(model, Neuron).items():
            stack.enter_context(_observed(neuron, counts.observer(name)))
        yield counts


class _Observers:
    """Everybody whom a module tells. A copy of it, pickled or not, is None: nobody."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __call__(self, *seen: Tensor) -> None:
        for observer in self.told:
            observer(*seen)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


@contextmanager
def _observed(module: Any, observer: Any) -> Iterator[None]:
    """Have `module` tell `observer`, beside anybody who is told already."""
    if module.observer is None:
        module.observer = _Observers()
    observers = module.observer
    observers.told.append(observer)
    try:
        yield
    finally:
        observers.told = [other for other in observers.told if other is not observer]
        if not observers.told:
            del module.observer  # the class has None
