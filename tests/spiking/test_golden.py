"""The references and the CPU kernels agree with the tutorial's library in float64.

Outputs, losses and gradients are within 1e-10 of its results, spikes are equal. The two containers
here have no kernel: tests/spiking/test_backend.py has what they do on another backend than torch.
"""

import pytest
import torch
from helpers.golden_cases import (
    GOLDEN_NEURONS,
    NETWORKS,
    Golden,
    assert_equals_golden,
    check_filter,
    check_network,
    check_neuron,
    load_parameters,
)
from torch import nn

from rsnn_fmnist.spiking import (
    IF,
    LIF,
    ElementWiseRecurrentContainer,
    LinearRecurrentContainer,
    set_backend,
)

BACKENDS = ["torch", "numba"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("case", "name"), GOLDEN_NEURONS)
def test_neurons(golden: Golden, case: str, name: str, backend: str) -> None:
    check_neuron(golden, case, name, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("learnable", [True, False])
def test_synapse_filter(golden: Golden, learnable: bool, backend: str) -> None:
    check_filter(golden, learnable, backend)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_elementwise_container(golden: Golden, backend: str) -> None:
    container = ElementWiseRecurrentContainer(IF(v_reset=None, detach_reset=True), torch.add)
    set_backend(container, backend)
    assert_equals_golden(container, golden, "container/elementwise-add-if-soft", "spikes")


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_linear_container(golden: Golden, backend: str) -> None:
    sub_module = nn.Sequential(nn.Linear(4, 3), LIF(detach_reset=True))
    container = LinearRecurrentContainer(sub_module, 4, 3).double()
    load_parameters(container, golden, "container/linear-lif")
    set_backend(container, backend)
    assert_equals_golden(container, golden, "container/linear-lif", "spikes")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(golden: Golden, name: str, backend: str) -> None:
    check_network(golden, name, backend)
