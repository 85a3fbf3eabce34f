"""Containers that feed a module's output back into its input, one step later.

What is fed back is the previous output y[t-1], 0 before the first step. Delays longer than one
step are left out.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import backend
from .neuron import IF, LIF
from .sequence import SequenceModule, State, first_step, step, unroll


class ElementWiseRecurrentContainer(SequenceModule):
    """Combine the input with the previous output, element by element.

        i[t] = f(x[t], y[t-1]),  y[t] = sub_module(i[t]),  y[-1] = 0

    Its state is (y, the sub_module's state).

    Args:
        sub_module: a neuron, or an nn.Sequential, whose output is shaped as its input.
        f: the combination, such as torch.add.
    """

    def __init__(self, sub_module: nn.Module, f: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.sub_module = sub_module
        self.f = f

    def step(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        y, sub_state = (torch.zeros_like(x), None) if state is None else state
        y, sub_state = step(self.sub_module, self.f(x, y), sub_state)
        return y, (y, sub_state)


def linear_recurrent_step(
    x: Tensor, state: State, *, weight: Tensor, bias: Tensor | None, sub_module: nn.Module
) -> tuple[Tensor, State]:
    """Advance a linear recurrent connection by one step.

        i = weight cat(x, y) + bias         the layer rc; x first
        y_next = sub_module(i)              on from its own state

    Args:
        x: input, [..., I].
        state: (y, sub_state): the previous output [..., O] and the sub_module's state.
        weight, bias: [I, I + O] and [I] (None: no bias).
        sub_module: [..., I] -> [..., O].
    Returns:
        y_next, (y_next, sub_state).
    """
    y, sub_state = state
    i = nn.functional.linear(torch.cat((x, y), dim=-1), weight, bias)
    y, sub_state = step(sub_module, i, sub_state)
    return y, (y, sub_state)


def linear_recurrent_sequence(
    x_seq: Tensor, state: State, *, weight: Tensor, bias: Tensor | None, sub_module: nn.Module
) -> tuple[Tensor, State]:
    """Run `linear_recurrent_step` along x_seq [T, ..., I] -> (y_seq [T, ..., O], state)."""
    advance = partial(linear_recurrent_step, weight=weight, bias=bias, sub_module=sub_module)
    return unroll(advance, x_seq, state)


class LinearRecurrentContainer(SequenceModule):
    """Feed the previous output back through a learnt linear layer; see `linear_recurrent_step`.

    Its state is (y, the sub_module's state).

    Args:
        sub_module: a neuron, or an nn.Sequential such as (Linear, LIF); [..., I] -> [..., O].
        in_features, out_features: I and O; the layer `rc` is Linear(I + O, I).
        bias: whether rc has one.
    """

    def __init__(
        self, sub_module: nn.Module, in_features: int, out_features: int, bias: bool = True
    ) -> None:
        super().__init__()
        self.sub_module = sub_module
        self.out_features = out_features
        self.rc = nn.Linear(in_features + out_features, in_features, bias)

    def rest(self, x: Tensor) -> State:
        """The state before the first step: nothing fed back yet."""
        return x.new_zeros(*x.shape[:-1], self.out_features), None

    def step(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        return linear_recurrent_step(
            x,
            self.rest(x) if state is None else state,
            weight=self.rc.weight,
            bias=self.rc.bias,
            sub_module=self.sub_module,
        )

    def sequence(self, x_seq: Tensor, state: State = None) -> tuple[Tensor, State]:
        run = linear_recurrent_sequence
        settings: dict[str, Any] = {
            "weight": self.rc.weight,
            "bias": self.rc.bias,
            "sub_module": self.sub_module,
        }
        if type(self.sub_module) in (IF, LIF):  # kernels know these two; the rest goes by steps
            run = backend.implementation(run, x_seq, self.backend, **settings)
        return run(x_seq, self.rest(first_step(x_seq)) if state is None else state, **settings)
