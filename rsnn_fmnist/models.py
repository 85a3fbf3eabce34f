"""The registry of models, and the three networks of the experiment.

A model is any module from pictures [N, H, W] or [N, 1, H, W] to scores [N, 10]. The three here
read a picture's columns from left to right as time steps and answer with firing rates. A user's
own model is registered the same way, from the user's own file (--models-file).
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .spiking import IF, SURROGATES, LinearRecurrentContainer, SynapseFilter

PIXELS, CLASSES = 28, 10  # a column's pixels and the classes of FashionMNIST

MODELS: dict[str, Callable[..., nn.Module]] = {}


def register(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Enter a function that builds a model under `name`, for --model.

    Raises:
        ValueError: the name is taken.
    """

    def enter(factory: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if name in MODELS:
            raise ValueError(f"a model named {name!r} is registered already")
        MODELS[name] = factory
        return factory

    return enter


def options(name: str) -> set[str]:
    """The names of the options that the model takes: those of its factory's parameters."""
    return set(inspect.signature(_factory(name)).parameters)


def build(name: str, **chosen: Any) -> nn.Module:
    """Build a registered model.

    Raises:
        KeyError: no such model.
        TypeError: an option that the model does not take.
    """
    return _factory(name)(**chosen)


def _factory(name: str) -> Callable[..., nn.Module]:
    if name not in MODELS:
        raise KeyError(f"unknown model {name!r}; registered: {', '.join(MODELS)}")
    return MODELS[name]


class ColumnReader(nn.Sequential):
    """Layers over time that read a picture column by column.

    x [N, H, W] or [N, 1, H, W] -> rates [N, classes]: the width is read as time, one column of H
    pixels a step, and the spikes of the last layer are averaged over it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = x.squeeze(1)
        x_seq = x.permute(2, 0, 1)  # [N, H, W] -> [T = W, N, F = H]
        s_seq: Tensor = super().forward(x_seq)  # type: ignore[no-untyped-call]
        at_least_float32 = torch.promote_types(s_seq.dtype, torch.float32)
        return s_seq.mean(0, dtype=at_least_float32)


def neurons(surrogate: str, detach: bool) -> IF:
    """IF neurons of the experiment: threshold 1, hard reset to 0."""
    return IF(surrogate=SURROGATES[surrogate](), detach_reset=detach)


@register("plain")
def plain(hidden: int = 32, surrogate: str = "atan", detach_reset: str = "all") -> nn.Module:
    """No memory but the membrane: the baseline. 1,258 parameters at hidden = 32.

    Args:
        hidden: neurons of the hidden layer.
        surrogate: a name of SURROGATES.
        detach_reset: neurons without a gradient through the reset: "all", "recurrent" (only those
            inside a recurrent container) or "none".
    """
    detach = detach_reset == "all"
    return ColumnReader(
        OrderedDict(
            fc1=nn.Linear(PIXELS, hidden),
            sn1=neurons(surrogate, detach),
            fc2=nn.Linear(hidden, CLASSES),
            sn2=neurons(surrogate, detach),
        )
    )


@register("feedback")
def feedback(hidden: int = 32, surrogate: str = "atan", detach_reset: str = "all") -> nn.Module:
    """The hidden spikes return one step later through a linear layer. 3,338 parameters at
    hidden = 32; arguments as `plain`.
    """
    recurrent = neurons(surrogate, detach_reset != "none")
    return ColumnReader(
        OrderedDict(
            fc1=nn.Linear(PIXELS, hidden),
            sn1=LinearRecurrentContainer(recurrent, hidden, hidden),
            fc2=nn.Linear(hidden, CLASSES),
            sn2=neurons(surrogate, detach_reset == "all"),
        )
    )


@register("stateful-synapse")
def stateful_synapse(
    hidden: int = 32, surrogate: str = "atan", detach_reset: str = "all"
) -> nn.Module:
    """The hidden spikes pass a filter that remembers them. 1,259 parameters at hidden = 32;
    arguments as `plain`.
    """
    detach = detach_reset == "all"
    return ColumnReader(
        OrderedDict(
            fc1=nn.Linear(PIXELS, hidden),
            sn1=neurons(surrogate, detach),
            sy1=SynapseFilter(tau=2.0, learnable=True),
            fc2=nn.Linear(hidden, CLASSES),
            sn2=neurons(surrogate, detach),
        )
    )
