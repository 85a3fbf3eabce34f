"""On a CUDA device: the kernels against the torch reference, and graph steps against eager ones.

These tests need CuPy.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.graph_steps import (
    PICTURES,
    WAITS,
    Regularised,
    built,
    graph_command,
    open_model,
    train,
)
from helpers.kernel_cases import (
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
from helpers.runs import final, stop
from torch import Tensor, nn
from torture import same

from rsnn_fmnist import cli, models
from rsnn_fmnist.spiking import IF, LIF, SynapseFilter, set_backend
from rsnn_fmnist.spiking.kernels.cuda import sequences
from rsnn_fmnist.spiking.neuron import Neuron
from rsnn_fmnist.spiking.synapse import filter_sequence
from rsnn_fmnist.storage import checkpoint
from rsnn_fmnist.training import cuda_graph
from rsnn_fmnist.training.cuda_graph import WARM_UP, CudaGraph
from rsnn_fmnist.training.step import Evaluation

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def device() -> torch.device:
    device = torch.device("cuda", torch.cuda.current_device())
    why_not = sequences.missing(device)
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
        lambda x, y, k: sequences.filter_sequence(x, y, k=k),
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
        torch.cuda._sleep(50_000_000)  # what follows on the stream has to wait
        x.fill_(2.0)
        s, _ = sequences.neuron_sequence(x, v, neuron=IF().settings())
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
        with torch.cuda.stream(side):  # compiles, and launches every kernel once
            step()
        torch.cuda.current_stream(device).wait_stream(side)
        model.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step()
        with torch.no_grad():  # a replay reads the present values, the learnt k included
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


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[CudaGraph]:
    """The graph of every replay."""
    seen: list[CudaGraph] = []

    class Counted(CudaGraph):
        def replay(self) -> None:
            seen.append(self)
            super().replay()

    monkeypatch.setitem(cuda_graph.GRAPHS, "cuda", Counted)
    return seen


@pytest.mark.parametrize("backend", ["cupy", "torch"])
@pytest.mark.parametrize("amp", ["", "float16", "bfloat16"])
@pytest.mark.parametrize("opt", ["sgd", "adam"])
@pytest.mark.parametrize("name", list(models.MODELS))
def test_graph_and_eager_give_the_same_numbers(
    name: str, opt: str, amp: str, backend: str, device: torch.device, replays: list[CudaGraph]
) -> None:
    settings: dict[str, Any] = {"opt": opt, "lr": 0.1 if opt == "sgd" else 0.01}
    settings |= {"amp": bool(amp), "amp_dtype": amp or "auto"}
    settings |= {"device": device, "backend": backend}
    eager = train(lambda: built(name), 20, graph=False, **settings)
    assert not replays
    replayed = train(lambda: built(name), 20, **settings)
    assert len(replays) == 20 - WARM_UP
    for got, want in zip(replayed, eager, strict=True):
        assert torch.equal(got, want)


def test_random_numbers_and_buffers_are_those_of_eager_steps(
    device: torch.device, replays: list[CudaGraph]
) -> None:
    eager, replayed = (train(Regularised, 9, graph=graph, device=device) for graph in (False, True))
    assert len(replays) == 9 - WARM_UP
    for got, want in zip(replayed, eager, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", list(models.MODELS))
def test_an_evaluation_is_captured_once_for_all_passes(
    name: str, device: torch.device, replays: list[CudaGraph]
) -> None:
    found = []
    for graph in (False, True):
        session = open_model(built(name), device=device, backend="cupy", graph=graph)
        evaluation = Evaluation(session, session.test)
        for _ in range(3):
            evaluation.sums.reset()
            for indices in torch.arange(PICTURES, device=device).split(40):
                evaluation(indices)
        found.append(evaluation.sums.totals)
    assert len(replays) == 3 * 2 - WARM_UP
    assert torch.equal(*found)


@pytest.mark.usefixtures("small_synthetic")
@pytest.mark.parametrize(
    "flags",
    [
        "--model feedback",
        "--model stateful-synapse --amp --opt adam --lr 0.01 --lrs step --step-size 1",
        "--amp --amp-dtype bfloat16 --lrs none --deterministic",
        "-j 2 --val-size 100",
    ],
)
def test_a_run_equals_the_eager_one_also_when_resumed(
    tmp_path: Path, flags: str, replays: list[CudaGraph]
) -> None:
    """10 batches an epoch; the stops are before the capture and, in the second epoch, after it."""
    flags = f"{flags} --device cuda --backend cupy"
    assert cli.main(graph_command(tmp_path / "eager", f"{flags} --no-graph")) == 0
    assert not replays
    assert cli.main(graph_command(tmp_path / "graph", flags)) == 0
    assert len(replays) > 10
    for checks in (2, 14):
        resumed = graph_command(tmp_path / "resumed", f"{flags} --resume auto")
        assert stop(resumed, after=checks) == 130
    assert cli.main(graph_command(tmp_path / "resumed", f"{flags} --resume auto")) == 0
    eager = final(tmp_path / "eager")
    assert same(final(tmp_path / "graph"), eager)
    assert same(final(tmp_path / "resumed"), eager)


@pytest.mark.usefixtures("small_synthetic")
@pytest.mark.parametrize("opt", ["sgd", "adam"])
@pytest.mark.parametrize("order", [("cuda", "cpu"), ("cpu", "cuda")], ids=" then ".join)
def test_a_run_moves_between_devices(
    tmp_path: Path, order: tuple[str, str], opt: str, replays: list[CudaGraph]
) -> None:
    first, second = order
    flags = f"--opt {opt} --lr 0.01 --backend auto"
    assert cli.main(graph_command(tmp_path, f"{flags} --device {first} --epochs 1")) == 0
    again = f"{flags} --device {second} --epochs 2 --resume auto"
    assert cli.main(graph_command(tmp_path, again)) == 0
    assert replays
    content = checkpoint.load(tmp_path / "run" / "latest.pt")
    (group,) = content["optimizer"]["param_groups"]
    assert type(group["lr"]) is float
    assert content["rows"][1]["train_loss"] < content["rows"][0]["train_loss"]


@pytest.mark.usefixtures("small_synthetic")
def test_a_model_that_cannot_be_captured_trains_eagerly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, replays: list[CudaGraph]
) -> None:
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))
    (tmp_path / "mine.py").write_text(WAITS)
    name = "waiting-for-the-device"
    flags = f"--models-file {tmp_path / 'mine.py'} --model {name} --lr 0.01 --device cuda"
    for folder, graph in (("eager", "--no-graph"), ("graph", "--graph")):
        assert cli.main(graph_command(tmp_path / folder, f"{flags} {graph}")) == 0
        warnings = capsys.readouterr().err.splitlines()
        assert len(warnings) == (graph == "--graph")
    assert "(it waits for the device in mine.py, line 8): it is eager" in warnings[0]
    assert not replays
    assert same(final(tmp_path / "graph"), final(tmp_path / "eager"))


@pytest.mark.filterwarnings("ignore:called a synchronizing CUDA operation")
def test_after_a_failed_capture_steps_are_eager(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The obstacle is not found beforehand: steps continue on the previous stream, and as eager."""
    monkeypatch.setattr(cuda_graph, "SYNCHRONIZES", "no such warning")

    class Waiting(Regularised):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / max(1.0, x.abs().max().item())

    stream = torch.cuda.current_stream(device)
    eager, failed = (
        train(Waiting, 9, graph=graph, device=device, lr=0.01) for graph in (False, True)
    )
    assert torch.cuda.current_stream(device) == stream
    assert "cannot be a graph" in capsys.readouterr().err
    for got, want in zip(failed, eager, strict=True):
        assert torch.equal(got, want)
