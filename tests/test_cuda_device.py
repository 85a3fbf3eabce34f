"""The CUDA kernels on a CUDA device, against the torch reference there; needs CuPy."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from test_cuda_emulation import (
    ALL_SURROGATES,
    DTYPES,
    NEURONS,
    RESETS,
    compare,
    dyadic,
    recurrent_functions,
    recurrent_inputs,
    sequence_functions,
)
from torch import Tensor, nn

from rsnn_fmnist import models
from rsnn_fmnist.spiking import IF, LIF, SynapseFilter, set_backend
from rsnn_fmnist.spiking.kernels import cuda
from rsnn_fmnist.spiking.neuron import Neuron
from rsnn_fmnist.spiking.synapse import filter_sequence

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def device() -> torch.device:
    device = torch.device("cuda", torch.cuda.current_device())
    why_not = cuda.missing(device)
    if why_not is not None:
        pytest.skip(why_not)
    return device


def moved(inputs: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: x.to(device) for name, x in inputs.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("surrogate", ALL_SURROGATES)
@pytest.mark.parametrize("neuron", NEURONS)
def test_neurons(
    neuron: type[Neuron], surrogate: str, dtype: torch.dtype, device: torch.device
) -> None:
    for reset, detach_reset in product(RESETS.values(), (True, False)):
        layer = neuron(
            v_reset=reset, surrogate=ALL_SURROGATES[surrogate](), detach_reset=detach_reset
        )
        inputs = {
            "x": dyadic(11, 33, 65, low=-1, high=3),
            "v": dyadic(33, 65, low=-1, high=1, seed=1),
        }
        compare(*sequence_functions(layer), moved(inputs, device), dtype, state=("v",))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_filter(dtype: torch.dtype, device: torch.device) -> None:
    inputs = {
        "x": (dyadic(11, 33, 65, low=-1, high=1) > 0.25).double(),
        "y": dyadic(33, 65, low=0, high=2, seed=1),
        "k": torch.tensor(0.5),
    }
    compare(
        lambda x, y, k: filter_sequence(x, y, k=k),
        lambda x, y, k: cuda.filter_sequence(x, y, k=k),
        moved(inputs, device),
        dtype,
        state=("y", "k"),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sub_module", [IF(), LIF(v_reset=None, detach_reset=True)], ids=str)
def test_recurrent(sub_module: Neuron, dtype: torch.dtype, device: torch.device) -> None:
    inputs = moved(recurrent_inputs(9, 1000, 9), device)
    compare(*recurrent_functions(sub_module), inputs, dtype, state=("v",))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("samples", [3, 700])
@pytest.mark.parametrize("features", [1, 32, 100, 300, 1024])
def test_recurrent_of_any_width(
    features: int, samples: int, dtype: torch.dtype, device: torch.device
) -> None:
    inputs = moved(recurrent_inputs(5, samples, features), device)
    y_seq, *_ = compare(*recurrent_functions(IF()), inputs, dtype, state=("v",))
    assert 0.02 < y_seq.mean() < 0.98, "silent or saturated: shows nothing"


def test_results_do_not_change_from_run_to_run(device: torch.device) -> None:
    gradients = []
    for _ in range(3):
        synapse = SynapseFilter(tau=2.0, learnable=True).to(device)
        set_backend(synapse, "cupy")
        x = dyadic(28, 128, 32, low=0, high=2).float().to(device)
        synapse(x).square().sum().backward()
        gradients.append(synapse.w.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_a_kernel_waits_for_its_stream(device: torch.device) -> None:
    stream = torch.cuda.Stream(device)
    x = torch.zeros(4, 1 << 20, device=device)
    v = torch.zeros(1 << 20, device=device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what comes later on the stream has to wait
        x.fill_(2.0)
        s, _ = cuda.if_sequence(x, v, **IF().settings())
    stream.synchronize()
    assert bool(s.all())


def training_step(model: nn.Module, pictures: Tensor) -> Callable[[], Tensor]:
    def step() -> Tensor:
        loss = model(pictures).square().mean()
        loss.backward()
        return loss

    return step


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", ["plain", "feedback", "stateful-synapse"])
def test_a_graph_replays_forward_and_backward(name: str, amp: bool, device: torch.device) -> None:
    model: Any = models.build(name).to(device)
    set_backend(model, "cupy")
    pictures = torch.randn(16, 28, 28, device=device)
    step = training_step(model, pictures)
    with torch.autocast("cuda", torch.bfloat16, enabled=amp, cache_enabled=False):
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # compiles, and launches everything once
            step()
        torch.cuda.current_stream(device).wait_stream(side)
        model.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step()
        with torch.no_grad():  # a replay reads what is there then, the learnt k too
            pictures.copy_(torch.randn_like(pictures))
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        graph.replay()
        replayed = [loss.clone(), *(p.grad.clone() for p in model.parameters())]
        model.zero_grad(set_to_none=True)
        eager = [step(), *(p.grad for p in model.parameters())]
    for got, want in zip(replayed, eager, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one() -> None:
    x = dyadic(11, 33, low=-1, high=3).to("cuda:1")
    v = torch.zeros(33, dtype=torch.float64, device="cuda:1")
    reference, kernel = sequence_functions(LIF())
    assert torch.equal(kernel(x, v)[0], reference(x, v)[0])
