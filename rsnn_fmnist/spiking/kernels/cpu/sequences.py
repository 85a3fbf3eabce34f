"""Backend "numba": the names and signatures of the references, on the CPU.

Computed in float32, or in float64 where the input or the state is; the output has the input's
dtype. Potentials are stored only where a gradient can be asked for, or somebody observes. What
these kernels cannot do is what `refusal` names.
"""

import torch
from torch import Tensor, nn

from ...neuron import IF, LIF, Observer
from ...sequence import State, at_rest, first_step
from ...surrogate import Surrogate
from ..calls import as_wide, differentiable, refusal
from .functions import (
    SLOPES,
    Filter,
    Fire,
    FireRecurrently,
    filtered,
    fire,
    fire_recurrently,
    number,
)
from .loops import GIVEN, Cell

__all__ = [
    "filter_sequence",
    "if_sequence",
    "lif_sequence",
    "linear_recurrent_sequence",
    "refusal",
]


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
    """`synapse.filter_sequence`."""
    x, y = _prepared(x_seq, y)
    if differentiable(x, y, k):
        y_seq, y = Filter.apply(x, y, k)
    else:
        y_seq, y = filtered(x, y, number(k))
    return y_seq.to(x_seq.dtype), y


def linear_recurrent_sequence(
    x_seq: Tensor, state: State, *, weight: Tensor, bias: Tensor | None, sub_module: IF | LIF
) -> tuple[Tensor, State]:
    """`recurrent.linear_recurrent_sequence` around an IF or LIF.

    The input's half of the layer is one nn.functional.linear over all steps (under autocast, in
    its dtype); the half for y is added in the loop, in float32 at least.
    """
    y, v = state
    for_x, for_y = torch.split(weight, weight.shape[0], dim=1)
    i_seq = nn.functional.linear(x_seq, for_x, bias)
    if v is None:
        v = at_rest(first_step(i_seq.detach()), sub_module.v_rest)
    i, v = _prepared(i_seq, v)
    feedback, y = for_y.to(v.dtype), as_wide(y.to(v.dtype), v.shape)
    cell, observe = cell_of(sub_module), sub_module.observer
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


def cell_of(neuron: IF | LIF) -> Cell:
    """A neuron as the loops take it."""
    return _cell(**{"tau": None, **neuron.settings()})


def _cell(
    tau: float | None,
    v_threshold: float,
    v_reset: float | None,
    surrogate: Surrogate,
    detach_reset: bool,
) -> Cell:
    """A neuron's settings as the loops take them; tau None: IF."""
    return Cell(
        leaky=tau is not None,
        tau=float(1 if tau is None else tau),
        v_threshold=float(v_threshold),
        v_rest=float(0 if v_reset is None else v_reset),
        hard=v_reset is not None,
        attached=not detach_reset,
        slope=SLOPES.get(type(surrogate), GIVEN),
        alpha=float(surrogate.alpha),
    )


def _prepared(x_seq: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Both contiguous and in the dtype to compute in; the state as wide as one step."""
    dtype = torch.promote_types(torch.promote_types(x_seq.dtype, state.dtype), torch.float32)
    state = as_wide(state.to(dtype), first_step(x_seq.detach()).shape)
    return x_seq.to(dtype).contiguous(), state
