"""Integrate-and-fire neurons: IF and LIF, as functions and as thin modules over them.

The equations stand once, on the step functions; `*_sequence` unrolls them and is the reference
that every kernel is held to. Potentials are in threshold units, time constants in steps; a neuron
fires when h >= v_threshold. Learnable thresholds and time constants are left out.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from . import backend
from .sequence import SequenceModule, at_rest, first_step, unroll
from .surrogate import ATan, Surrogate

StepFunction = Callable[..., tuple[Tensor, Tensor]]  # (x, v, *, settings) -> (s, v)
Observer = Callable[[Tensor, Tensor], None]  # is told s and h, [n, N, ...], of n steps in turn


def if_step(
    x: Tensor,
    v: Tensor,
    *,
    v_threshold: float,
    v_reset: float | None,
    surrogate: Surrogate,
    detach_reset: bool,
    observe: Observer | None = None,
) -> tuple[Tensor, Tensor]:
    """Advance integrate-and-fire neurons by one step.

        h = v + x                           charge
        s = [h >= v_threshold]              fire; surrogate supplies the slope backward
        v_next = h (1 - s) + v_reset s      hard reset; v_reset None: h - v_threshold s

    Args:
        x, v: input and potential, [N, ...], in threshold units; v in float32 at least.
        detach_reset: no gradient through the s of the reset.
        observe: is told s and h, [1, N, ...]; see `monitor`.
    Returns:
        s, v_next: s as x, only 0 and 1; v_next as v.
    Source: Fang et al. 2021, arXiv:2007.05785 (charge, fire, reset), without the leak.
    """
    return _fire_and_reset(
        v + x,
        x,
        v_threshold=v_threshold,
        v_reset=v_reset,
        surrogate=surrogate,
        detach_reset=detach_reset,
        observe=observe,
    )


def lif_step(
    x: Tensor,
    v: Tensor,
    *,
    tau: float,
    v_threshold: float,
    v_reset: float | None,
    surrogate: Surrogate,
    detach_reset: bool,
    observe: Observer | None = None,
) -> tuple[Tensor, Tensor]:
    """Advance leaky integrate-and-fire neurons by one step; fire and reset as in `if_step`.

        h = v + (x - (v - v_rest)) / tau    charge; v_rest = v_reset, 0 when that is None

    Args:
        tau: membrane time constant in steps, >= 1.
    Source: Fang et al. 2021, arXiv:2007.05785, equation 2.
    """
    v_rest = 0.0 if v_reset is None else v_reset
    return _fire_and_reset(
        v + (x - (v - v_rest)) / tau,
        x,
        v_threshold=v_threshold,
        v_reset=v_reset,
        surrogate=surrogate,
        detach_reset=detach_reset,
        observe=observe,
    )


def _fire_and_reset(
    h: Tensor,
    x: Tensor,
    *,
    v_threshold: float,
    v_reset: float | None,
    surrogate: Surrogate,
    detach_reset: bool,
    observe: Observer | None = None,
) -> tuple[Tensor, Tensor]:
    """The half that IF and LIF share; see `if_step`."""
    s = surrogate(h - v_threshold)
    s_reset = s.detach() if detach_reset else s
    if v_reset is None:
        v_next = h - v_threshold * s_reset
    else:
        v_next = h * (1 - s_reset) + v_reset * s_reset
    s = s.to(x.dtype)
    if observe is not None:
        observe(s.detach()[None], h.detach()[None])
    return s, v_next


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
    """Run `if_step` along x_seq [T, N, ...] from v [N, ...] -> (s_seq [T, N, ...], v)."""
    advance = partial(
        if_step,
        v_threshold=v_threshold,
        v_reset=v_reset,
        surrogate=surrogate,
        detach_reset=detach_reset,
        observe=observe,
    )
    return unroll(advance, x_seq, v)


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
    """Run `lif_step` along x_seq [T, N, ...] from v [N, ...] -> (s_seq [T, N, ...], v)."""
    advance = partial(
        lif_step,
        tau=tau,
        v_threshold=v_threshold,
        v_reset=v_reset,
        surrogate=surrogate,
        detach_reset=detach_reset,
        observe=observe,
    )
    return unroll(advance, x_seq, v)


class Neuron(SequenceModule):
    """What IF and LIF share: one neuron for each element behind the time axis.

    The state is the potential v, shaped as x; at rest v = v_reset, or 0 when that is None.

    Args:
        v_threshold: potential at which a neuron fires.
        v_reset: potential after a spike (hard reset); None subtracts the threshold (soft reset).
        surrogate: the slope of the spike backward; ATan() when not given.
        detach_reset: no gradient through the spike of the reset.
    Raises:
        ValueError: a threshold not above the resting potential, or a value that is not finite.
    """

    step_function: ClassVar[StepFunction]
    sequence_function: ClassVar[StepFunction]
    observer: Observer | None = None  # set by `monitor` for as long as somebody looks

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate: Surrogate | None = None,
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        v_rest = 0.0 if v_reset is None else v_reset
        if not (math.isfinite(v_threshold) and math.isfinite(v_rest)):
            raise ValueError(f"v_threshold {v_threshold} and v_reset {v_reset} must be finite")
        if v_threshold <= v_rest:
            raise ValueError(
                f"v_threshold {v_threshold} must lie above the resting potential {v_rest}"
            )
        self.v_threshold = v_threshold
        self.v_reset = v_reset
        self.v_rest = v_rest
        self.surrogate = surrogate or ATan()
        self.detach_reset = detach_reset

    def settings(self) -> dict[str, Any]:
        """The keyword arguments of this neuron's functions."""
        return {
            "v_threshold": self.v_threshold,
            "v_reset": self.v_reset,
            "surrogate": self.surrogate,
            "detach_reset": self.detach_reset,
        }

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        v = at_rest(x, self.v_rest) if state is None else state
        return self.step_function(x, v, **self.settings(), **self._observing())

    def sequence(self, x_seq: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        v = at_rest(first_step(x_seq), self.v_rest) if state is None else state
        settings = self.settings()
        run = backend.implementation(self.sequence_function, x_seq, self.backend, **settings)
        return run(x_seq, v, **settings, **self._observing())

    def _observing(self) -> dict[str, Observer]:
        return {} if self.observer is None else {"observe": self.observer}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings().items())


class IF(Neuron):
    """Integrate-and-fire neurons; see `if_step` and, for the arguments, `Neuron`."""

    step_function = staticmethod(if_step)
    sequence_function = staticmethod(if_sequence)


class LIF(Neuron):
    """Leaky integrate-and-fire neurons; see `lif_step` and, for the other arguments, `Neuron`.

    Args:
        tau: membrane time constant in steps, >= 1 (1 forgets everything at each step).
    Raises:
        ValueError: tau below 1 or not finite.
    """

    step_function = staticmethod(lif_step)
    sequence_function = staticmethod(lif_sequence)

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate: Surrogate | None = None,
        detach_reset: bool = False,
    ) -> None:
        super().__init__(v_threshold, v_reset, surrogate, detach_reset)
        if not (math.isfinite(tau) and tau >= 1):
            raise ValueError(f"tau is {tau}; a membrane time constant is finite and at least 1")
        self.tau = tau

    def settings(self) -> dict[str, Any]:
        return {"tau": self.tau, **super().settings()}
