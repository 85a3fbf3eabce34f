"""One training step or evaluation, taken eagerly, and the choice between the three steps."""

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from rsnn_fmnist import models
from rsnn_fmnist.config import Experiment
from rsnn_fmnist.data.loader import Loader
from rsnn_fmnist.data.pictures import Pictures
from rsnn_fmnist.metrics import Sums
from rsnn_fmnist.models import ColumnReader
from rsnn_fmnist.session import Session, open_session
from rsnn_fmnist.spiking import IF, SynapseFilter, set_backend
from rsnn_fmnist.training.step import Evaluation, choose_step, training_step
from rsnn_fmnist.world import ALONE, World

CPU = torch.device("cpu")


def session_of(
    model: nn.Module, graph: bool = True, world: World = ALONE, **settings: object
) -> Session:
    """A session of sixteen random pictures."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randint(0, 256, (16, 28, 28), generator=generator, dtype=torch.uint8)
    loader = Loader(Pictures(columns, torch.arange(16) % 10), CPU)
    experiment = Experiment(**settings)  # type: ignore[arg-type]
    loaders = (loader, None, loader)
    return open_session(experiment, CPU, model, loaders, graph=graph, world=world)


def test_a_first_step_that_overflows_leaves_no_trace() -> None:
    """torch's fused SGD would read a momentum that was never set."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    session = session_of(model, lr=0.01, amp=True, amp_dtype="float16")
    step = training_step(session, Sums(CPU))
    before, first = model[1].weight.clone(), torch.arange(16)
    spoil = model[1].weight.register_hook(lambda g: g * float("inf"))
    step(first)
    spoil.remove()
    assert torch.equal(model[1].weight, before)
    step(first)
    gradient = model[1].weight.grad
    assert gradient is not None
    assert torch.equal(model[1].weight, before.add(gradient, alpha=-0.01))


@pytest.mark.parametrize("amp", ["", "bfloat16", "float16"])
def test_a_step_learns_and_an_evaluation_does_not(amp: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    session = session_of(model, lr=0.01, amp=bool(amp), amp_dtype=amp or "auto")
    selection = torch.arange(16)
    before = model[1].weight.clone()
    evaluation = Evaluation(session, session.train)
    evaluation(selection)
    assert torch.equal(model[1].weight, before)
    first, sums = evaluation.sums.means()[0], Sums(CPU)
    step = training_step(session, sums)
    for _ in range(20):
        step(selection)
    evaluation.sums.reset()
    evaluation(selection)
    assert evaluation.sums.means()[0] < sums.means()[0] < first
    assert (evaluation.sums.totals[3], sums.totals[3]) == (16, 16 * 20)
    assert session.scaler.is_enabled() == (amp == "float16")


def test_which_step_is_chosen_and_why() -> None:
    """On the CPU; tests/training/test_cuda_graph.py has devices with graphs."""

    def choice(
        model: nn.Module, graph: bool = True, world: World = ALONE, **settings: object
    ) -> tuple[str, str]:
        return choose_step(session_of(model, graph, world, **settings))

    def plain(backend: str = "auto") -> nn.Module:
        model = models.build("plain")
        set_backend(model, backend)
        return model

    for name in models.MODELS:
        assert choice(models.build(name)) == ("compiled", "")
    assert choice(plain(), world=World(0, 2)) == ("compiled", "")
    assert choice(plain(), graph=False) == ("eager", "--no-graph")
    assert choice(plain(), amp=True) == ("compiled", "")
    assert choice(plain(), amp=True, amp_dtype="float16") == ("eager", "float16")
    traces = ColumnReader(SynapseFilter(2.0), nn.Linear(28, 10), IF())
    assert choice(traces) == ("compiled", "")
    why = "in mixed precision it begins with a layer that is not linear"
    assert choice(traces, amp=True) == ("eager", why)
    assert choice(plain("torch")) == ("eager", "sn1 runs in torch")
    no_spikes = ColumnReader(nn.Linear(28, 10))
    assert choice(no_spikes) == ("eager", "the model has no spiking layers")
    not_a_chain = nn.Sequential(nn.Linear(28, 10), IF())
    assert choice(not_a_chain) == ("eager", "Sequential is not a chain of layers")
    observed = plain()
    observed.register_forward_hook(lambda *_: None)
    assert choice(observed) == ("eager", "the model has hooks or observers")
    with register_module_forward_hook(lambda *_: None):
        assert choice(plain()) == ("eager", "the model has hooks or observers")
