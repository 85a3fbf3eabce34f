"""Surrogate gradients: a spike is a step forward and a smooth slope backward.

    s = [u >= 0]                            forward, u = h - v_threshold
    dL/du = dL/ds slope(u)                  backward

The derivative of the step is 0 wherever it exists, so the backward pass takes the derivative of a
smooth function that resembles the step. Each class below states its `slope`, written sigma' in the
equations of the neurons; the smooth functions themselves are not needed and are left out.

Source: Neftci, Mostafa and Zenke 2019, arXiv:1901.09948; ATan from Fang et al. 2021,
arXiv:2007.05785.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .settings import number


class Spike(torch.autograd.Function):
    """[u >= 0] forward, the surrogate's slope at u backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, surrogate: "Surrogate") -> Tensor:
        return (u >= 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, "Surrogate"], output: Tensor) -> None:
        u, ctx.surrogate = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, grad_s: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grad_s * ctx.surrogate.slope(u), None


@dataclass(frozen=True)
class Surrogate(ABC):
    """A spike function; call it with u = h - v_threshold, any shape, to get 0 or 1 in u's dtype.

    Subclasses define `slope`. The CUDA kernels compute the slopes of the classes below, the CPU
    kernels those of ATan, SoftSign and PiecewiseQuadratic; for any other class, Sigmoid and Erf
    included, they call its `slope`, in torch, once for all steps.

    Args:
        alpha: sharpness, > 0; each surrogate has its own default. It is not learnt.
    Raises:
        TypeError: alpha is not a number.
        ValueError: it is not positive, or not finite.
    """

    alpha: float
    name: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", number("alpha", self.alpha))  # it is frozen
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha is {self.alpha}; it must be a positive finite number")

    def __call__(self, u: Tensor) -> Tensor:
        return Spike.apply(u, self)

    @abstractmethod
    def slope(self, u: Tensor) -> Tensor:
        """The derivative that the backward pass uses at u; shape and dtype of u."""


@dataclass(frozen=True)
class ATan(Surrogate):
    """slope(u) = (alpha / 2) / (1 + (pi/2 alpha u)^2)"""

    alpha: float = 2.0
    name: ClassVar[str] = "atan"

    def slope(self, u: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * u).square())


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """slope(u) = alpha q (1 - q), q = sigmoid(alpha u)"""

    alpha: float = 4.0
    name: ClassVar[str] = "sigmoid"

    def slope(self, u: Tensor) -> Tensor:
        q = torch.sigmoid(self.alpha * u)
        return self.alpha * q * (1 - q)


@dataclass(frozen=True)
class Erf(Surrogate):
    """slope(u) = alpha / sqrt(pi) exp(-(alpha u)^2)"""

    alpha: float = 2.0
    name: ClassVar[str] = "erf"

    def slope(self, u: Tensor) -> Tensor:
        return self.alpha / math.sqrt(math.pi) * torch.exp(-(self.alpha * u).square())


@dataclass(frozen=True)
class SoftSign(Surrogate):
    """slope(u) = alpha / (2 (1 + |alpha u|)^2)"""

    alpha: float = 2.0
    name: ClassVar[str] = "soft-sign"

    def slope(self, u: Tensor) -> Tensor:
        return self.alpha / (2 * (1 + (self.alpha * u).abs()).square())


@dataclass(frozen=True)
class PiecewiseQuadratic(Surrogate):
    """slope(u) = alpha - alpha^2 |u| where |u| <= 1 / alpha, else 0"""

    alpha: float = 1.0
    name: ClassVar[str] = "piecewise-quadratic"

    def slope(self, u: Tensor) -> Tensor:
        return (self.alpha - self.alpha**2 * u.abs()).clamp(min=0)


def checked(surrogate: Any) -> Surrogate:
    """The surrogate.

    Raises:
        TypeError: it is not an instance of Surrogate, or it has a tensor that should be learnt: a
            spike passes no gradient to it.
    """
    if isinstance(surrogate, type):
        raise TypeError(
            f"surrogate is the class {surrogate.__name__}; give an instance, {surrogate.__name__}()"
        )
    if not isinstance(surrogate, Surrogate):
        raise TypeError(
            f"surrogate is of type {type(surrogate).__name__}; it must be a Surrogate, such as "
            "ATan() or an instance of a subclass that defines slope(u)"
        )
    if type(surrogate).__call__ is Surrogate.__call__:
        for name, value in vars(surrogate).items():
            if isinstance(value, Tensor) and value.requires_grad:
                raise TypeError(
                    f"{name} of the surrogate {type(surrogate).__name__} is a tensor that requires "
                    "a gradient, and a spike passes none to it; give a number"
                )
    return surrogate


SURROGATES: dict[str, Callable[[], Surrogate]] = {
    cls.name: cls for cls in (ATan, Sigmoid, Erf, SoftSign, PiecewiseQuadratic)
}
