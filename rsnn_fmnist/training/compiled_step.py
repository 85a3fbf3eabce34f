"""The gradients of a training step from one compiled CPU loop, for chains of layers.

Such a chain is a `ColumnReader` of Linear layers, IF and LIF neurons, synapse filters and linear
recurrent containers around a neuron, in float32 or float64; `refusal` says why another model is
not. No module's `forward` runs: the loop, spiking/kernels/cpu/chain.py, reads the layers' weights
and computes what autograd does, with sums over features and samples in another order. Needs numba,
so import it only where numba works. Left out: half precision.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.loader import Loader
from ..data.pictures import CLASSES, SIDE
from ..metrics import Sums
from ..models import ColumnReader
from ..spiking import IF, LIF, LinearRecurrentContainer, SynapseFilter
from ..spiking.kernels.cpu import chain
from ..spiking.kernels.cpu.functions import constants_of
from ..spiking.kernels.cpu.loops import GIVEN

KINDS = {
    nn.Linear: chain.LINEAR,
    IF: chain.NEURON,
    LIF: chain.NEURON,
    SynapseFilter: chain.FILTER,
    LinearRecurrentContainer: chain.RECURRENT,
}
ABSENT = -1  # no such parameter
WIDEST = 128  # features; wider layers are faster eagerly, with the products of torch's BLAS
SMALLEST = 16  # samples that are worth a thread of their own


def refusal(model: nn.Module) -> str | None:
    """Why the loop cannot compute the model's gradients; None: it can, if nothing observes it."""
    if type(model) is not ColumnReader or not len(model):
        return f"{type(model).__name__} is not a chain of layers"
    parameters = list(model.parameters())
    if {(p.device.type, p.dtype) for p in parameters} not in (
        {("cpu", torch.float32)},
        {("cpu", torch.float64)},
    ):
        return "its weights are not all float32, or all float64, on the CPU"
    if not all(p.requires_grad for p in parameters):
        return "some of its weights are not learnt"
    reasons = (_layer_refusal(name, layer) for name, layer in model.named_children())
    for reason in filter(None, reasons):
        return reason
    named = dict(model.named_parameters(remove_duplicate=False))
    if len(set(model)) < len(model) or len(named) > len(parameters):
        return "layers share weights"
    if named.keys() != _expected(model):
        return "it has other weights than its layers'"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters):
        return "its parameters have hooks"
    if any("forward" in vars(m) or "sequence" in vars(m) for m in model.modules()):
        return "a layer's forward was replaced"
    if not _fits(model):
        return "its layers do not fit each other"
    return None


def _expected(model: nn.Module) -> set[str]:
    """The names of the parameters that the loop reads."""
    names = set()
    for name, layer in model.named_children():
        within = f"{name}.rc" if isinstance(layer, LinearRecurrentContainer) else name
        linear = layer.rc if isinstance(layer, LinearRecurrentContainer) else layer
        if isinstance(linear, nn.Linear):
            names |= {f"{within}.weight"} | (
                {f"{within}.bias"} if linear.bias is not None else set()
            )
        if isinstance(layer, SynapseFilter) and layer.learnable:
            names.add(f"{name}.w")
    return names


def _fits(model: nn.Module) -> bool:
    """Whether each layer takes what the one before gives, and the last gives CLASSES features."""
    given = SIDE
    for layer in model.children():
        inputs, outputs = features(layer, given)
        if inputs != given or (isinstance(layer, LinearRecurrentContainer) and inputs != outputs):
            return False
        given = outputs
    return given == CLASSES


def _layer_refusal(name: str, layer: nn.Module) -> str | None:
    if type(layer) not in KINDS:
        return f"{name} is a {type(layer).__name__}"
    neuron = layer.sub_module if isinstance(layer, LinearRecurrentContainer) else layer
    if isinstance(layer, LinearRecurrentContainer) and type(neuron) not in (IF, LIF):
        return f"{name} has a {type(neuron).__name__} inside"
    if isinstance(neuron, IF | LIF) and constants_of(neuron.settings()).slope == GIVEN:
        return f"{type(neuron.surrogate).__name__} has no compiled slope"
    widest = max(features(layer, 0))
    if widest > WIDEST:
        return f"{name} has {widest} features, and eager is faster above {WIDEST}"
    return None


def features(layer: nn.Module, inputs: int) -> tuple[int, int]:
    """How many features a layer takes and gives; a layer that keeps their number takes `inputs`."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, LinearRecurrentContainer):
        return layer.rc.out_features, layer.out_features
    return inputs, inputs


class CompiledGradients:
    """Called with a selection, adds it to `sums` and leaves the gradients in the parameters' .grad.

    Args:
        model: one for which `refusal` returns None; its layers' settings are read once, here.
        loader: of the selections.
    """

    def __init__(self, model: nn.Module, loader: Loader, sums: Sums) -> None:
        self.loader = loader
        self.sums = sums
        self.parameters = list(model.parameters())
        self.flat = nn.utils.parameters_to_vector(self.parameters).detach()
        self.gradient = torch.zeros_like(self.flat)
        sizes = [p.numel() for p in self.parameters]
        for p, gradient in zip(self.parameters, torch.split(self.gradient, sizes), strict=True):
            p.grad = gradient.view_as(p)
        self.layers, self.size = program(model)
        self.spaces = np.empty((0, 4, 0), self.flat.numpy().dtype)
        self._compile()

    def __call__(self, selection: Tensor) -> None:
        torch.cat([p.detach().reshape(-1) for p in self.parameters], out=self.flat)
        pictures = self.loader.pictures
        arguments = self._arguments(pictures.columns, pictures.labels, selection)
        chain.chain(*arguments)
        *_, gradients, sums = arguments
        np.sum(gradients, axis=0, out=self.gradient.numpy())
        self.sums.totals += torch.from_numpy(sums.sum(0))

    def _compile(self) -> None:
        """Compile the loop on a blank picture, so that no step's time includes it."""
        blank = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
        only = torch.zeros(1, dtype=torch.int64)
        chain.chain(*self._arguments(blank, only, only))

    def _arguments(self, columns: Tensor, labels: Tensor, indices: Tensor) -> tuple[Any, ...]:
        """The arguments of chain.chain, for pictures `indices` [N] of columns [M, T, H]."""
        threads = max(1, min(torch.get_num_threads(), len(indices) // SMALLEST))
        self._make_space(threads, columns.shape[1] * min(len(indices), chain.LANES))
        return (
            threads,
            columns.numpy(),
            labels.numpy(),
            indices.numpy(),
            self.loader.scale,
            self.loader.shift.item(),
            self.layers,
            self.flat.numpy(),
            self.spaces,
            np.zeros((threads, len(self.flat)), self.spaces.dtype),
            np.zeros((threads, 4)),
        )

    def _make_space(self, threads: int, lanes: int) -> None:
        """Make room for a block of `lanes` values of every feature for each thread."""
        if self.spaces.shape[0] < threads or self.spaces.shape[2] < self.size * lanes:
            self.spaces = np.empty((threads, 4, self.size * lanes), self.spaces.dtype)


def program(model: nn.Module) -> tuple[np.ndarray, int]:
    """The layers as the loop reads them, and the number of features that a block holds."""
    layers = np.zeros(len(list(model.children())), chain.LAYER)
    offsets, first = {}, 0
    for name, p in model.named_parameters():
        offsets[name], first = first, first + p.numel()
    held = given = SIDE
    widest = 0
    for record, (name, layer) in zip(layers, model.named_children(), strict=True):
        inputs, outputs = features(layer, given)
        record["kind"], record["inputs"], record["outputs"] = KINDS[type(layer)], inputs, outputs
        within = f"{name}.rc" if isinstance(layer, LinearRecurrentContainer) else name
        weight = f"{name}.w" if isinstance(layer, SynapseFilter) else f"{within}.weight"
        record["weight"] = offsets.get(weight, ABSENT)
        record["bias"] = offsets.get(f"{within}.bias", ABSENT)
        if isinstance(layer, SynapseFilter) and not layer.learnable:
            record["k"] = layer.decay()
        neuron = getattr(layer, "sub_module", layer)
        if isinstance(neuron, IF | LIF):
            for field, value in constants_of(neuron.settings())._asdict().items():
                record[field] = value
        record["out"], record["h"] = held, held + outputs
        held += outputs * (2 if isinstance(neuron, IF | LIF) else 1)
        widest = max(widest, inputs + outputs)
        given = outputs
    return layers, max(held, widest)
