"""What runs each layer, and that a backend chosen by name runs it or is an error."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rsnn_fmnist import models
from rsnn_fmnist.spiking import (
    IF,
    LIF,
    SURROGATES,
    BackendUnavailableError,
    ElementWiseRecurrentContainer,
    LinearRecurrentContainer,
    SequenceModule,
    SynapseFilter,
    TimeDistributed,
    set_backend,
    step,
)
from rsnn_fmnist.spiking.backend import backends_in_use

CPU = torch.device("cpu")


class Mine(SequenceModule):
    """A user's layer that defines a step."""

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return x, state


class Parts(SequenceModule):
    """A user's layer that runs the sequences of two others."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.first, self.second = parts

    def sequence(self, x_seq: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.second(self.first(x_seq)), None


class Whole(SequenceModule):
    """A user's layer that computes a sequence at once."""

    def sequence(self, x_seq: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return x_seq.cumsum(0), None


class MyIF(IF):
    """Steps of its own may follow."""


WITHOUT_KERNELS = {
    "element-wise": (
        lambda: ElementWiseRecurrentContainer(IF(), torch.add),
        "ElementWiseRecurrentContainer, which has no kernel",
    ),
    "around a Sequential": (
        lambda: LinearRecurrentContainer(nn.Sequential(nn.Linear(4, 4), IF()), 4, 4),
        "a LinearRecurrentContainer has kernels around an IF or a LIF, not a Sequential",
    ),
    "around a filter": (
        lambda: LinearRecurrentContainer(SynapseFilter(2.0), 4, 4),
        "not a SynapseFilter",
    ),
    "around a subclass": (lambda: LinearRecurrentContainer(MyIF(), 4, 4), "not a MyIF"),
    "a user's": (Mine, "Mine, which has no kernel"),
}


@pytest.mark.parametrize("name", WITHOUT_KERNELS)
def test_a_backend_that_cannot_be_had_is_an_error(name: str) -> None:
    build, message = WITHOUT_KERNELS[name]
    layer, x_seq = build(), torch.rand(5, 3, 4)
    expected = layer(x_seq)
    model = nn.Sequential(nn.Linear(4, 4), layer)
    for backend in ("numba", "cupy"):
        set_backend(model, backend)
        with pytest.raises(BackendUnavailableError, match=f"backend '{backend}'"):
            layer(x_seq)
        with pytest.raises(BackendUnavailableError, match="choose auto or torch"):
            model(x_seq)
    set_backend(model, "numba")
    with pytest.raises(BackendUnavailableError, match=message):
        layer.sequence(x_seq)
    with pytest.raises(BackendUnavailableError, match=f"^1: .*{message}"):
        backends_in_use(model, CPU)
    assert torch.equal(step(layer, x_seq[0])[0], layer.step(x_seq[0])[0])  # a step runs in torch
    for backend in ("auto", "torch"):
        set_backend(model, backend)
        assert torch.equal(layer(x_seq), expected)
        assert backends_in_use(model, CPU) == {"1": "torch"}


@pytest.mark.parametrize("name", ["sigmoid", "erf"])
def test_slopes_that_torch_computes_are_no_fallback(name: str) -> None:
    neuron = IF(surrogate=SURROGATES[name]())
    set_backend(neuron, "numba")
    neuron(torch.rand(3, 2, requires_grad=True)).sum().backward()
    assert backends_in_use(neuron, CPU) == {"model": "numba"}


@pytest.mark.parametrize("name", models.MODELS)
def test_the_networks_run_on_kernels(name: str) -> None:
    model = models.build(name)
    assert set(backends_in_use(model, CPU).values()) == {"numba"}
    assert next(iter(backends_in_use(model, CPU))) == "sn1"
    set_backend(model, "torch")
    assert set(backends_in_use(model, CPU).values()) == {"torch"}


def test_what_runs_each_layer() -> None:
    inner = LinearRecurrentContainer(nn.Sequential(nn.Linear(4, 4), IF()), 4, 4)
    model = nn.ModuleDict(
        {
            "sn1": ElementWiseRecurrentContainer(IF(), torch.add),
            "sn2": inner,
            "sn3": LinearRecurrentContainer(LIF(), 4, 4),
            "conv": TimeDistributed(nn.Conv1d(4, 4, 1)),
            "block": nn.Sequential(nn.Linear(4, 4), Parts(SynapseFilter(2.0), Mine())),
            "whole": Whole(),
            "step": Mine(),
        }
    )
    assert backends_in_use(model, CPU) == {
        "sn1": "torch",
        "sn2": "torch",
        "sn3": "numba",
        "block.1.first": "numba",
        "block.1.second": "torch",
        "whole": "torch",
        "step": "torch",
    }
    set_backend(model, "numba")  # a user's own sequence is the user's choice
    assert backends_in_use(model["whole"], CPU) == {"model": "torch"}
