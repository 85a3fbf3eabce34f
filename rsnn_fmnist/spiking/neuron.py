"""Integrate-and-fire neurons, IF and LIF: functions, and the modules that call them.

The equations, forward and backward, are those of `if_step` and `lif_step`. `neuron_sequence` calls
these step by step and is the reference that every kernel is compared with. Potentials are in
threshold units, time constants in steps; a neuron fires when h >= v_threshold. Learnable thresholds
and time constants are left out.

The compiled training step does not run these modules' `forward`: training/compiled_step.py reads
their settings, and kernels/cpu/chain.py computes the same equations for a whole network.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import backend
from .sequence import Reference, SequenceModule, as_float, at_rest, first_step, unroll
from .settings import flag, number
from .surrogate import ATan, Surrogate, checked

Run = Callable[..., tuple[Tensor, Tensor]]
Observer = Callable[[Tensor, Tensor], None]  # called with s and h of n steps, [n, N, ...]


@dataclass(frozen=True)
class NeuronSettings:
    """What a layer of neurons passes to `neuron_sequence` and its kernels; fields as in `LIF`.

    Raises:
        ValueError: as `LIF`.
    """

    tau: float | None  # None: IF
    v_threshold: float
    v_reset: float | None
    surrogate: Surrogate
    detach_reset: bool

    def __post_init__(self) -> None:
        if self.tau is not None and not (math.isfinite(self.tau) and self.tau >= 1):
            raise ValueError(
                f"tau is {self.tau}; a membrane time constant is finite and at least 1"
            )
        if not (math.isfinite(self.v_threshold) and math.isfinite(self.v_rest)):
            raise ValueError(
                f"v_threshold {self.v_threshold} and v_reset {self.v_reset} must be finite"
            )
        if self.v_threshold <= self.v_rest:
            raise ValueError(
                f"v_threshold {self.v_threshold} must lie above the resting potential {self.v_rest}"
            )

    @property
    def v_rest(self) -> float:
        """See `resting_potential`."""
        return resting_potential(self.v_reset)

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of `lif_step`, or of `if_step` if tau is None."""
        leak = {} if self.tau is None else {"tau": self.tau}
        return leak | {
            "v_threshold": self.v_threshold,
            "v_reset": self.v_reset,
            "surrogate": self.surrogate,
            "detach_reset": self.detach_reset,
        }


def resting_potential(v_reset: float | None) -> float:
    """v_reset, or 0 if the reset is soft."""
    return 0.0 if v_reset is None else v_reset


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

    Forward:
        h = v + x                           charge
        s = [h >= v_threshold]              fire
        v_next = h (1 - s) + v_reset s      hard reset
               = h - v_threshold s          soft reset, v_reset None

    Backward, sigma' being the surrogate's slope at h - v_threshold:
        dL/dh = dL/ds sigma' + dL/dv_next r
        dL/dx = dL/dh
        dL/dv = dL/dh
    with r = dv_next/dh:
        r = 1 - s                           hard reset, detached
          = 1 - s + (v_reset - h) sigma'    hard reset, attached
          = 1                               soft reset, detached
          = 1 - v_threshold sigma'          soft reset, attached

    Args:
        x, v: input and potential, [N, ...], in threshold units; v in float32 at least.
        detach_reset: whether the reset is detached: no gradient passes through its s.
        observe: called with s and h, [1, N, ...]; see `monitor`.
    Returns:
        s, v_next: s in x's dtype, 0 or 1; v_next in v's dtype.
    Source: Fang et al. 2021, arXiv:2007.05785 (charge, fire, reset), without the leak.
    """
    return _fire_and_reset(v + x, x, v_threshold, v_reset, surrogate, detach_reset, observe)


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
    """Advance leaky integrate-and-fire neurons by one step; fire, reset and dL/dh as in `if_step`.

    Forward:
        h = v + (x - (v - v_rest)) / tau    charge; v_rest = v_reset, 0 if that is None

    Backward:
        dL/dx = dL/dh / tau
        dL/dv = dL/dh (1 - 1 / tau)

    Args:
        tau: membrane time constant in steps, >= 1. The others as in `if_step`.
    Returns:
        s, v_next: as `if_step`.
    Source: Fang et al. 2021, arXiv:2007.05785, equation 2.
    """
    h = v + (x - (v - resting_potential(v_reset))) / tau
    return _fire_and_reset(h, x, v_threshold, v_reset, surrogate, detach_reset, observe)


def _fire_and_reset(
    h: Tensor,
    x: Tensor,
    v_threshold: float,
    v_reset: float | None,
    surrogate: Surrogate,
    detach_reset: bool,
    observe: Observer | None,
) -> tuple[Tensor, Tensor]:
    """What follows the charge in both steps; see `if_step`."""
    s = surrogate(h - v_threshold)
    s_reset = s.detach() if detach_reset else s
    if v_reset is None:
        v_next = h - v_threshold * s_reset
    else:
        finite = h.clamp(max=torch.finfo(h.dtype).max)  # infinity times 1 - s would be NaN
        v_next = finite * (1 - s_reset) + v_reset * s_reset
    s = s.to(x.dtype)
    if observe is not None:
        observe(s.detach()[None], h.detach()[None])
    return s, v_next


def neuron_sequence(
    x_seq: Tensor, v: Tensor, *, neuron: NeuronSettings, observe: Observer | None = None
) -> tuple[Tensor, Tensor]:
    """Run `lif_step`, or `if_step` if neuron.tau is None, along a sequence.

    Args:
        x_seq, v: inputs [T, N, ...] and the potential before the first step, [N, ...].
        observe: called with s and h, [n, N, ...], of n successive steps at a time.
    Returns:
        s_seq [T, N, ...], and the potential after the last step, [N, ...].
    Raises:
        ValueError: x_seq has no steps.
    """
    advance = if_step if neuron.tau is None else lif_step
    return unroll(partial(advance, **neuron.keywords(), observe=observe), x_seq, v)


class Neuron(SequenceModule):
    """Base of IF and LIF: one neuron for each element of x at one step.

    The state is the potential v, shaped as x; at rest it is v_reset, or 0 if that is None. A
    subclass names two functions: `step_function`, called as `if_step` or `lif_step` is, and
    `sequence_function`, called as `neuron_sequence` is.

    These settings are attributes, which may be replaced; they are checked whenever they are read.

    Args:
        v_threshold: potential at which a neuron fires.
        v_reset: potential after a spike (hard reset); None subtracts the threshold (soft reset).
        surrogate: supplies the slope of a spike in the backward pass; default ATan().
        detach_reset: whether gradients are kept from passing through the spike of the reset.
    Raises:
        TypeError: a setting is not of its type; a tensor is not a number, as it would not be
            learnt.
        ValueError: the threshold is not above the resting potential, or a value is not finite.
    """

    step_function: ClassVar[Run]
    sequence_function: ClassVar[Run]
    observer: Observer | None = None  # set by `monitor` while the layer is recorded
    tau: float | None  # None: no leak

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate: Surrogate | None = None,
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        self.tau = None
        self.v_threshold = v_threshold
        self.v_reset = v_reset
        self.surrogate = ATan() if surrogate is None else surrogate
        self.detach_reset = detach_reset
        Neuron.settings(self)  # a subclass may have further settings, which are not there yet

    def settings(self) -> NeuronSettings:
        """The layer's settings as they are now.

        Raises:
            TypeError, ValueError: as the constructor.
        """
        tau, v_reset = self.tau, self.v_reset
        return NeuronSettings(
            tau=None if tau is None else number("tau", tau),
            v_threshold=number("v_threshold", self.v_threshold),
            v_reset=None if v_reset is None else number("v_reset", v_reset),
            surrogate=checked(self.surrogate),
            detach_reset=flag("detach_reset", self.detach_reset),
        )

    def reference(self) -> Reference:
        return self.sequence_function, {"neuron": self.settings()}

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, neuron = as_float(x), self.settings()
        v = at_rest(x, neuron.v_rest) if state is None else state
        return self.step_function(x, v, **neuron.keywords(), **self._observing())

    def sequence(self, x_seq: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x_seq = as_float(x_seq)
        reference, settings = self.reference()
        v = at_rest(first_step(x_seq), settings["neuron"].v_rest) if state is None else state
        run = backend.implementation(reference, x_seq, self.backend, **settings)
        return run(x_seq, v, **settings, **self._observing())

    def _observing(self) -> dict[str, Observer]:
        return {} if self.observer is None else {"observe": self.observer}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings().keywords().items())


class IF(Neuron):
    """Integrate-and-fire neurons: `if_step` along a sequence. For the arguments see `Neuron`."""

    step_function = staticmethod(if_step)
    sequence_function = staticmethod(neuron_sequence)

    def settings(self) -> NeuronSettings:
        if self.tau is not None:
            raise ValueError(f"tau is {self.tau}, but an IF has no leak; use LIF")
        return super().settings()


class LIF(Neuron):
    """Leaky integrate-and-fire neurons: `lif_step` along a sequence.

    Args:
        tau: membrane time constant in steps, >= 1; with 1, nothing is left of v after a step.
        v_threshold, v_reset, surrogate, detach_reset: see `Neuron`.
    Raises:
        ValueError: tau is below 1 or not finite; others as `Neuron`.
        TypeError: as `Neuron`.
    """

    step_function = staticmethod(lif_step)
    sequence_function = staticmethod(neuron_sequence)

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate: Surrogate | None = None,
        detach_reset: bool = False,
    ) -> None:
        super().__init__(v_threshold, v_reset, surrogate, detach_reset)
        self.tau = tau
        self.settings()

    def settings(self) -> NeuronSettings:
        number("tau", self.tau)  # None would be an IF
        return super().settings()
