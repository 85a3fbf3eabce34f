"""The calling convention of every module that runs over time: forward, sequence, step.

Time is the first axis: x_seq is [T, ...], x at one step is [...]. State is an argument and a
return value, never an attribute: no call leaves anything behind, so there is nothing to reset.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn


class BackendUnavailableError(RuntimeError):
    """A backend that was chosen by name cannot run here; the message says what to do."""


Reference = tuple[Callable[..., Any], dict[str, Any]]  # a function, and its keyword arguments
State = Any  # a tensor, None or a tuple of states; each module's docstring says which


class SequenceModule(nn.Module):
    """Base of the modules that run over a whole sequence. A subclass provides `step`.

    `sequence` and `forward` follow from `step`; a subclass that can run a whole sequence faster
    overrides `sequence`. `backend` is read each time a sequence runs, see `set_backend`; `step`
    itself runs in torch. To be recorded, a layer has an `observer`, see `monitor`.
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
        """Run x_seq [T, ...] from `state` (None: from rest) -> (y_seq [T, ...], the last state).

        Raises:
            ValueError: x_seq has no steps.
            BackendUnavailableError: a backend other than torch was chosen by name.
        """
        self.refuse_kernels()
        return unroll(self.step, x_seq, state)

    def reference(self) -> Reference | None:
        """The function that runs `sequence` and that kernels may replace; None: `step` runs it."""
        return None

    def refuse_kernels(self) -> None:
        """Raise BackendUnavailableError if kernels were chosen by name, where `step` runs."""
        if self.backend not in ("auto", "torch"):
            raise BackendUnavailableError(
                f"backend {self.backend!r} cannot run {type(self).__name__}, which has no kernel; "
                "choose auto or torch"
            )

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
        self.module = module
        self._stateless()

    def _stateless(self) -> nn.Module:
        """The module; checked at each call, since it may be replaced."""
        memory = memory_in(self.module)
        if memory is not None:
            raise ValueError(
                f"TimeDistributed takes stateless modules only, but {type(memory).__name__} "
                "keeps a state over time: put it beside the TimeDistributed, not inside"
            )
        return self.module

    def step(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        return self._stateless()(x), None

    def sequence(self, x_seq: Tensor, state: State = None) -> tuple[Tensor, State]:
        y = self._stateless()(x_seq.flatten(0, 1))
        return y.unflatten(0, x_seq.shape[:2]), None


MEMORY = (SequenceModule, nn.RNNBase, nn.RNNCellBase)  # keep a state over time


def memory_in(module: Any) -> nn.Module | None:
    """The first module with memory in `module`, which may be itself; None: it is stateless.

    Raises:
        TypeError: it is not a module.
    """
    if not isinstance(module, nn.Module):
        name = module.__name__ if isinstance(module, type) else type(module).__name__
        raise TypeError(f"{name} is not a module; give an instance of nn.Module, such as nn.ReLU()")
    return next((inner for inner in module.modules() if isinstance(inner, MEMORY)), None)


def has_step(module: nn.Module) -> TypeGuard[SequenceModule]:
    """Whether it defines step(x, state): a SequenceModule, or an nn.Sequential that does."""
    return isinstance(module, SequenceModule) or (
        isinstance(module, nn.Sequential) and hasattr(type(module), "step")
    )


def is_plain_sequential(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether it is an nn.Sequential that has kept its `forward`."""
    if not isinstance(module, nn.Sequential) or "forward" in vars(module):
        return False
    return type(module).forward is nn.Sequential.forward


def refuse_hidden_state(module: nn.Module) -> None:
    """Refuse what `step` cannot advance because it does not reach all of its state.

    Called outside a loop over time, such a module takes the first axis, the samples, for time.

    Raises:
        TypeError: it is not a module.
        ValueError: it contains a module with memory, but neither defines step, see `has_step`, nor
            is an nn.Sequential of modules that do and of stateless ones.
    """
    if has_step(module):
        return
    if is_plain_sequential(module):
        for layer in module:
            refuse_hidden_state(layer)
        return
    memory = memory_in(module)
    if memory is not None:
        name, inner = type(module).__name__, type(memory).__name__
        holds = "is" if memory is module else f"contains {inner},"
        raise ValueError(
            f"{name} {holds} a module with memory whose state step(x, state) cannot pass on: "
            f"make {name} a SequenceModule that defines step(x, state), or use nn.Sequential; "
            "torch.compile and DataParallel belong around the whole model"
        )


def step(module: nn.Module, x: Tensor, state: State = None) -> tuple[Tensor, State]:
    """Advance any module by one step: x [...] -> (y, state).

    The layers of an nn.Sequential are advanced in turn, see `sequential_step`, unless it has a
    `forward` of its own and no `step`; a stateless module is called with x (its state is None).

    Raises:
        TypeError, ValueError: as `refuse_hidden_state`.
    """
    if has_step(module):
        return module.step(x, state)
    if is_plain_sequential(module):
        return sequential_step(module, x, state)
    refuse_hidden_state(module)
    return module(x), None


def sequential_step(layers: nn.Sequential, x: Tensor, state: State = None) -> tuple[Tensor, State]:
    """Advance each layer by one step, the output of one being the input of the next.

    The state is a tuple, one entry a layer.
    """
    states = (None,) * len(layers) if state is None else state
    after = []
    for layer, layer_state in zip(layers, states, strict=True):
        x, layer_state = step(layer, x, layer_state)
        after.append(layer_state)
    return x, tuple(after)


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


def as_float(x: Tensor) -> Tensor:
    """x; in torch's default dtype if it holds integers or bools, which would truncate a trace."""
    if x.is_floating_point() or x.is_complex():
        return x
    return x.to(torch.get_default_dtype())


def at_rest(x: Tensor, value: float = 0.0) -> Tensor:
    """A state of x's shape filled with `value`; float64 if x is float64, else float32."""
    return torch.full_like(x, value, dtype=torch.promote_types(x.dtype, torch.float32))
