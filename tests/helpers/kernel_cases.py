"""What the tests of the CUDA kernels share, whether these run on a CPU or on a GPU.

Inputs are dyadic, multiples of a power of two, which all formats hold exactly, so that outputs can
be compared by equality.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rsnn_fmnist.spiking import IF, LIF, SURROGATES, Surrogate
from rsnn_fmnist.spiking.kernels.cuda import sequences
from rsnn_fmnist.spiking.kernels.cuda.launch import STORAGE
from rsnn_fmnist.spiking.neuron import Neuron, neuron_sequence
from rsnn_fmnist.spiking.recurrent import linear_recurrent_sequence

DTYPES = list(STORAGE)
TOLERANCE = {  # of gradients, which are stored in the dtype
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


def dyadic(*shape: int, low: int, high: int, seed: int = 0) -> Tensor:
    """Random eighths in [low, high)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8 * low, 8 * high, shape, generator=generator).double() / 8


def assert_alike(kernel: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """The gradient is within the dtype's tolerance of the reference's in float64."""
    bound = TOLERANCE[dtype]
    atol = bound * max(1.0, exact.abs().max().item() if exact.numel() else 1.0)
    torch.testing.assert_close(kernel.double(), exact, rtol=bound, atol=atol)


def outputs_and_gradients(
    run: Callable[..., Any], inputs: dict[str, Tensor], dtypes: dict[str, torch.dtype]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Run on copies of the inputs in `dtypes`.

    Returns the outputs, and the gradients of a random weighting of them, by the input's name.
    """
    leaves = {n: x.clone().to(dtypes[n]).requires_grad_() for n, x in inputs.items()}
    outputs = run(**leaves)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(output.shape, generator=generator).half() for output in outputs]
    weighted = [
        (output.double() * weight.to(output.device)).sum()
        for output, weight in zip(outputs, weights, strict=True)
    ]
    torch.stack(weighted).sum().backward()
    return outputs, {name: leaf.grad for name, leaf in leaves.items()}


def compare(
    reference: Callable[..., Any],
    kernel: Callable[..., Any],
    inputs: dict[str, Tensor],
    dtype: torch.dtype,
    state: tuple[str, ...] = (),
) -> list[Tensor]:
    """Compare outputs with the reference's in the same dtypes, and gradients with its in float64.

    `state` names the inputs that are in float32 at least. Returns the kernel's outputs.
    """
    dtypes = {n: torch.promote_types(dtype, torch.float32) if n in state else dtype for n in inputs}
    outputs, gradients = outputs_and_gradients(kernel, inputs, dtypes)
    expected, _ = outputs_and_gradients(reference, inputs, dtypes)
    for output, want in zip(outputs, expected, strict=True):
        assert output.dtype == want.dtype
        assert torch.equal(output, want)
    wide = dict.fromkeys(inputs, torch.float64)
    for name, exact in outputs_and_gradients(reference, inputs, wide)[1].items():
        assert gradients[name].dtype == dtypes[name]
        assert_alike(gradients[name], exact, dtype)
    return outputs


@dataclass(frozen=True)
class OwnSurrogate(Surrogate):
    """A user's surrogate, whose slope the kernels do not know."""

    alpha: float = 1.5
    name = "own"

    def slope(self, u: Tensor) -> Tensor:
        return self.alpha / (1 + self.alpha * u.abs())


ALL_SURROGATES = {**SURROGATES, "own": OwnSurrogate}
RESETS = {"hard": -0.5, "soft": None}
NEURONS: list[type[Neuron]] = [IF, LIF]


def sequence_functions(layer: Neuron) -> list[Callable[..., Any]]:
    """The reference and the kernel of a layer, as functions of x and v."""
    neuron = layer.settings()
    return [
        lambda x, v, f=function: f(x, v, neuron=neuron)
        for function in (neuron_sequence, sequences.neuron_sequence)
    ]


def recurrent_functions(
    sub_module: Neuron, bias: bool = True
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The reference and the kernel, as functions of x, y, v, weight and b."""

    def run(function: Any, x: Tensor, y: Tensor, v: Tensor, weight: Tensor, b: Tensor) -> Any:
        y_seq, (y, v) = function(
            x, (y, v), weight=weight, bias=b if bias else None, sub_module=sub_module
        )
        return y_seq, y, v, b  # b has a gradient even if there is no bias

    return (
        lambda **inputs: run(linear_recurrent_sequence, **inputs),
        lambda **inputs: run(sequences.linear_recurrent_sequence, **inputs),
    )


def recurrent_inputs(steps: int, samples: int, features: int) -> dict[str, Tensor]:
    """Inputs of `recurrent_functions` whose sums even bfloat16 represents exactly."""
    if features > 16:  # as many negative weights as positive ones
        generator = torch.Generator().manual_seed(3)
        weight = torch.randint(-2, 3, (features, 2 * features), generator=generator).double() / 4
    else:
        weight = (dyadic(features, 2 * features, low=-1, high=2, seed=3) * 2).round() / 4
        weight.diagonal().fill_(3)
    return {
        "x": (dyadic(steps, samples, features, low=-1, high=2) > 0).double() / 2,
        "y": (dyadic(samples, features, low=-1, high=1, seed=1) > 0).double() * 0.5,
        "v": dyadic(samples, features, low=-1, high=1, seed=2),
        "weight": weight,
        "b": (dyadic(features, low=0, high=1, seed=4) * 2).round() / 4,
    }
