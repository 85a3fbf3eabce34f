"""The gradients of a training step from one compiled CPU loop, for chains of layers.

Such a chain is a `ColumnReader` of Linear layers, IF and LIF neurons, synapse filters and linear
recurrent containers around a neuron, in float32, float64 or torch's bfloat16 autocast; `refusal`
says why another model is not. No module's `forward` runs: the loop, spiking/kernels/cpu/chain.py,
reads the layers' weights and computes what autograd does, with sums over features and samples in
another order. Needs numba, so import it only where numba works. Left out: float16.
"""

import numpy as np
import torch
from torch import Tensor, nn

from ..data.loader import Loader
from ..data.pictures import CLASSES, SIDE
from ..metrics import Sums
from ..models import ColumnReader
from ..spiking import IF, LIF, LinearRecurrentContainer, SynapseFilter
from ..spiking.kernels.cpu import chain, layout
from ..spiking.kernels.cpu.fold import FOLD, plan
from ..spiking.kernels.cpu.functions import constants_of
from ..spiking.kernels.cpu.rows import GIVEN
from .flat_parameters import FlatParameters

KINDS = {
    nn.Linear: layout.LINEAR,
    IF: layout.NEURON,
    LIF: layout.NEURON,
    SynapseFilter: layout.FILTER,
    LinearRecurrentContainer: layout.RECURRENT,
}
SMALLEST = 16  # samples that are worth a thread of their own


def refusal(model: nn.Module, *, half: bool = False) -> str | None:
    """Why the loop cannot compute the model's gradients; None: it can, if nothing observes it.

    Args:
        half: in bfloat16 autocast.
    """
    if type(model) is not ColumnReader or not len(model):
        return f"{type(model).__name__} is not a chain of layers"
    parameters = list(model.parameters())
    if {(p.device.type, p.dtype) for p in parameters} not in (
        {("cpu", torch.float32)},
        {("cpu", torch.float64)},
    ):
        return "its weights are not all float32, or all float64, on the CPU"
    if half and type(model[0]) not in (nn.Linear, LinearRecurrentContainer):
        return "in mixed precision it begins with a layer that is not linear"
    if half and parameters[0].dtype != torch.float32:
        return "mixed precision of float64 weights"
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
        if not _has_its_shapes(layer, inputs, outputs):
            return False
        if inputs != given or (isinstance(layer, LinearRecurrentContainer) and inputs != outputs):
            return False
        given = outputs
    return given == CLASSES


def _has_its_shapes(layer: nn.Module, inputs: int, outputs: int) -> bool:
    """Whether the parameters, which may be replaced, have the shapes of the layer's attributes."""
    if isinstance(layer, SynapseFilter):
        return not layer.learnable or layer.w.dim() == 0
    recurrent = isinstance(layer, LinearRecurrentContainer)
    linear = layer.rc if recurrent else layer
    if not isinstance(linear, nn.Linear):
        return True
    shape = (outputs, inputs + outputs) if recurrent else (outputs, inputs)
    return linear.weight.shape == shape and (linear.bias is None or linear.bias.shape == (outputs,))


def _layer_refusal(name: str, layer: nn.Module) -> str | None:
    if type(layer) not in KINDS:
        return f"{name} is a {type(layer).__name__}"
    neuron = layer.sub_module if isinstance(layer, LinearRecurrentContainer) else layer
    if isinstance(layer, LinearRecurrentContainer) and type(neuron) not in (IF, LIF):
        return f"{name} has a {type(neuron).__name__} inside"
    if isinstance(neuron, IF | LIF) and constants_of(neuron.settings()).slope == GIVEN:
        return f"{type(neuron.surrogate).__name__} has no compiled slope"
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
        flat: the parameters of a model for which `refusal` returns None; its layers' settings are
            read once, here.
        loader: of the selections.
        half: in torch's bfloat16 autocast.
    """

    def __init__(
        self, model: nn.Module, flat: FlatParameters, loader: Loader, sums: Sums, half: bool = False
    ) -> None:
        self.loader = loader
        self.half = half
        self.values, self.gradient = flat.values.detach().numpy(), flat.gradient.numpy()
        self.totals = sums.totals.numpy()
        self.dtype = flat.values.dtype
        self.shift = loader.shift.item()
        self.layers, self.folds, more = records(model), np.zeros(0, FOLD), 0
        if not half:
            self.layers, self.folds, more = plan(self.layers, len(self.values))
        self.size = len(self.values) + more
        self.kept, self.passing = layout.lay_out(self.layers, SIDE, half)
        self.threads = self.steps = 0
        self._compile()

    def __call__(self, selection: Tensor) -> None:
        pictures = self.loader.pictures
        self._run(pictures.columns, pictures.labels, selection, self.gradient, self.totals)

    def _compile(self) -> None:
        """Compile the loop on a blank picture, so that no step's time includes it."""
        blank = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
        only = torch.zeros(1, dtype=torch.int64)
        self._run(blank, only, only, self.gradient.copy(), self.totals.copy())

    def _run(
        self,
        columns: Tensor,
        labels: Tensor,
        indices: Tensor,
        gradient: np.ndarray,
        totals: np.ndarray,
    ) -> None:
        """chain.chain for pictures `indices` [N] of columns [M, T, H]."""
        threads = max(1, min(torch.get_num_threads(), len(indices) // SMALLEST))
        steps = columns.shape[1]
        if threads > self.threads or steps > self.steps:
            self._make_space(threads, steps)
        chain.chain(
            threads,
            columns.numpy().reshape(len(columns), -1).view(np.uint32),
            steps,
            labels.numpy(),
            indices.numpy(),
            self.loader.scale,
            self.shift,
            self.layers,
            self.folds,
            self.kept,
            self.half,
            self.values,
            *self.spaces,
            gradient,
            totals,
        )

    def _make_space(self, threads: int, steps: int) -> None:
        """Working space for so many threads and steps.

        torch aligns it to cache lines, numpy does not: half of all vectors would lie in two lines.
        """
        self.threads, self.steps = threads, steps
        size = (self.kept * steps + self.passing) * chain.SAMPLES
        self.spaces = (
            torch.zeros(threads, size, dtype=self.dtype).numpy(),
            torch.zeros(threads, self.size, dtype=self.dtype).numpy(),
            np.zeros((threads, 4)),
        )


def records(model: nn.Module) -> np.ndarray:
    """The layers as the loop reads them, but for where their values lie."""
    layers = np.zeros(len(list(model.children())), layout.LAYER)
    offsets, first = {}, 0
    for name, p in model.named_parameters():
        offsets[name], first = first, first + p.numel()
    given = SIDE
    for record, (name, layer) in zip(layers, model.named_children(), strict=True):
        inputs, outputs = features(layer, given)
        record["kind"], record["inputs"], record["outputs"] = KINDS[type(layer)], inputs, outputs
        within = f"{name}.rc" if isinstance(layer, LinearRecurrentContainer) else name
        weight = f"{name}.w" if isinstance(layer, SynapseFilter) else f"{within}.weight"
        record["weight"] = offsets.get(weight, layout.ABSENT)
        record["bias"] = offsets.get(f"{within}.bias", layout.ABSENT)
        if isinstance(layer, SynapseFilter) and not layer.learnable:
            record["k"] = layer.decay()
        neuron = getattr(layer, "sub_module", layer)
        if isinstance(neuron, IF | LIF):
            for field, value in constants_of(neuron.settings())._asdict().items():
                record[field] = value
        given = outputs
    return layers
