"""A step as one graph: what is eager, what is replayed, and that the numbers are the eager ones.

Graphs of the CPU stand in for CUDA's, see fake_graph.py; test_cuda_device.py has the real ones.
"""

import dataclasses
import importlib
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_graph import FakeGraph
from test_checkpoint import same
from test_resume import StopAfter, final
from torch import Tensor, nn

from rsnn_fmnist import cli, models
from rsnn_fmnist.config import Experiment
from rsnn_fmnist.data.fashion_mnist import Pictures
from rsnn_fmnist.data.loader import Loader
from rsnn_fmnist.session import Session, open_session
from rsnn_fmnist.spiking import set_backend
from rsnn_fmnist.spiking.monitor import count_spikes
from rsnn_fmnist.training import cuda_graph
from rsnn_fmnist.training.cuda_graph import WARM_UP, Captured, CudaGraph, Rate, watching
from rsnn_fmnist.training.step import Sums, evaluation, layer_by_layer, training_step

CPU = torch.device("cpu")
PICTURES = 100
run_module = importlib.import_module("rsnn_fmnist.run")

pytestmark = pytest.mark.usefixtures("graphs")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """The CPU has graphs meanwhile; those that were made."""
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
    """A step that adds a selection, times a tensor, to a tensor."""

    def __init__(self) -> None:
        self.factor = torch.tensor(1.0)
        self.sum = torch.tensor(0.0)
        self.calls = 0

    def __call__(self, selection: tuple[Tensor, ...]) -> None:
        self.calls += 1
        self.sum.add_(selection[0].sum() * self.factor)


def test_a_few_are_taken_eagerly_and_the_rest_replayed() -> None:
    total, graph = Total(), FakeGraph(CPU)
    step = Captured(total, graph, "a step")
    for n in range(WARM_UP + 3):
        step((torch.tensor([float(n), 1.0]),))
        assert total.sum == sum(i + 1 for i in range(n + 1))
    assert graph.done == [*["warm up"] * WARM_UP, "capture", *["replay"] * 3]
    assert total.calls == WARM_UP + 1
    total.factor.fill_(10.0)  # as everything that changes, in a tensor
    total.sum.zero_()
    step((torch.tensor([2.0, 3.0]),))
    assert total.sum == 50


def test_a_selection_of_another_shape_is_taken_as_it_comes() -> None:
    total, graph = Total(), FakeGraph(CPU)
    step = Captured(total, graph, "a step")
    for count in (4, 4, 3, 4, 3, 4, 3, 4):
        step((torch.ones(count),))
    assert total.sum == 29
    assert graph.done == [*["warm up"] * 3, "capture", "replay", "replay"]


@pytest.mark.parametrize("when", ["known before", "at the capture"])
def test_what_cannot_be_captured_goes_on_unharmed(when: str, capsys: Any) -> None:
    class Impossible(Total):
        def __call__(self, selection: tuple[Tensor, ...]) -> None:
            super().__call__(selection)
            if when == "known before" or self.calls == WARM_UP + 1:
                self.sum.item()

    total, graph = Impossible(), FakeGraph(CPU)
    step = Captured(total, graph, "a training step of mine")
    for _ in range(WARM_UP + 3):
        step((torch.ones(2),))
    assert total.sum == 2 * (WARM_UP + 3)
    assert "replay" not in graph.done
    assert ("capture" in graph.done) == (when == "at the capture")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rsnn_fmnist: warning: a training step of mine cannot be one graph (")
    assert ("(it waits for the device in" in line) == (when == "known before")
    assert ("(operation not permitted" in line) == (when == "at the capture")
    assert line.endswith("): it goes layer by layer")


def test_only_the_last_warm_up_speaks_for_the_replays(capsys: Any) -> None:
    class Lazy(Total):
        def __call__(self, selection: tuple[Tensor, ...]) -> None:
            super().__call__(selection)
            if self.calls < WARM_UP:  # as what is made at the first batch
                self.sum.item()

    step = Captured(Lazy(), FakeGraph(CPU), "a step")
    for _ in range(WARM_UP + 1):
        step((torch.ones(2),))
    assert step.captured
    assert capsys.readouterr().err == ""


def test_the_learning_rate_is_a_tensor_only_while_a_step_is_taken() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    (group,) = optimizer.param_groups
    rate = Rate(optimizer, CPU)
    for scheduled in (0.1, 0.1, 0.025):
        group["lr"] = scheduled
        rate.take_up()
        with rate.lent():
            assert group["lr"] is rate.tensor
        assert group["lr"] == scheduled
        assert rate.tensor == torch.tensor(scheduled)
    with pytest.raises(ZeroDivisionError), rate.lent():
        raise ZeroDivisionError
    assert group["lr"] == 0.025


def open_model(
    model: nn.Module,
    *,
    whole_step: bool = True,
    device: torch.device = CPU,
    backend: str = "torch",  # for Record, a compiled loop is no operation
    **settings: Any,
) -> Session:
    """A session of few, short pictures."""
    generator = torch.Generator().manual_seed(1)
    columns = torch.randint(0, 256, (PICTURES, 6, 28), generator=generator, dtype=torch.uint8)
    loader = Loader(Pictures(columns, torch.arange(PICTURES) % 10), device)
    set_backend(model, backend)
    experiment = Experiment(model="mine", **settings)
    return open_session(experiment, device, model, (loader, None, loader), whole_step=whole_step)


def built(name: str) -> nn.Module:
    torch.manual_seed(3)
    model = models.build(name, hidden=8)
    with torch.no_grad():  # so that no layer is silent
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def outcome(session: Session, sums: Sums) -> list[Tensor]:
    """Everything that a step changes."""
    optimizer = [x for state in session.optimizer.state.values() for x in state.values()]
    scaler = [torch.tensor(x) for x in session.scaler.state_dict().values()]
    gradients = [p.grad for p in session.model.parameters() if p.grad is not None]
    others = [*gradients, sums.totals, torch.get_rng_state()]
    if session.device.type == "cuda":
        others.append(torch.cuda.get_rng_state(session.device))
    return [*session.model.state_dict().values(), *optimizer, *scaler, *others]


def train(model: Callable[[], nn.Module], steps: int, **settings: Any) -> list[Tensor]:
    """Steps on random batches, the learning rate halved in between."""
    session = open_model(model(), **settings)
    sums = Sums(session.device)
    before = [p.detach().clone() for p in session.model.parameters()]
    session.model.train()
    step = training_step(session, sums)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(5)
    for n in range(steps):
        step((torch.randperm(PICTURES, generator=generator)[:16].to(session.device),))
        if n == steps // 2:
            session.optimizer.param_groups[0]["lr"] /= 2
    assert not any(map(torch.equal, before, session.model.parameters()))
    return outcome(session, sums)


@pytest.mark.parametrize("amp", ["", "float16", "bfloat16"])
@pytest.mark.parametrize("opt", ["sgd", "adam"])
@pytest.mark.parametrize("name", list(models.MODELS))
def test_graph_and_eager_give_the_same_numbers(
    name: str, opt: str, amp: str, graphs: list[FakeGraph]
) -> None:
    settings = {"opt": opt, "lr": 0.1 if opt == "sgd" else 0.01}
    settings |= {"amp": bool(amp), "amp_dtype": amp or "auto"}
    eager = train(lambda: built(name), 20, whole_step=False, **settings)
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


class Regularised(nn.Module):
    """With counters of its own, and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(168, 12), nn.BatchNorm1d(12), nn.Dropout(), nn.Linear(12, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores


def test_random_numbers_and_buffers_go_on(graphs: list[FakeGraph]) -> None:
    eager, replayed = (train(Regularised, 9, whole_step=whole) for whole in (False, True))
    assert graphs[0].done.count("replay") == 9 - WARM_UP
    for got, want in zip(replayed, eager, strict=True):
        assert torch.equal(got, want)


def test_what_is_a_graph_and_what_is_not() -> None:
    assert layer_by_layer(open_model(built("plain"))) is None
    assert layer_by_layer(open_model(built("plain"), amp=True)) is None
    assert layer_by_layer(open_model(built("plain"), whole_step=False)) == "--no-graph"
    model = built("plain")
    model.register_forward_hook(lambda *_: None)
    assert "listens" in (layer_by_layer(open_model(model)) or "")


def test_an_evaluation_is_captured_once_for_all_passes(graphs: list[FakeGraph]) -> None:
    session = open_model(built("stateful-synapse"))
    found = []
    for epoch in range(3):
        step, sums = evaluation(session, session.test)
        for indices in torch.arange(PICTURES).split(40):
            step((indices,))
        found.append(sums.totals.clone())
        if epoch == 0:
            with torch.no_grad():
                session.model.get_parameter("fc2.bias").add_(0.5)
    assert [graph.done.count("replay") for graph in graphs] == [3 * 2 - WARM_UP]  # not the last 20
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])
    eager = open_model(session.model, whole_step=False)
    step, sums = evaluation(eager, eager.test)
    for indices in torch.arange(PICTURES).split(40):
        step((indices,))
    assert torch.equal(sums.totals, found[2])


def test_pictures_that_are_no_epochs_are_not_kept(graphs: list[FakeGraph]) -> None:
    session = open_model(built("plain"))
    other = Loader(session.test.pictures, CPU)
    _, sums = evaluation(session, other)
    assert sums is not evaluation(session, other)[1]
    assert not graphs
    assert not session.evaluations


def test_an_observer_sees_every_batch() -> None:
    session = open_model(built("plain"))
    rates = []
    for _ in range(3):
        step, _ = evaluation(session, session.test)
        for indices in torch.arange(PICTURES).split(25):
            step((indices,))
        step, _ = evaluation(session, session.test)
        with count_spikes(session.model) as counts:
            for indices in torch.arange(PICTURES).split(25):
                step((indices,))
        rates.append(counts.firing())
    assert 0 < rates[0]["sn1"].rate < 1
    assert rates[0] == rates[1] == rates[2]


def command(folder: Path, flags: str) -> list[str]:
    basis = "--model plain --dataset synthetic --device cpu --backend torch -b 64 --epochs 2"
    return [*basis.split(), "--output-dir", str(folder), "--run-name", "run", *flags.split()]


@pytest.mark.usefixtures("small_synthetic")
@pytest.mark.parametrize(
    "flags",
    ["", "--opt adam --lr 0.01 --lrs step --step-size 1 --amp --amp-dtype float16 --val-size 100"],
)
def test_a_run_is_the_eager_one_also_when_resumed(
    tmp_path: Path, flags: str, monkeypatch: pytest.MonkeyPatch, graphs: list[FakeGraph]
) -> None:
    """10 batches an epoch; stopped in the first before the capture, in the second after it."""
    assert cli.main(command(tmp_path / "eager", f"{flags} --no-graph")) == 0
    assert not graphs
    assert cli.main(command(tmp_path / "graph", flags)) == 0
    assert sum(graph.done.count("replay") for graph in graphs) > 10
    for looks in (2, 14):
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "Interrupt", lambda looks=looks: StopAfter(looks))
            assert cli.main(command(tmp_path / "resumed", f"{flags} --resume auto")) == 130
    assert cli.main(command(tmp_path / "resumed", f"{flags} --resume auto")) == 0
    eager = final(tmp_path / "eager")
    (group,) = eager["files"]["latest.pt"]["optimizer"]["param_groups"]
    assert type(group["lr"]) is float
    assert same(final(tmp_path / "graph"), eager)
    assert same(final(tmp_path / "resumed"), eager)


WAITS = """
import torch
from rsnn_fmnist.models import ColumnReader, register
from rsnn_fmnist.spiking import IF

class Waiting(torch.nn.Module):
    def forward(self, x):
        return x / max(1.0, x.abs().max().item())

@register("waiting-for-the-device")
def waiting():
    layers = torch.nn.Linear(28, 10), IF(), Waiting()
    return ColumnReader(*layers)
"""


@pytest.mark.usefixtures("small_synthetic")
def test_a_model_that_cannot_be_captured_trains_as_without_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))
    (tmp_path / "mine.py").write_text(WAITS)
    name = "waiting-for-the-device"
    flags = f"--models-file {tmp_path / 'mine.py'} --model {name} --lr 0.01 --epochs 4"
    for folder, graph in (("eager", "--no-graph"), ("graph", "--graph")):
        assert cli.main(command(tmp_path / folder, f"{flags} {graph}")) == 0
        models.MODELS.pop(name)
        told = capsys.readouterr().err.splitlines()
        assert len(told) == (2 if graph == "--graph" else 0)
    assert told[0].startswith(
        f"rsnn_fmnist: warning: a training step of {name} cannot be one graph (it waits for"
    )
    assert told[1].startswith(f"rsnn_fmnist: warning: an evaluation of {name} cannot be one graph")
    assert same(final(tmp_path / "graph"), final(tmp_path / "eager"))


class FakeCuda:
    """torch.cuda where streams and graphs only tell what happens to them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.current = "default"
        self.told: list[str] = []
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
            self.cuda.told.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, stream: Any) -> Iterator[None]:
        """As torch's: where the capture fails its stream stays the current one."""
        self.current = "capturing"
        try:
            yield
        except Exception:
            raise RuntimeError("operation failed due to a previous error during capture") from None
        self.current = stream.name

    def reset(self) -> None:
        self.told.append("reset")

    def replay(self) -> None:
        self.told.append("replay")

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
    assert cuda.told == ["side waits for default", "default waits for side"]
    graph.capture(lambda: seen.append(cuda.current))
    graph.replay()
    assert seen == ["side", "capturing"]
    assert cuda.told[2:] == ["replay"]
    assert cuda.current == "default"
    assert cuda.mode == 0


def test_a_cuda_graph_that_fails_leaves_the_stream_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    cuda = FakeCuda(monkeypatch)

    def step(selection: tuple[Tensor, ...]) -> None:
        if cuda.current == "capturing":
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    failing = Captured(step, CudaGraph(torch.device("cuda")), "a step")
    for _ in range(WARM_UP + 2):
        failing((torch.zeros(1),))
    assert cuda.current == "default"
    assert cuda.told[-1] == "reset"
    assert capsys.readouterr().err == (
        "rsnn_fmnist: warning: a step cannot be one graph (operation not permitted): it goes "
        "layer by layer\n"
    )


def wait() -> None:
    warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (lambda: None, []),
        (wait, ["it waits for the device in test_captured.py, line"]),
        (lambda: torch.rand(1), ["it draws random numbers on the CPU"]),
        (random.random, ["it draws random numbers on the CPU"]),
    ],
    ids=["nothing", "waits", "torch.rand", "random"],
)
def test_what_a_graph_cannot_hold_is_noted(
    work: Callable[[], object], says: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch)
    obstacles: list[str] = []
    with watching(obstacles):
        assert cuda.mode == "warn"
        work()
    assert cuda.mode == 0
    assert len(obstacles) == len(says)
    assert all(found.startswith(want) for found, want in zip(obstacles, says, strict=True))


def test_other_warnings_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    with pytest.warns(DeprecationWarning, match="old"), watching([]):
        warnings.warn("old", DeprecationWarning, stacklevel=1)
