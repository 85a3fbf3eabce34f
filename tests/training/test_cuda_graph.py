"""A step as a graph: which batches are eager, which are replayed, and that the numbers are equal.

A graph of the CPU stands in for CUDA's, see helpers/fake_graph.py.
"""

import dataclasses
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fake_graph import FakeGraph
from helpers.graph_steps import (
    PICTURES,
    WAITS,
    Regularised,
    built,
    graph_command,
    open_model,
    outcome,
    train,
)
from helpers.runs import final, stop
from torch import Tensor, nn
from torture import same

from rsnn_fmnist import cli, models
from rsnn_fmnist.data.loader import Loader
from rsnn_fmnist.metrics import Sums
from rsnn_fmnist.spiking.monitor import count_spikes
from rsnn_fmnist.training import cuda_graph
from rsnn_fmnist.training.cuda_graph import (
    WARM_UP,
    CudaGraph,
    GraphStep,
    LearningRate,
    watching,
)
from rsnn_fmnist.training.step import Evaluation, choose_step, training_step
from rsnn_fmnist.world import World

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("graphs")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """The CPU has graphs during the test; the list holds those that were created."""
    made: list[FakeGraph] = []

    def make(device: torch.device) -> cuda_graph.Graph:
        made.append(FakeGraph(device))
        return made[-1]

    monkeypatch.setitem(cuda_graph.GRAPHS, "cpu", make)
    return made


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Total:
    """A step that adds a selection, times a factor, to a sum."""

    def __init__(self) -> None:
        self.factor = torch.tensor(1.0)
        self.sum = torch.tensor(0.0)
        self.calls = 0

    def __call__(self, selection: Tensor) -> None:
        self.calls += 1
        self.sum.add_(selection.sum() * self.factor)


def test_the_first_batches_are_eager_and_the_rest_replayed() -> None:
    total, graph = Total(), FakeGraph(CPU)
    step = GraphStep(total, graph, "a step")
    for n in range(WARM_UP + 3):
        step(torch.tensor([float(n), 1.0]))
        assert total.sum == sum(i + 1 for i in range(n + 1))
    assert graph.done == [*["warm up"] * WARM_UP, "capture", *["replay"] * 3]
    assert total.calls == WARM_UP + 1
    total.factor.fill_(10.0)  # in a tensor, so a replay reads it anew
    total.sum.zero_()
    step(torch.tensor([2.0, 3.0]))
    assert total.sum == 50


def test_a_selection_of_another_length_is_eager() -> None:
    total, graph = Total(), FakeGraph(CPU)
    step = GraphStep(total, graph, "a step")
    for count in (4, 4, 3, 4, 3, 4, 3, 4):
        step(torch.ones(count))
    assert total.sum == 29
    assert graph.done == [*["warm up"] * 3, "capture", "replay", "replay"]


@pytest.mark.parametrize("when", ["known before", "at the capture"])
def test_a_step_that_cannot_be_captured_is_eager(when: str, capsys: Any) -> None:
    class Impossible(Total):
        def __call__(self, selection: Tensor) -> None:
            super().__call__(selection)
            if when == "known before" or self.calls == WARM_UP + 1:
                self.sum.item()

    total, graph = Impossible(), FakeGraph(CPU)
    step = GraphStep(total, graph, "a training step of mine")
    for _ in range(WARM_UP + 3):
        step(torch.ones(2))
    assert total.sum == 2 * (WARM_UP + 3)
    assert "replay" not in graph.done
    assert ("capture" in graph.done) == (when == "at the capture")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rsnn_fmnist: warning: a training step of mine cannot be a graph (")
    assert ("(it waits for the device in" in line) == (when == "known before")
    assert ("(operation not permitted" in line) == (when == "at the capture")
    assert line.endswith("): it is eager")


def test_only_the_last_warm_up_decides_whether_a_step_can_be_captured(capsys: Any) -> None:
    class Lazy(Total):
        def __call__(self, selection: Tensor) -> None:
            super().__call__(selection)
            if self.calls < WARM_UP:  # as something that is created at the first batch
                self.sum.item()

    step = GraphStep(Lazy(), FakeGraph(CPU), "a step")
    for _ in range(WARM_UP + 1):
        step(torch.ones(2))
    assert step.captured
    assert capsys.readouterr().err == ""


def test_the_learning_rate_is_a_tensor_only_during_a_step() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    (group,) = optimizer.param_groups
    rate = LearningRate(optimizer, CPU)
    for scheduled in (0.1, 0.1, 0.025):
        group["lr"] = scheduled
        rate.update()
        with rate.in_optimizer():
            assert group["lr"] is rate.tensor
        assert group["lr"] == scheduled
        assert rate.tensor == torch.tensor(scheduled)
    with pytest.raises(ZeroDivisionError), rate.in_optimizer():
        raise ZeroDivisionError
    assert group["lr"] == 0.025


@pytest.mark.parametrize("amp", ["", "float16", "bfloat16"])
@pytest.mark.parametrize("opt", ["sgd", "adam"])
@pytest.mark.parametrize("name", list(models.MODELS))
def test_graph_and_eager_give_the_same_numbers(
    name: str, opt: str, amp: str, graphs: list[FakeGraph]
) -> None:
    settings = {"opt": opt, "lr": 0.1 if opt == "sgd" else 0.01}
    settings |= {"amp": bool(amp), "amp_dtype": amp or "auto"}
    eager = train(lambda: built(name), 20, graph=False, **settings)
    assert not graphs
    replayed = train(lambda: built(name), 20, **settings)
    assert [graph.done.count("replay") for graph in graphs] == [20 - WARM_UP]
    assert len(replayed) == len(eager)
    for got, want in zip(replayed, eager, strict=True):
        assert torch.equal(got, want)


@pytest.mark.slow
def test_streamed_batches_give_the_same_numbers(graphs: list[FakeGraph]) -> None:
    outcomes = []
    for workers in (0, 1):
        session, sums = open_model(built("plain")), Sums(CPU)
        train = Loader(session.train.pictures, CPU, workers=workers)
        session = dataclasses.replace(session, train=train)
        step = training_step(session, sums)
        for selection in train.selections(list(torch.arange(PICTURES).split(20))):
            step(selection)
        session.close()
        outcomes.append(outcome(session, sums))
    assert [graph.done.count("replay") for graph in graphs] == [5 - WARM_UP] * 2
    for got, want in zip(*outcomes, strict=True):
        assert torch.equal(got, want)


def test_random_numbers_and_buffers_are_those_of_the_eager_step(graphs: list[FakeGraph]) -> None:
    eager, replayed = (train(Regularised, 9, graph=graph) for graph in (False, True))
    assert graphs[0].done.count("replay") == 9 - WARM_UP
    for got, want in zip(replayed, eager, strict=True):
        assert torch.equal(got, want)


def test_which_step_is_chosen_and_why() -> None:
    assert choose_step(open_model(built("plain"))) == ("graph", "")
    assert choose_step(open_model(built("plain"), amp=True)) == ("graph", "")
    assert choose_step(open_model(built("plain"), graph=False)) == ("eager", "--no-graph")
    observed = built("plain")
    observed.register_forward_hook(lambda *_: None)
    assert choose_step(open_model(observed)) == ("eager", "the model has hooks or observers")
    shared = dataclasses.replace(
        open_model(built("plain")), world=World(0, 2), device=torch.device("cuda")
    )
    assert choose_step(shared) == ("eager", "2 processes sum their gradients in it")


def test_an_evaluation_is_captured_once_for_all_passes(graphs: list[FakeGraph]) -> None:
    session = open_model(built("stateful-synapse"))
    evaluation = Evaluation(session, session.test)
    found = []
    for epoch in range(3):
        evaluation.sums.reset()
        for indices in torch.arange(PICTURES).split(40):
            evaluation(indices)
        found.append(evaluation.sums.totals.clone())
        if epoch == 0:
            with torch.no_grad():
                session.model.get_parameter("fc2.bias").add_(0.5)
    assert [graph.done.count("replay") for graph in graphs] == [3 * 2 - WARM_UP]  # not the last 20
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])
    eager = open_model(session.model, graph=False)
    evaluation = Evaluation(eager, eager.test)
    for indices in torch.arange(PICTURES).split(40):
        evaluation(indices)
    assert torch.equal(evaluation.sums.totals, found[2])


def test_an_observer_sees_every_batch() -> None:
    session = open_model(built("plain"))
    evaluation = Evaluation(session, session.test)
    rates = []
    for _ in range(3):
        for indices in torch.arange(PICTURES).split(25):
            evaluation(indices)
        with count_spikes(session.model) as counts:
            for indices in torch.arange(PICTURES).split(25):
                evaluation(indices)
        rates.append(counts.firing())
    assert 0 < rates[0]["sn1"].rate < 1
    assert rates[0] == rates[1] == rates[2]


@pytest.mark.usefixtures("small_synthetic")
@pytest.mark.parametrize(
    "flags",
    ["", "--opt adam --lr 0.01 --lrs step --step-size 1 --amp --amp-dtype float16 --val-size 100"],
)
def test_a_run_with_graphs_equals_the_eager_one_also_when_resumed(
    tmp_path: Path, flags: str, graphs: list[FakeGraph]
) -> None:
    """Ten batches an epoch; stopped in the first before the capture, in the second after it."""
    assert cli.main(graph_command(tmp_path / "eager", f"{flags} --no-graph")) == 0
    assert not graphs
    assert cli.main(graph_command(tmp_path / "graph", flags)) == 0
    assert sum(graph.done.count("replay") for graph in graphs) > 10
    resumed = graph_command(tmp_path / "resumed", f"{flags} --resume auto")
    for checks in (2, 14):
        assert stop(resumed, after=checks) == 130
    assert cli.main(resumed) == 0
    eager = final(tmp_path / "eager")
    (group,) = eager["files"]["latest.pt"]["optimizer"]["param_groups"]
    assert type(group["lr"]) is float
    assert same(final(tmp_path / "graph"), eager)
    assert same(final(tmp_path / "resumed"), eager)


@pytest.mark.usefixtures("small_synthetic")
def test_a_model_that_cannot_be_captured_trains_eagerly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))
    (tmp_path / "mine.py").write_text(WAITS)
    name = "waiting-for-the-device"
    flags = f"--models-file {tmp_path / 'mine.py'} --model {name} --lr 0.01 --epochs 4"
    for folder, graph in (("eager", "--no-graph"), ("graph", "--graph")):
        assert cli.main(graph_command(tmp_path / folder, f"{flags} {graph}")) == 0
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == (2 if graph == "--graph" else 0)
    assert lines[0].startswith(
        f"rsnn_fmnist: warning: a training step of {name} cannot be a graph (it waits for"
    )
    assert lines[1].startswith(f"rsnn_fmnist: warning: an evaluation of {name} cannot be a graph")
    assert same(final(tmp_path / "graph"), final(tmp_path / "eager"))


class FakeCuda:
    """torch.cuda with streams and graphs that only record what happens to them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.current = "default"
        self.log: list[str] = []
        self.mode = 0
        names = "Stream CUDAGraph current_stream stream graph"
        for name in [*names.split(), "get_sync_debug_mode", "set_sync_debug_mode"]:
            patch.setattr(torch.cuda, name, getattr(self, name))

    def Stream(self, device: Any) -> Any:  # noqa: N802
        return self.Waiter(self, "side")

    def CUDAGraph(self) -> Any:  # noqa: N802
        return self

    def current_stream(self, device: Any) -> Any:
        return self.Waiter(self, self.current)

    class Waiter:
        def __init__(self, cuda: "FakeCuda", name: str) -> None:
            self.cuda, self.name = cuda, name

        def wait_stream(self, other: Any) -> None:
            self.cuda.log.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, stream: Any) -> Iterator[None]:
        """As torch's: where the capture fails, its stream stays current."""
        self.current = "capturing"
        try:
            yield
        except Exception:
            raise RuntimeError("operation failed due to a previous error during capture") from None
        self.current = stream.name

    def reset(self) -> None:
        self.log.append("reset")

    def replay(self) -> None:
        self.log.append("replay")

    def get_sync_debug_mode(self) -> int:
        return self.mode

    def set_sync_debug_mode(self, mode: Any) -> None:
        warnings.warn("Synchronization debug mode is a prototype feature and so on", stacklevel=1)
        self.mode = mode


def test_a_cuda_graph_is_warmed_up_and_captured_on_a_stream_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch)
    graph = CudaGraph(torch.device("cuda"))
    seen: list[str] = []
    assert graph.warm_up(lambda: seen.append(cuda.current)) is None
    assert cuda.log == ["side waits for default", "default waits for side"]
    graph.capture(lambda: seen.append(cuda.current))
    graph.replay()
    assert seen == ["side", "capturing"]
    assert cuda.log[2:] == ["replay"]
    assert cuda.current == "default"
    assert cuda.mode == 0


def test_a_failed_capture_leaves_the_stream_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    cuda = FakeCuda(monkeypatch)

    def step(selection: Tensor) -> None:
        if cuda.current == "capturing":
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    failing = GraphStep(step, CudaGraph(torch.device("cuda")), "a step")
    for _ in range(WARM_UP + 2):
        failing(torch.zeros(1))
    assert cuda.current == "default"
    assert cuda.log[-1] == "reset"
    assert capsys.readouterr().err == (
        "rsnn_fmnist: warning: a step cannot be a graph (operation not permitted): it is eager\n"
    )


def wait() -> None:
    warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)


@pytest.mark.parametrize(
    ("work", "reports"),
    [
        (lambda: None, []),
        (wait, ["it waits for the device in test_cuda_graph.py, line"]),
        (lambda: torch.rand(1), ["it draws random numbers on the CPU"]),
        (random.random, ["it draws random numbers on the CPU"]),
        (np.random.rand, ["it draws random numbers on the CPU"]),
    ],
    ids=["nothing", "waits", "torch.rand", "random", "numpy"],
)
def test_what_a_graph_cannot_hold_is_reported(
    work: Callable[[], object], reports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch)
    obstacles: list[str] = []
    with watching(obstacles):
        assert cuda.mode == "warn"
        work()
    assert cuda.mode == 0
    assert len(obstacles) == len(reports)
    assert all(found.startswith(want) for found, want in zip(obstacles, reports, strict=True))


def test_other_warnings_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    with pytest.warns(DeprecationWarning, match="old"), watching([]):
        warnings.warn("old", DeprecationWarning, stacklevel=1)
