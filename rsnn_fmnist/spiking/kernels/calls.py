"""What the kernels of all backends share: which calls they can run, and how they are called.

Where a function takes `functions`, that is a backend's module of this name.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..neuron import IF, LIF, NeuronSettings, Observer
from ..sequence import State, at_rest, first_step
from ..surrogate import Surrogate

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def refusal(
    x_seq: Tensor,
    *,
    neuron: NeuronSettings | None = None,
    k: Tensor | float = 0.0,
    weight: Tensor | None = None,
    sub_module: nn.Module | None = None,
    **_: Any,
) -> str | None:
    """Why no kernel can run x_seq [T, ...] with a reference's keyword arguments; None: it can."""
    user = _user_of_operations(x_seq)
    if user is not None:
        return f"a compiled loop bypasses the tensor operations that {user}"
    if sub_module is not None and type(sub_module) not in (IF, LIF):
        inner = type(sub_module).__name__
        return f"a LinearRecurrentContainer has kernels around an IF or a LIF, not a {inner}"
    if isinstance(sub_module, IF | LIF):
        neuron = sub_module.settings()
    if x_seq.dtype not in FLOATS:
        return f"the input is {x_seq.dtype}, not one of float16, bfloat16, float32, float64"
    if neuron is not None and type(neuron.surrogate).__call__ is not Surrogate.__call__:
        return f"the surrogate {type(neuron.surrogate).__name__} overrides __call__"
    if isinstance(k, Tensor) and k.dim() > 0:
        return f"k has shape {list(k.shape)}, not one value for the whole layer"
    if weight is not None and weight.shape[1] != 2 * weight.shape[0]:
        return f"the weight has shape {list(weight.shape)}, not [F, 2 F]"
    return None


def _user_of_operations(x_seq: Tensor) -> str | None:
    """What needs the call as single tensor operations, and does what with them; None: nothing."""
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms"
    if torch._C._is_tracing():
        return "torch.jit.trace records"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation follows"
    if torch._C._len_torch_dispatch_stack():
        return "a TorchDispatchMode overrides"
    if type(x_seq) is not Tensor and type(x_seq) is not nn.Parameter:
        return f"the input, a {type(x_seq).__name__}, may override"
    return None


def neuron_sequence(
    functions: ModuleType,
    x_seq: Tensor,
    v: Tensor,
    neuron: NeuronSettings,
    observe: Observer | None,
) -> tuple[Tensor, Tensor]:
    """`spiking.neuron.neuron_sequence`."""
    x, v = prepared(functions, x_seq, v)
    if differentiable(x, v):
        s, h, v = functions.Fire.apply(x, v, neuron)
    else:
        s, h, v = functions.fire(x, v, neuron, keep_h=observe is not None)
    s = s.to(x_seq.dtype)
    if observe is not None:
        observe(s.detach(), h)
    return s, v


def linear_recurrent_sequence(
    functions: ModuleType,
    x_seq: Tensor,
    state: State,
    weight: Tensor,
    bias: Tensor | None,
    sub_module: IF | LIF,
) -> tuple[Tensor, State]:
    """`spiking.recurrent.linear_recurrent_sequence` around an IF or LIF.

    for_x x + bias is one nn.functional.linear over all steps (under autocast, in its dtype); the
    kernel adds for_y y step by step, in float32 or float64.
    """
    neuron, observe = sub_module.settings(), sub_module.observer
    y, v = state
    for_x, for_y = torch.split(weight, weight.shape[0], dim=1)
    i_seq = nn.functional.linear(x_seq, for_x, bias)
    if v is None:
        v = at_rest(first_step(i_seq.detach()), neuron.v_rest)
    i, v = prepared(functions, i_seq, v)
    for_y, y = for_y.to(v.dtype), as_wide(y.to(v.dtype), v.shape)
    if differentiable(i, for_y, y, v):
        s, h, y, v = functions.FireRecurrently.apply(i, for_y, y, v, neuron)
    else:
        s, h, y, v = functions.fire_recurrently(i, for_y, y, v, neuron, keep_h=observe is not None)
    s = s.to(i_seq.dtype)
    if observe is not None:
        observe(s.detach(), h)
    return s, (y.to(i_seq.dtype), v)


def prepared(functions: ModuleType, x_seq: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """x_seq [T, ...] and the state as the kernels take them: contiguous, and in their dtypes.

    The state is in the shape of one step of x_seq and in the dtype to compute in: float64 if either
    is float64, else float32. x_seq is in that dtype too, or stays in half precision if the kernels
    take that (functions.TAKES_HALF) and the state is not float64.

    Raises:
        ValueError: x_seq has no steps, or the state does not broadcast to one.
    """
    by_itself = torch.promote_types(x_seq.dtype, torch.float32)
    compute = torch.promote_types(by_itself, state.dtype)
    state = as_wide(state.to(compute), first_step(x_seq.detach()).shape)
    stays = functions.TAKES_HALF and by_itself == compute
    return x_seq.to(x_seq.dtype if stays else compute).contiguous(), state


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


def refuse_batched_gradients(backend: str, *gradients: Tensor | None) -> None:
    """Raise in a backward pass for several gradients at once: their tensors hold no memory."""
    batched = torch._C._functorch
    for gradient in gradients:
        if gradient is not None and (
            batched.is_legacy_batchedtensor(gradient) or batched.is_batchedtensor(gradient)
        ):
            raise RuntimeError(
                f"backend {backend!r} computes one gradient at a time (no vectorize=True, no "
                "is_grads_batched=True, no vmap); choose backend torch"
            )


def differentiable(*values: Any) -> bool:
    """Whether autograd needs a gradient for any of the values."""
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in values
    )
