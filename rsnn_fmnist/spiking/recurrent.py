"""Containers that feed the output of a module back into its input, one step later.

What is fed back is the previous output y[t-1], 0 before the first step. Delays longer than one
step are left out.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from . import backend
from .sequence import (
    Reference,
    SequenceModule,
    State,
    as_float,
    first_step,
    memory_in,
    refuse_hidden_state,
    step,
    unroll,
)


class ElementWiseRecurrentContainer(SequenceModule):
    """Combine the input with the previous output, element by element.

        i[t] = f(x[t], y[t-1]),  y[t] = sub_module(i[t]),  y[-1] = 0

    Backward, dL/di[t] df/dy adds to the gradient of y[t-1], the previous output. The state is
    (y, the sub_module's state).

    Args:
        sub_module: a neuron or an nn.Sequential whose output is shaped as its input.
        f: the combination, such as torch.add; without memory.
    Raises:
        TypeError, ValueError: as `sequence.refuse_hidden_state`.
        ValueError: f contains a module with memory.
        BackendUnavailableError: when it runs on a backend chosen by name other than torch; it has
            no kernel.
    """

    def __init__(self, sub_module: nn.Module, f: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        refuse_hidden_state(sub_module)
        if isinstance(f, nn.Module) and (memory := memory_in(f)):
            raise ValueError(
                f"f contains {type(memory).__name__}, whose state the container does not pass on: "
                "put it into the sub_module"
            )
        self.sub_module = sub_module
        self.f = f

    def step(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        x = as_float(x)
        y, sub_state = (torch.zeros_like(x), None) if state is None else state
        y, sub_state = step(self.sub_module, self.f(x, y), sub_state)
        return y, (y, sub_state)


def linear_recurrent_step(
    x: Tensor, state: State, *, weight: Tensor, bias: Tensor | None, sub_module: nn.Module
) -> tuple[Tensor, State]:
    """Advance a linear recurrent connection by one step.

    Forward:
        i = weight cat(x, y) + bias = for_x x + for_y y + bias          for_x = weight[:, :I]
        y_next, sub_state_next = sub_module(i, sub_state)               for_y = weight[:, I:]

    Backward, dL/di being what sub_module passes back from dL/dy_next:
        dL/dx = for_x^T dL/di
        dL/dy = for_y^T dL/di               the feedback: adds to the gradient of y as the output
                                            of the step before, from t = T - 1 down to 0
        dL/dfor_x = dL/di x^T               these three are summed over steps and samples
        dL/dfor_y = dL/di y^T
        dL/dbias = dL/di

    Args:
        x: input, [..., I].
        state: (y, sub_state): the previous output [..., O] and the sub_module's state.
        weight, bias: [I, I + O] and [I] (None: no bias).
        sub_module: [..., I] -> [..., O].
    Returns:
        y_next, (y_next, sub_state_next).
    """
    y, sub_state = state
    i = nn.functional.linear(torch.cat((x, y), dim=-1), weight, bias)
    y, sub_state = step(sub_module, i, sub_state)
    return y, (y, sub_state)


def linear_recurrent_sequence(
    x_seq: Tensor, state: State, *, weight: Tensor, bias: Tensor | None, sub_module: nn.Module
) -> tuple[Tensor, State]:
    """Run `linear_recurrent_step` along x_seq [T, ..., I] -> (y_seq [T, ..., O], last state).

    Raises:
        ValueError: x_seq has no steps.
    """
    advance = partial(linear_recurrent_step, weight=weight, bias=bias, sub_module=sub_module)
    return unroll(advance, x_seq, state)


class LinearRecurrentContainer(SequenceModule):
    """Feed the previous output back through a linear layer `rc`; see `linear_recurrent_step`.

    The state is (y, the sub_module's state).

    Args:
        sub_module: a neuron or an nn.Sequential such as (Linear, LIF); [..., I] -> [..., O].
        in_features, out_features: I and O; the layer `rc` is Linear(I + O, I).
        bias: whether rc has a bias.
    Raises:
        TypeError, ValueError: as `sequence.refuse_hidden_state`.
        BackendUnavailableError: when it runs on a backend chosen by name that has no kernel for it;
            there are kernels around an IF or a LIF.
    """

    def __init__(
        self, sub_module: nn.Module, in_features: int, out_features: int, bias: bool = True
    ) -> None:
        super().__init__()
        refuse_hidden_state(sub_module)
        self.sub_module = sub_module
        self.out_features = out_features
        self.rc = nn.Linear(in_features + out_features, in_features, bias)

    def rest(self, x: Tensor) -> State:
        """The state before the first step, for an input x [..., I] at one step: y = 0."""
        return x.new_zeros(*x.shape[:-1], self.out_features), None

    def step(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        x = as_float(x)
        state = self.rest(x) if state is None else state
        _, settings = self.reference()
        return linear_recurrent_step(x, state, **settings)

    def sequence(self, x_seq: Tensor, state: State = None) -> tuple[Tensor, State]:
        x_seq = as_float(x_seq)
        state = self.rest(first_step(x_seq)) if state is None else state
        reference, settings = self.reference()
        run = backend.implementation(reference, x_seq, self.backend, **settings)
        return run(x_seq, state, **settings)

    def reference(self) -> Reference:
        """See `SequenceModule`; of rc only weight and bias are read.

        Raises:
            ValueError: rc computes something else, or its weight is not what it learns.
        """
        rc = self.rc
        own = type(rc).forward is nn.Linear.forward and "forward" not in vars(rc)
        if not own or not ("weight" in rc._parameters or is_parametrized(rc, "weight")):
            raise ValueError(
                "rc must be an nn.Linear with its own forward, whose weight is a parameter or "
                "parametrized (torch.nn.utils.parametrizations); older utilities that replace the "
                "weight, such as torch.nn.utils.spectral_norm, have no effect on it"
            )
        settings = {"weight": rc.weight, "bias": rc.bias, "sub_module": self.sub_module}
        return linear_recurrent_sequence, settings
