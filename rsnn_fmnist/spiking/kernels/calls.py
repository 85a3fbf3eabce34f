"""What a call of a kernel must be like, whatever the kernel runs on."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

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
    unseen = _unseen(x_seq)
    if unseen is not None:
        return unseen
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
    return None


def _unseen(x_seq: Tensor) -> str | None:
    """Who follows the call operation by operation, and would miss a compiled loop; None: nobody."""
    if torch._C._are_functorch_transforms_active():
        return "torch.func cannot see into a compiled loop"
    if torch._C._is_tracing():
        return "torch.jit.trace cannot see into a compiled loop"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation cannot see into a compiled loop"
    if torch._C._len_torch_dispatch_stack():
        return "a TorchDispatchMode cannot see into a compiled loop"
    if type(x_seq) is not Tensor and type(x_seq) is not nn.Parameter:
        return f"the input is a {type(x_seq).__name__}, which cannot see into a compiled loop"
    return None


def as_wide(state: Tensor, shape: torch.Size) -> Tensor:
    """The state, contiguous, in the shape of one step of the input.

    Raises:
        ValueError: it does not broadcast to that shape.
    """
    if state.shape != shape:
        try:
            state = state.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"the state, {list(state.shape)}, does not fit one step of the input, "
                f"{list(shape)}: give a state of that shape, or choose backend torch"
            ) from None
    return state.contiguous()


def differentiable(*values: Any) -> bool:
    """Whether autograd wants a gradient for any of the values."""
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in values
    )
