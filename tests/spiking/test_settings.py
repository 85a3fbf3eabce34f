"""Settings of layers are plain numbers: anything else is refused by name, now or when replaced."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rsnn_fmnist.spiking import (
    IF,
    LIF,
    SURROGATES,
    ATan,
    LinearRecurrentContainer,
    Surrogate,
    SynapseFilter,
)

X_SEQ = torch.tensor([[0.5, 1.5], [0.75, 0.25], [1.0, 2.0]])
TENSORS = {
    "Parameter": lambda: nn.Parameter(torch.tensor(2.0)),
    "Tensor": lambda: torch.full((2,), 2.0),  # one value per channel
    "ndarray": lambda: np.full(2, 2.0),
    "str": lambda: "2",
    "bool": lambda: True,
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("tau", lambda value: LIF(tau=value)),
        ("v_threshold", lambda value: IF(v_threshold=value)),
        ("v_reset", lambda value: LIF(v_reset=value)),
        ("alpha", lambda value: ATan(alpha=value)),
        ("tau", lambda value: SynapseFilter(tau=value, learnable=True)),
    ],
)
def test_a_number_is_not_a_tensor(name: str, build: Callable[[Any], Any], kind: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is of type {kind}; it must be a number"):
        build(TENSORS[kind]())


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("name", ["tau", "v_threshold", "v_reset"])
def test_nor_when_a_subclass_replaces_it(name: str, kind: str) -> None:
    class Learnt(LIF):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, TENSORS[kind]())

    layer = Learnt()
    for call in (layer, layer.sequence, layer.step, LinearRecurrentContainer(layer, 2, 2)):
        with pytest.raises(TypeError, match=f"{name} is of type {kind}"):
            call(X_SEQ)


def test_nor_when_a_subclass_computes_it() -> None:
    class Learnt(LIF):
        tau = property(lambda self: torch.tensor(2.0), lambda self, value: None)

    with pytest.raises(TypeError, match="tau is of type Tensor"):
        Learnt()


@pytest.mark.parametrize("number", [np.float32(3), np.float64(3), np.int64(3), 3])
def test_numbers_of_other_types_are_converted(number: Any) -> None:
    expected = LIF(3.0, 3.0, surrogate=ATan(3.0))
    neuron = LIF(number, number, surrogate=ATan(number))
    assert neuron.settings() == expected.settings()
    assert {type(value) for value in (neuron.settings().tau, neuron.surrogate.alpha)} == {float}
    assert torch.equal(neuron(X_SEQ * 4), expected(X_SEQ * 4))
    assert SynapseFilter(number).tau == 3
    assert LIF(detach_reset=np.bool_(True)).settings().detach_reset is True


@dataclass(frozen=True)
class Scaled(Surrogate):
    """A user's surrogate with a scale of its own."""

    alpha: float = 1.0
    scale: Any = field(default_factory=lambda: nn.Parameter(torch.tensor(1.0)))
    name = "scaled"

    def slope(self, u: Tensor) -> Tensor:
        return self.scale / (1 + (self.alpha * u).square())


@pytest.mark.parametrize(
    ("surrogate", "message"),
    [
        (ATan, r"surrogate is the class ATan; give an instance, ATan\(\)"),
        (torch.sigmoid, "must be a Surrogate"),
        ("atan", "surrogate is of type str"),
        (SURROGATES, "surrogate is of type dict"),
        (Scaled(), "scale of the surrogate Scaled is a tensor that requires a gradient"),
    ],
)
def test_a_surrogate_is_an_instance(surrogate: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        IF(surrogate=surrogate)
    neuron = LIF()
    neuron.surrogate = surrogate
    with pytest.raises(TypeError, match=message):
        neuron(X_SEQ)
    constant = Scaled(scale=torch.tensor(2.0))  # a tensor that is not to be learnt is a constant
    assert IF(surrogate=constant)(X_SEQ).shape == X_SEQ.shape


def test_a_truth_value_is_no_name() -> None:
    for value in ("none", 0, None):
        with pytest.raises(TypeError, match=r"detach_reset is .*; it must be True or False"):
            IF(detach_reset=value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="learnable is 1"):
        SynapseFilter(2.0, learnable=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layer", "name", "value", "message"),
    [
        (IF(), "tau", 3.0, "tau is 3.0, but an IF has no leak; use LIF"),
        (LIF(), "tau", None, "tau is of type NoneType"),
        (LIF(), "tau", 0.5, "at least 1"),
        (IF(), "v_reset", 1.0, "must lie above the resting potential 1.0"),
        (IF(), "v_threshold", float("nan"), "must be finite"),
        (IF(), "detach_reset", "none", "must be True or False"),
        (SynapseFilter(2.0, True), "w", nn.Parameter(torch.zeros(2)), r"w has shape \[2\]"),
    ],
)
def test_what_is_replaced_is_checked(layer: Any, name: str, value: Any, message: str) -> None:
    setattr(layer, name, value)
    for call in (layer, layer.step):
        with pytest.raises((TypeError, ValueError), match=message):
            call(X_SEQ)


def test_the_time_constant_of_a_filter_is_that_of_its_decay() -> None:
    synapse = SynapseFilter(2.0, learnable=True)
    for value in (False, True):
        with pytest.raises(AttributeError, match="learnable"):
            synapse.learnable = value  # False would run with the tau of the start
    with pytest.raises(AttributeError, match="tau"):
        synapse.tau = 3.0
    nn.init.constant_(synapse.w, -105.0)  # float32 has no smaller k than about e^-104
    assert synapse.tau == float("inf")
    assert "tau=inf" in repr(synapse)
    assert torch.equal(synapse(torch.eye(3)), torch.eye(3).cumsum(0))
    assert SynapseFilter(1e300, learnable=True).tau == float("inf")
    half = SynapseFilter(2.0**20, learnable=True).half()  # k is below the least half-precision one
    assert half.tau > 1e6


@pytest.mark.parametrize("name", ["torch", "numba"])
@pytest.mark.parametrize("contained", [False, True])
def test_a_new_resting_potential_is_used_everywhere(name: str, contained: bool) -> None:
    """In step and sequence, on each backend, as if it had been there from the start."""

    def build(v_reset: float) -> Any:
        torch.manual_seed(0)
        layer = LIF(3.0, v_reset=v_reset)
        return LinearRecurrentContainer(layer, 2, 2) if contained else layer

    changed, expected = build(0.0), build(-0.5)
    (changed.sub_module if contained else changed).v_reset = -0.5
    changed.backend = expected.backend = name
    assert torch.equal(changed(X_SEQ * 3), expected(X_SEQ * 3))
    after = changed.step(X_SEQ[0]), expected.step(X_SEQ[0])
    torch.testing.assert_close(*after, rtol=0, atol=0)
