"""Backend "cupy": the names and signatures of the references, on a CUDA device.

Computed in float32, or in float64 where the input or the state is; half precision is taken and
given as it is. Potentials are stored only where a gradient can be asked for, or somebody observes.
What these kernels cannot do is what `refusal` names; what they need is what `missing` names.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...neuron import IF, LIF, Observer
from ...sequence import State, at_rest, first_step
from ...surrogate import Surrogate
from .. import calls
from ..calls import as_wide, differentiable
from .functions import (
    GIVEN,
    MOST_FEATURES,
    SLOPES,
    Cell,
    Filter,
    Fire,
    FireRecurrently,
    filtered,
    fire,
    fire_recurrently,
)
from .launch import missing

__all__ = [
    "filter_sequence",
    "if_sequence",
    "lif_sequence",
    "linear_recurrent_sequence",
    "missing",
    "refusal",
]


def refusal(
    x_seq: Tensor, *, k: Tensor | float = 0.0, weight: Tensor | None = None, **settings: Any
) -> str | None:
    """Why x_seq [T, ...] cannot be run with a reference's settings; None: it can."""
    if isinstance(k, Tensor) and k.device != x_seq.device:
        return f"k is on {k.device}, the input on {x_seq.device}"
    if weight is not None and weight.shape[0] > MOST_FEATURES:
        return f"the layer is {weight.shape[0]} wide, and a block has {MOST_FEATURES} threads"
    return calls.refusal(x_seq, k=k, weight=weight, **settings)


def if_sequence(
    x_seq: Tensor,
    v: Tensor,
    *,
    v_threshold: float,
    v_reset: float | None,
    surrogate: Surrogate,
    detach_reset: bool,
    observe: Observer | None = None,
) -> tuple[Tensor, Tensor]:
    """`neuron.if_sequence`."""
    cell = _cell(None, v_threshold, v_reset, surrogate, detach_reset)
    return _neuron_sequence(x_seq, v, cell, surrogate, observe)


def lif_sequence(
    x_seq: Tensor,
    v: Tensor,
    *,
    tau: float,
    v_threshold: float,
    v_reset: float | None,
    surrogate: Surrogate,
    detach_reset: bool,
    observe: Observer | None = None,
) -> tuple[Tensor, Tensor]:
    """`neuron.lif_sequence`."""
    cell = _cell(tau, v_threshold, v_reset, surrogate, detach_reset)
    return _neuron_sequence(x_seq, v, cell, surrogate, observe)


def filter_sequence(x_seq: Tensor, y: Tensor, *, k: Tensor | float) -> tuple[Tensor, Tensor]:
    """`synapse.filter_sequence`; k stays on the device."""
    x, y = _prepared(x_seq, y)
    if isinstance(k, Tensor):
        k = k.to(y.dtype)
    if differentiable(x, y, k):
        y_seq, y = Filter.apply(x, y, k)
    else:
        y_seq, _, y = filtered(x, y, k, keep_trace=False)
    return y_seq.to(x_seq.dtype), y


def linear_recurrent_sequence(
    x_seq: Tensor, state: State, *, weight: Tensor, bias: Tensor | None, sub_module: nn.Module
) -> tuple[Tensor, State]:
    """`recurrent.linear_recurrent_sequence` around an IF or LIF of at most MOST_FEATURES.

    The input's half of the layer is one nn.functional.linear over all steps (under autocast, in
    its dtype); the half for y is added in the kernel, in float32 at least.
    """
    assert isinstance(sub_module, IF | LIF)
    y, v = state
    for_x, for_y = torch.split(weight, weight.shape[0], dim=1)
    i_seq = nn.functional.linear(x_seq, for_x, bias)
    v = at_rest(first_step(i_seq), sub_module.v_rest) if v is None else v
    i, v = _prepared(i_seq, v)
    feedback, y = for_y.to(v.dtype), as_wide(y.to(v.dtype), v.shape)
    cell = _cell(**{"tau": None, **sub_module.settings()})
    observe = sub_module.observer
    if differentiable(i, feedback, y, v):
        s, h, y, v = FireRecurrently.apply(i, feedback, y, v, cell, sub_module.surrogate)
    else:
        s, h, y, v = fire_recurrently(i, feedback, y, v, cell, keep_h=observe is not None)
    s = s.to(i_seq.dtype)
    if observe is not None:
        observe(s.detach(), h)
    return s, (y.to(i_seq.dtype), v)


def _neuron_sequence(
    x_seq: Tensor, v: Tensor, cell: Cell, surrogate: Surrogate, observe: Observer | None
) -> tuple[Tensor, Tensor]:
    x, v = _prepared(x_seq, v)
    if differentiable(x, v):
        s, h, v = Fire.apply(x, v, cell, surrogate)
    else:
        s, h, v = fire(x, v, cell, keep_h=observe is not None)
    s = s.to(x_seq.dtype)
    if observe is not None:
        observe(s.detach(), h)
    return s, v


def _cell(
    tau: float | None,
    v_threshold: float,
    v_reset: float | None,
    surrogate: Surrogate,
    detach_reset: bool,
) -> Cell:
    """A neuron's settings as the kernels take them; tau None: IF."""
    slope, scale = SLOPES.get(type(surrogate), (GIVEN, float))
    return Cell(
        tau=1.0 if tau is None else float(tau),
        v_threshold=float(v_threshold),
        v_rest=0.0 if v_reset is None else float(v_reset),
        alpha=float(surrogate.alpha),
        scale=scale(surrogate.alpha),
        leaky=tau is not None,
        hard=v_reset is not None,
        attached=not detach_reset,
        slope=slope,
    )


def _prepared(x_seq: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Both contiguous; the state as wide as one step and in the dtype to compute in.

    x keeps its own dtype, unless what is computed in is more than that is computed in by itself.
    """
    own = torch.promote_types(x_seq.dtype, torch.float32)
    compute = torch.promote_types(own, state.dtype)
    state = as_wide(state.to(compute), first_step(x_seq).shape)
    return x_seq.to(x_seq.dtype if own == compute else compute).contiguous(), state
