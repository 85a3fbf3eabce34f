"""One compiled loop for a whole step, against autograd layer by layer in torch's backend."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from rsnn_fmnist import models
from rsnn_fmnist.config import Experiment
from rsnn_fmnist.data.fashion_mnist import Pictures
from rsnn_fmnist.data.loader import Loader
from rsnn_fmnist.models import ColumnReader
from rsnn_fmnist.session import Session, open_session
from rsnn_fmnist.spiking import (
    IF,
    LIF,
    Erf,
    LinearRecurrentContainer,
    PiecewiseQuadratic,
    SoftSign,
    SynapseFilter,
    record,
    set_backend,
)
from rsnn_fmnist.spiking.kernels.cpu.chain import chain as loop
from rsnn_fmnist.training.compiled_step import WIDEST, Gradients, refusal
from rsnn_fmnist.training.step import Sums, eager_gradients, layer_by_layer, training_step

CPU = torch.device("cpu")
PICTURES = 300


def pictures(steps: int = 28) -> Pictures:
    """Random columns, half of the pixels dark."""
    generator = torch.Generator().manual_seed(1)
    columns = torch.randint(0, 512, (PICTURES, steps, 28), generator=generator).clamp(max=255)
    labels = torch.randint(0, 10, (PICTURES,), generator=generator)
    return Pictures(255 - columns.to(torch.uint8), labels)


def open_chain(model: nn.Module, steps: int = 28, **settings: Any) -> Session:
    loader = Loader(pictures(steps), CPU)
    return open_session(Experiment(**settings), CPU, model, (loader, None, loader))


def chain(hidden: int, variant: str) -> ColumnReader:
    """Layers that the three networks do not have, at sizes that divide by nothing."""
    layers = {
        "lif": [LIF(3.0, 0.25, surrogate=SoftSign(2.0)), SynapseFilter(4.0)],
        "soft": [IF(v_threshold=0.5, v_reset=None, surrogate=PiecewiseQuadratic(1.0))],
        "attached": [LIF(1.5, 0.75, -0.25), nn.Linear(hidden, hidden, bias=False), IF()],
        "leaky feedback": [
            LinearRecurrentContainer(LIF(2.0, 0.25, None), hidden, hidden, bias=False),
            SynapseFilter(3.0, learnable=True),
        ],
    }[variant]
    last = [nn.Linear(hidden, 10), IF(v_threshold=0.5)]
    named = {f"layer{n}": layer for n, layer in enumerate([nn.Linear(28, hidden), *layers, *last])}
    return ColumnReader(OrderedDict(named))


VARIANTS = ("lif", "soft", "attached", "leaky feedback")


def built(name: str, hidden: int) -> nn.Module:
    torch.manual_seed(3)
    if name in models.MODELS:
        model = models.build(name, hidden=hidden, detach_reset="all")
    else:
        model = chain(hidden, name)
    with torch.no_grad():  # so that neither layer is silent
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


@pytest.fixture
def float64() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def both(model: nn.Module, indices: Tensor, steps: int = 28) -> tuple[Any, Any]:
    """The gradients and sums of a batch, by the loop and by autograd in torch's backend."""
    found = []
    for how in (Gradients, eager_gradients):
        session, sums = open_chain(model, steps), Sums(CPU)
        set_backend(model, "auto" if how is Gradients else "torch")
        model.zero_grad()
        run = (
            Gradients(model, session.train, sums)
            if how is Gradients
            else eager_gradients(session, sums)
        )
        run((indices,))
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        found.append((gradients, sums.totals))
    return found[0], found[1]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("count", "hidden", "steps"), [(128, 32, 28), (1, 7, 1), (67, 5, 3), (200, 33, 28)]
)
@pytest.mark.parametrize("name", [*models.MODELS, *VARIANTS])
def test_gradients_equal_autograds(
    name: str, count: int, hidden: int, steps: int, threads: int, float64: None
) -> None:
    torch.set_num_threads(threads)
    model = built(name, hidden)
    (ours, our_sums), (theirs, their_sums) = both(model, torch.arange(count), steps)
    if count * steps > 1000:
        x = Loader(pictures(steps), CPU).take((torch.arange(count),))[0]
        with record(model) as recording, torch.no_grad():
            model(x)
        rates = [layer.s.mean().item() for layer in recording.values()]
        assert all(0.01 < rate < 0.99 for rate in rates), "silent or saturated"
    assert ours.keys() == theirs.keys()
    for parameter, gradient in theirs.items():
        assert torch.allclose(ours[parameter], gradient, rtol=1e-10, atol=1e-13), parameter
    assert torch.equal(our_sums[1:], their_sums[1:])
    assert torch.allclose(our_sums[0], their_sums[0], rtol=1e-12)


@pytest.mark.parametrize("opt", ["sgd", "adam"])
@pytest.mark.parametrize("name", list(models.MODELS))
def test_fifty_steps_equal_torchs(name: str, opt: str, float64: None) -> None:
    weights, totals = [], []
    for backend in ("auto", "torch"):
        model = built(name, 32)
        set_backend(model, backend)
        settings = {"opt": opt, "lr": 0.1 if opt == "sgd" else 0.001}
        session, sums = open_chain(model, **settings), Sums(CPU)
        assert (layer_by_layer(session) is None) == (backend == "auto")
        step = training_step(session, sums)
        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            step((torch.randperm(PICTURES, generator=generator)[:128],))
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
        totals.append(sums.totals)
    assert torch.allclose(*weights, rtol=1e-9, atol=1e-9)
    assert torch.allclose(*totals, rtol=1e-9)


@pytest.mark.parametrize("name", list(models.MODELS))
def test_float32_agrees_where_no_charge_is_near_the_threshold(name: str) -> None:
    model = built(name, 32)
    x = Loader(pictures(), CPU).take((torch.arange(PICTURES),))[0]
    with record(model) as recording, torch.no_grad():
        model(x)
    near = torch.zeros(PICTURES, dtype=torch.bool)
    for layer in recording.values():
        near |= ((layer.h - 1).abs() < 1e-4).any(0).any(-1)
    chosen = torch.arange(PICTURES)[~near]
    assert len(chosen) > PICTURES / 4
    (ours, our_sums), (theirs, their_sums) = both(model, chosen)
    for parameter, gradient in theirs.items():
        largest = gradient.abs().max()
        assert (ours[parameter] - gradient).abs().max() < 1e-5 * largest, parameter
    assert torch.equal(our_sums[1:], their_sums[1:])


def test_a_streamed_batch_gives_the_same_bits() -> None:
    """Columns and labels, as workers hand them out, or indices into the whole set."""
    gradients = []
    indices = torch.arange(PICTURES).flip(0)[:130]
    for workers in (0, 1):
        model = built("feedback", 32)
        loader = Loader(pictures(), CPU, workers=workers)
        (selection,) = loader.selections([indices])
        Gradients(model, loader, Sums(CPU))(selection)
        gradients.append(nn.utils.parameters_to_vector([p.grad for p in model.parameters()]))
        loader.close()
    assert torch.equal(*gradients)


def test_the_loop_is_compiled_before_the_first_step() -> None:
    loader = Loader(pictures(), CPU)
    gradients = Gradients(built("plain", 32), loader, Sums(CPU))
    before = loop.signatures
    gradients((torch.arange(40),))
    assert loop.signatures == before


def test_what_goes_layer_by_layer_and_why() -> None:
    def why(model: nn.Module, whole_step: bool = True, **settings: Any) -> str | None:
        loader = Loader(pictures(), CPU)
        loaders = (loader, None, loader)
        experiment = Experiment(**settings)
        return layer_by_layer(open_session(experiment, CPU, model, loaders, whole_step=whole_step))

    assert all(why(models.build(name)) is None for name in models.MODELS)
    assert why(models.build("plain"), whole_step=False) == "--no-graph"
    assert why(models.build("plain"), amp=True) == "mixed precision"
    assert "torch" in (why(_with_backend("torch")) or "")
    assert why(ColumnReader(nn.Linear(28, 10))) == "it has no spiking layers"
    assert "Erf" in (refusal(ColumnReader(nn.Linear(28, 10), IF(surrogate=Erf(2.0)))) or "")
    assert "Flatten" in (refusal(ColumnReader(nn.Linear(28, 10), nn.Flatten())) or "")
    assert "Sequential" in (refusal(nn.Sequential(nn.Linear(28, 10))) or "")
    assert str(WIDEST + 1) in (refusal(models.build("plain", hidden=WIDEST + 1)) or "")
    frozen = models.build("plain")
    frozen[0].bias.requires_grad_(False)  # type: ignore[index, union-attr]
    assert "not learnt" in (refusal(frozen) or "")
    heard = models.build("plain")
    heard.register_forward_hook(lambda *_: None)
    assert "listens" in (refusal(heard) or "")
    with register_module_forward_hook(lambda *_: None):
        assert "listens" in (refusal(models.build("plain")) or "")
    replaced = models.build("plain")
    replaced[1].forward = lambda x: x  # type: ignore[index, union-attr]
    assert "replaced" in (refusal(replaced) or "")
    container = LinearRecurrentContainer(nn.Sequential(nn.Linear(10, 10), IF()), 10, 10)
    assert "Sequential inside" in (refusal(ColumnReader(nn.Linear(28, 10), container)) or "")
    shared = nn.Linear(28, 28)
    assert "share" in (refusal(ColumnReader(shared, IF(), shared, IF())) or "")
    tied = models.build("plain", hidden=10)
    tied[2].bias = tied[0].bias  # type: ignore[index, union-attr, assignment]
    assert "share" in (refusal(tied) or "")
    more = models.build("plain")
    more.extra = nn.Parameter(torch.zeros(1))
    assert "other weights" in (refusal(more) or "")
    clipped = models.build("plain")
    clipped[0].weight.register_hook(lambda g: g * 0)  # type: ignore[index, union-attr]
    assert "gradients" in (refusal(clipped) or "")
    assert "fit" in (refusal(ColumnReader(nn.Linear(28, 32), IF(), nn.Linear(16, 10))) or "")
    assert "fit" in (refusal(ColumnReader(nn.Linear(28, 5), IF())) or "")


def _with_backend(name: str) -> nn.Module:
    model = models.build("plain")
    set_backend(model, name)
    return model
