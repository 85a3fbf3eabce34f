"""Comparisons with the golden file, which holds what the tutorial's library computes in float64.

The tests of the references, the CPU kernels and the CUDA kernels share them.
"""

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from torch import Tensor, nn

from rsnn_fmnist import models
from rsnn_fmnist.spiking import IF, LIF, SequenceModule, SynapseFilter, set_backend
from rsnn_fmnist.spiking import surrogate as surrogates
from rsnn_fmnist.spiking.neuron import Neuron

TOLERANCE = {"rtol": 0, "atol": 1e-10}
NETWORKS = ["plain", "feedback", "stateful-synapse"]

Golden = dict[str, np.ndarray]


def cases(group: str) -> list[str]:
    """The cases of a group of the golden file, as `group/case`."""
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return sorted({path.rsplit("/", 1)[0] for path in arrays if path.startswith(group + "/")})


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())


def assert_equals_golden(module: SequenceModule, golden: Golden, case: str, output: str) -> None:
    """Compare outputs (spikes by equality), last potentials, input and parameter gradients."""
    x = tensor(golden[f"{case}/x"]).requires_grad_()
    y_seq, state = module.sequence(x)
    (y_seq * tensor(golden[f"{case}/upstream"])).sum().backward()
    expected = tensor(golden[f"{case}/{output}"])
    if output == "spikes":
        assert torch.equal(y_seq, expected)
        assert 0.02 < y_seq.mean() < 0.98, "silent or saturated: nothing to compare"
    else:
        torch.testing.assert_close(y_seq, expected, **TOLERANCE)
    torch.testing.assert_close(x.grad, tensor(golden[f"{case}/dx"]), **TOLERANCE)
    if f"{case}/v_last" in golden:
        torch.testing.assert_close(state, tensor(golden[f"{case}/v_last"]), **TOLERANCE)
    for path in (p for p in golden if p.startswith(f"{case}/grad:")):
        gradient = module.get_parameter(path.split(":")[1]).grad
        torch.testing.assert_close(gradient, tensor(golden[path]), **TOLERANCE)


def load_parameters(module: nn.Module, golden: Golden, case: str) -> None:
    """The golden parameters, under this package's names."""
    prefix = f"{case}/param:"
    paths = [path for path in golden if path.startswith(prefix)]
    state = {
        path.removeprefix(prefix).replace("1.0.", "1."): tensor(golden[path]) for path in paths
    }
    module.load_state_dict(state)


GOLDEN_NEURONS = [(case, case.split("/")[1]) for case in cases("neuron") + cases("reset")]


def build_neuron(name: str, golden: Golden, case: str) -> Neuron:
    """A neuron by the name of its case: `lif-soft-attach-Erf` or `lif-tau5.0-vreset-0.3-attach`."""
    alpha = float(golden[f"{case}/alpha"])
    surrogate = surrogates.ATan(alpha)
    v_reset: float | None = None if "-soft-" in name else 0.0
    for cls in ("Sigmoid", "Erf", "SoftSign", "PiecewiseQuadratic"):
        if name.endswith("-" + cls):
            surrogate = getattr(surrogates, cls)(alpha)
    if case.startswith("reset/"):
        v_reset = float(golden[f"{case}/v_reset"])
    arguments = (v_reset, surrogate, "-detach" in name)
    if name.startswith("if"):
        return IF(1.0, *arguments)
    tau = float(golden[f"{case}/tau"]) if case.startswith("reset/") else 2.0
    return LIF(tau, 1.0, *arguments)


def check_neuron(golden: Golden, case: str, name: str, backend: str) -> None:
    """Compare a neuron of GOLDEN_NEURONS."""
    neuron = build_neuron(name, golden, case)
    set_backend(neuron, backend)
    assert_equals_golden(neuron, golden, case, "spikes")


def check_filter(golden: Golden, learnable: bool, backend: str) -> None:
    """Compare the synapse filter, and the gradient of a learnt time constant."""
    case = "synapse/learnable" if learnable else "synapse/fixed"
    synapse = SynapseFilter(tau=float(golden[f"{case}/tau"]), learnable=learnable).double()
    set_backend(synapse, backend)
    if learnable:
        assert synapse.w.item() == pytest.approx(float(golden[f"{case}/w"]), abs=1e-7)
        synapse.w.data = tensor(golden[f"{case}/w"])
    assert_equals_golden(synapse, golden, case, "y")
    if learnable:
        torch.testing.assert_close(synapse.w.grad, tensor(golden[f"{case}/dw"]), **TOLERANCE)


def check_network(golden: Golden, name: str, backend: str) -> None:
    """Compare rates, loss and the gradient of every parameter."""
    case = f"net/{name}"
    model = models.build(name).double()
    load_parameters(model, golden, case)
    set_backend(model, backend)
    rates = model(tensor(golden[f"{case}/images"]))
    labels = tensor(golden[f"{case}/labels"]).long()
    loss = nn.functional.mse_loss(rates, nn.functional.one_hot(labels, 10).double())
    loss.backward()
    torch.testing.assert_close(rates, tensor(golden[f"{case}/rates"]), **TOLERANCE)
    torch.testing.assert_close(loss, tensor(golden[f"{case}/loss"]), **TOLERANCE)
    parameters = dict(model.named_parameters())
    for path in (p for p in golden if p.startswith(f"{case}/grad:")):
        parameter = parameters.pop(path.split(":")[1].replace("1.0.", "1."))
        torch.testing.assert_close(parameter.grad, tensor(golden[path]), **TOLERANCE)
    assert not parameters, "a parameter without a golden gradient"
