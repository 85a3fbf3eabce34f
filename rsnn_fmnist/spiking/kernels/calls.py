"""What a call of a kernel must be like, whatever the kernel runs on."""

from typing import Any

import torch
from torch import Tensor, nn

from ..neuron import IF, LIF
from ..surrogate import Surrogate

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def refusal(
    x_seq: Tensor,
    *,
    surrogate: Surrogate | None = None,
    k: Tensor | float = 0.0,
    weight: Tensor | None = None,
    sub_module: nn.Module | None = None,
    **_: Any,
) -> str | None:
    """Why x_seq [T, ...] cannot be run by any kernel with a reference's settings; None: it can."""
    if isinstance(sub_module, IF | LIF):
        surrogate = sub_module.surrogate
    if x_seq.dtype not in FLOATS:
        return f"the input is {x_seq.dtype}, not one of float16, bfloat16, float32, float64"
    if surrogate is not None and type(surrogate).__call__ is not Surrogate.__call__:
        return f"the surrogate {type(surrogate).__name__} has a forward of its own"
    if isinstance(k, Tensor) and k.dim() > 0:
        return f"k has shape {list(k.shape)}, not one value for the whole layer"
    if weight is not None and weight.shape[1] != 2 * weight.shape[0]:
        return f"the weight, {list(weight.shape)}, feeds back something else than the spikes"
    if torch._C._are_functorch_transforms_active():
        return "torch.func cannot see into a compiled loop"
    return None


def differentiable(*values: Any) -> bool:
    """Whether autograd wants a gradient for any of the values."""
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in values
    )
