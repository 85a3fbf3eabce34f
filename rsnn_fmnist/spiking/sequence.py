"""The calling convention of every module that runs over time: forward, sequence, step.

Time is the first axis: x_seq is [T, ...], x at one step is [...]. State is an argument and a
return value, never an attribute: no call leaves anything behind, so there is nothing to reset.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

State = Any  # a tensor, None or a tuple of states; each module's docstring says which


class SequenceModule(nn.Module):
    """Base of the modules that run over a whole sequence. A subclass provides `step`.

    `sequence` and `forward` follow from `step`; a subclass that can run a whole sequence faster
    overrides `sequence`. `backend` is read each time a sequence runs; see `set_backend`.
    """

    backend: str = "auto"

    def step(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Advance by one step from `state`; None: from rest.

        Args:
            x: the input at one step, [...].
        Returns:
            y [...], and the state after the step.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step(x, state)")

    def sequence(self, x_seq: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Run x_seq [T, ...] from `state` (None: from rest) -> (y_seq [T, ...], the last state)."""
        return unroll(self.step, x_seq, state)

    def forward(self, x_seq: Tensor) -> Tensor:
        """Run x_seq [T, ...] from rest -> y_seq [T, ...]."""
        y_seq, _ = self.sequence(x_seq)
        return y_seq


class TimeDistributed(SequenceModule):
    """Apply a stateless module to all steps and samples at once, as one batch of T N samples.

    For layers that expect one batch axis, such as Conv2d or BatchNorm2d:
    x_seq [T, N, ...] -> module([T N, ...]) -> y_seq [T, N, ...]. Its state is None.

    Raises:
        ValueError: the module contains a SequenceModule, whose state would be mixed over time.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        stateful = [m for m in module.modules() if isinstance(m, SequenceModule)]
        if stateful:
            raise ValueError(
                f"TimeDistributed takes stateless modules only, but {type(stateful[0]).__name__} "
                "keeps a state over time: put it beside the TimeDistributed, not inside"
            )
        self.module = module

    def step(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        return self.module(x), None

    def sequence(self, x_seq: Tensor, state: State = None) -> tuple[Tensor, State]:
        y = self.module(x_seq.flatten(0, 1))
        return y.unflatten(0, x_seq.shape[:2]), None


def step(module: nn.Module, x: Tensor, state: State = None) -> tuple[Tensor, State]:
    """Advance any module by one step: x [...] -> (y, state).

    The layers of an nn.Sequential are advanced in turn (its state is a tuple, one entry a layer);
    any other module that is no SequenceModule is called with x (its state is None).
    """
    if isinstance(module, SequenceModule):
        return module.step(x, state)
    if isinstance(module, nn.Sequential):
        states = (None,) * len(module) if state is None else state
        after = []
        for layer, layer_state in zip(module, states, strict=True):
            x, layer_state = step(layer, x, layer_state)
            after.append(layer_state)
        return x, tuple(after)
    return module(x), None


def unroll(
    advance: Callable[[Tensor, State], tuple[Tensor, State]], x_seq: Tensor, state: State
) -> tuple[Tensor, State]:
    """Call `advance(x, state) -> (y, state)` along x_seq [T, ...] -> (y_seq [T, ...], state).

    Raises:
        ValueError: as `first_step`.
    """
    first_step(x_seq)
    y_seq = []
    for x in x_seq:
        y, state = advance(x, state)
        y_seq.append(y)
    return torch.stack(y_seq), state


def first_step(x_seq: Tensor) -> Tensor:
    """x_seq[0].

    Raises:
        ValueError: x_seq has no steps (T = 0), or no time axis.
    """
    if x_seq.dim() == 0 or x_seq.shape[0] == 0:
        raise ValueError(
            f"a sequence needs at least one step on its first axis; got shape {list(x_seq.shape)}"
        )
    return x_seq[0]


def at_rest(x: Tensor, value: float = 0.0) -> Tensor:
    """A state of x's shape filled with `value`; float64 if x is float64, else float32."""
    return torch.full_like(x, value, dtype=torch.promote_types(x.dtype, torch.float32))
