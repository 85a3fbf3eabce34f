"""Record what a network does: spikes, potentials before the reset, traces of synapse filters.

The values are those that the running backend computes: it passes them to the observer of a module,
which is set only inside the contexts `record` and `count_spikes`. A layer is named after its
attribute in the model; a recurrent container counts as the neuron in it. A module that is used at
several places is one layer, named after the first, and each use appends steps. Copies of a model
are not recorded, even if they are made inside the context.

A SequenceModule of a user's own is seen if it does what a Neuron does: it has an attribute
`observer`, None outside these contexts, and calls it, if it is not None, with its spikes s and
potentials h of n steps, both [n, N, ...], whenever it runs (n is 1 in `step`). Others are listed in
`Recording.unseen`, and a warning names them.

    class Mine(SequenceModule):
        observer: Observer | None = None

        def step(self, x, state=None):
            ...
            if self.observer is not None:
                self.observer(s[None], h[None])
            return s, v
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import warn
from .neuron import Observer
from .sequence import SequenceModule, TimeDistributed
from .synapse import SynapseFilter

EXACT = 2**24  # float32 represents every integer up to here

M = TypeVar("M", bound=nn.Module)


def layers(model: nn.Module, kind: type[M]) -> dict[str, M]:
    """The modules of class `kind` in `model`, by name.

    "sn1" is model.sn1, or the neuron in the container model.sn1. If a container holds several, they
    are "sn1.0", "sn1.2" and so on. The model itself is "model".
    """
    return _named(
        {path: module for path, module in model.named_modules() if isinstance(module, kind)}
    )


def spiking_layers(model: nn.Module) -> dict[str, SequenceModule]:
    """The modules of `model` that call an observer with s and h, by name as in `layers`."""
    return _named(
        {path: module for path, module in _sequence_modules(model) if _is_spiking(module)}
    )


def unseen_layers(model: nn.Module) -> dict[str, SequenceModule]:
    """The modules of `model` with memory that call no observer, nor contain another such module."""
    return _named(
        {
            path: module
            for path, module in _sequence_modules(model)
            if not hasattr(module, "observer") and len(list(_sequence_modules(module))) == 1
        }
    )


def _sequence_modules(model: nn.Module) -> Iterator[tuple[str, SequenceModule]]:
    for path, module in model.named_modules():
        if isinstance(module, SequenceModule) and not isinstance(module, TimeDistributed):
            yield path, module


def _is_spiking(module: nn.Module) -> bool:
    return hasattr(module, "observer") and not isinstance(module, SynapseFilter)


def _named(found: dict[str, M]) -> dict[str, M]:
    """Modules by path -> by name, see `layers`."""
    short = [_container(path) or "model" for path in found]
    return {
        name if short.count(name) == 1 else _without_containers(path): module
        for name, (path, module) in zip(short, found.items(), strict=True)
    }


def _container(path: str) -> str:
    """The path of the outermost container around `path`; the path itself if there is none."""
    return ".".join(takewhile(lambda part: part != "sub_module", path.split(".")))


def _without_containers(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != "sub_module")


@dataclass(frozen=True)
class Layer:
    """What a layer of neurons did: spikes s and potentials before the reset h, both [T, N, ...]."""

    s: Tensor
    h: Tensor
    v_threshold: Any  # a float; None if the layer has none, or not one number


class Recording(Mapping[str, Layer]):
    """What `record` has recorded so far: a Layer for each layer of neurons that has run, by name.

    Steps are in the order in which they ran. Tensors are detached and remain on their device.
    `order` lists the names of all layers, synapse filters included, in the order of the model.
    `unseen` lists the modules with memory that are not recorded because they have no observer.
    """

    def __init__(self, model: nn.Module) -> None:
        neurons, filters = spiking_layers(model), layers(model, SynapseFilter)
        self.unseen = list(unseen_layers(model))
        self._thresholds = {name: _threshold(neuron) for name, neuron in neurons.items()}
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
        s, h = _joined(name, s_parts), _joined(name, h_parts)
        return Layer(s, h, self._thresholds[name])

    def __iter__(self) -> Iterator[str]:
        return (name for name, parts in self._neurons.items() if parts)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def traces(self) -> dict[str, Tensor]:
        """The trace y [T, N, ...] of every synapse filter that has run, by name."""
        return {name: _joined(name, parts) for name, parts in self._filters.items() if parts}


def _threshold(layer: nn.Module) -> float | None:
    value = getattr(layer, "v_threshold", None)
    return float(value) if isinstance(value, Real) else None


def _joined(name: str, parts: Any) -> Tensor:
    """Parts [n, N, ...] of successive steps as one [T, N, ...].

    Raises:
        ValueError: their shapes differ behind the first axis.
    """
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"{name} has run on different shapes, {sorted(shapes)}: record each pass by itself"
        )
    return torch.cat(tuple(parts)) if len(parts) > 1 else parts[0]


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record every spiking layer of `model` inside the context.

        with record(model) as recording:
            model(x)
        recording["sn1"].h              # [T, N, F]

    Calls of forward, sequence and step are recorded, on any backend. It takes memory for s and h of
    every step; outside the context it costs nothing.
    """
    recording = Recording(model)
    _warn_of_unseen(tuple(recording.unseen))
    with ExitStack() as stack:
        for name, neuron in spiking_layers(model).items():
            parts = recording._neurons[name]
            stack.enter_context(
                _observed(
                    neuron, lambda s, h, p=parts: p.append((s.detach().clone(), h.detach().clone()))
                )
            )
        for name, synapse in layers(model, SynapseFilter).items():
            traces = recording._filters[name]
            stack.enter_context(_observed(synapse, lambda y, p=traces: p.append(y.clone())))
        yield recording


@dataclass(frozen=True)
class Firing:
    """How a layer fires; all values are in [0, 1]."""

    rate: float  # spikes per neuron and step
    never: float  # share of neurons that fire at no step
    always: float  # share of neurons that fire at every step


class SpikeCounts:
    """The number of spikes of every neuron, summed exactly over steps and samples on the device."""

    def __init__(self) -> None:
        # a layer that runs on several shapes has counts for each of them
        self._spikes: dict[str, dict[torch.Size, Tensor]] = {}
        self._steps: dict[str, dict[torch.Size, int]] = {}

    def observer(self, name: str) -> Observer:
        """A function that adds the spikes of a layer, s [n, N, ...]."""
        spikes, steps = self._spikes.setdefault(name, {}), self._steps.setdefault(name, {})

        def add(s: Tensor, _: Tensor) -> None:
            over = (0, 1) if s.dim() > 1 else (0,)
            shape, seen = s.shape[len(over) :], s.shape[: len(over)].numel()
            dtype = torch.float32 if seen <= EXACT else torch.int64  # faster, if exact
            count = s.sum(over, dtype=dtype).long()
            spikes[shape] = spikes[shape] + count if shape in spikes else count
            steps[shape] = steps.get(shape, 0) + seen

        return add

    def cpu(self) -> "SpikeCounts":
        """A copy on the CPU."""
        moved = SpikeCounts()
        moved._steps = self._steps
        moved._spikes = {
            name: {shape: count.cpu() for shape, count in spikes.items()}
            for name, spikes in self._spikes.items()
        }
        return moved

    def add(self, other: "SpikeCounts") -> None:
        """Add the counts of other samples; they must be on the same device."""
        for name, spikes in other._spikes.items():
            own, steps = self._spikes.setdefault(name, {}), self._steps.setdefault(name, {})
            for shape, count in spikes.items():
                own[shape] = own[shape] + count if shape in own else count
                steps[shape] = steps.get(shape, 0) + other._steps[name][shape]

    def firing(self) -> dict[str, Firing]:
        """How each layer that has run fires, by name; waits for the device."""
        return {name: self._of(name) for name, spikes in self._spikes.items() if spikes}

    def _of(self, name: str) -> Firing:
        steps = self._steps[name]
        counts = {shape: count.cpu().double() for shape, count in self._spikes[name].items()}
        share = torch.cat([count.flatten() / steps[shape] for shape, count in counts.items()])
        rate, never, always = share.mean(), (share == 0).sum(), (share == 1).sum()
        return Firing(rate.item(), never.item() / len(share), always.item() / len(share))


@contextmanager
def count_spikes(model: nn.Module) -> Iterator[SpikeCounts]:
    """Count the spikes of every layer of neurons of `model`; far cheaper than recording them."""
    counts = SpikeCounts()
    _warn_of_unseen(tuple(unseen_layers(model)))
    with ExitStack() as stack:
        for name, neuron in spiking_layers(model).items():
            stack.enter_context(_observed(neuron, counts.observer(name)))
        yield counts


@cache
def _warn_of_unseen(names: tuple[str, ...]) -> None:
    """Warn, once for the same names, of layers whose activity is not recorded."""
    if names:
        warn(
            f"the activity of {', '.join(names)} is not recorded: a layer of your own needs an "
            "`observer`, see docs/inside.md"
        )


def is_observed(model: nn.Module) -> bool:
    """Whether `model` has forward or backward hooks or an observer, or all modules have hooks.

    A step that does not call the modules calls none of these.
    """
    everywhere = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return bool(everywhere) or any(
        m._forward_hooks
        or m._forward_pre_hooks
        or m._backward_hooks
        or m._backward_pre_hooks
        or getattr(m, "observer", None)
        for m in model.modules()
    )


class _Observers:
    """The observers of a module. A copy, pickled or not, is None: copies have no observers."""

    def __init__(self, given: Any) -> None:
        self.given = given  # the observer that the module had
        self.functions: list[Any] = [] if given is None else [given]

    def __call__(self, *values: Tensor) -> None:
        for function in self.functions:
            function(*values)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


@contextmanager
def _observed(module: Any, function: Any) -> Iterator[None]:
    """Have `module` call `function` too, beside the observers that it has already."""
    if not isinstance(module.observer, _Observers):
        module.observer = _Observers(module.observer)
    observers = module.observer
    observers.functions.append(function)
    try:
        yield
    finally:
        observers.functions = [other for other in observers.functions if other is not function]
        if observers.functions in ([], [observers.given]):
            del module.observer
            if observers.given is not None or not hasattr(module, "observer"):
                module.observer = observers.given
