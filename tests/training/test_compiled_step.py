"""The compiled step's gradients, against autograd's in the torch backend."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rsnn_fmnist import models
from rsnn_fmnist.config import Experiment
from rsnn_fmnist.data import splits
from rsnn_fmnist.data.loader import Loader
from rsnn_fmnist.data.pictures import Pictures
from rsnn_fmnist.metrics import Sums
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
from rsnn_fmnist.spiking.kernels.cpu.chain import SAMPLES
from rsnn_fmnist.spiking.kernels.cpu.chain import chain as loop
from rsnn_fmnist.spiking.kernels.cpu.tiles import VECTOR
from rsnn_fmnist.storage import checkpoint
from rsnn_fmnist.training.compiled_step import CompiledGradients, refusal
from rsnn_fmnist.training.flat_parameters import FlatParameters
from rsnn_fmnist.training.step import choose_step, eager_gradients, training_step

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


def both(model: nn.Module, indices: Tensor, steps: int = 28) -> tuple[Any, Any]:
    """The gradients and sums of a batch, compiled and by autograd in the torch backend."""
    found = []
    for compiled in (True, False):
        session, sums = open_chain(model, steps), Sums(CPU)
        set_backend(model, "auto" if compiled else "torch")
        model.zero_grad()
        if compiled:
            gradients = CompiledGradients(model, FlatParameters(session), session.train, sums)
            gradients(indices)
        else:
            eager_gradients(session, sums)(indices)
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
        x = Loader(pictures(steps), CPU).take(torch.arange(count))[0]
        with record(model) as recording, torch.no_grad():
            model(x)
        rates = [layer.s.mean().item() for layer in recording.values()]
        assert all(0.01 < rate < 0.99 for rate in rates), "silent or saturated"
    assert ours.keys() == theirs.keys()
    for parameter, gradient in theirs.items():
        assert torch.allclose(ours[parameter], gradient, rtol=1e-10, atol=1e-13), parameter
        error = (ours[parameter] - gradient).abs().max()
        assert error <= 1e-12 * gradient.abs().max(), parameter
    assert torch.equal(our_sums[1:], their_sums[1:])
    assert torch.allclose(our_sums[0], their_sums[0], rtol=1e-12)


def test_threads_that_are_not_there_add_nothing() -> None:
    """OpenMP may give fewer than asked for, as within a region of another library."""
    torch.set_num_threads(2)
    session, sums = open_chain(built("plain", 32)), Sums(CPU)
    compiled = CompiledGradients(session.model, FlatParameters(session), session.train, sums)
    compiled(torch.arange(100))
    expected = compiled.gradient.copy()
    for space in compiled.spaces[1:]:
        space[:] = float("nan")
    sums.reset()
    compiled(torch.arange(100))
    assert (compiled.gradient == expected).all()
    assert sums.totals[3] == 100


@pytest.mark.parametrize("name", ["plain", "feedback", "stateful-synapse"])
def test_weights_of_other_shapes_are_refused(name: str) -> None:
    """As after pruning: a layer's forward goes by its weights, the loop by its attributes."""
    model = models.build(name, hidden=32)
    model.fc1.weight = nn.Parameter(torch.zeros(16, 28))
    assert "fit" in (refusal(model) or "")
    model = models.build(name, hidden=32)
    model.fc2.bias = nn.Parameter(torch.zeros(1))
    assert "fit" in (refusal(model) or "")
    model = models.build("feedback", hidden=32)
    model.sn1.rc.weight = nn.Parameter(torch.zeros(32, 48))
    assert "fit" in (refusal(model) or "")


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("name", [*models.MODELS, *VARIANTS])
def test_what_is_not_finite_does_what_it_does_in_autograd(
    name: str, value: str, float64: None
) -> None:
    """A neuron that always receives it; the samples of a block that is not full do not matter."""
    model = built(name, 8)
    with torch.no_grad():
        list(model.parameters())[1][0] = float(value)
    (ours, our_sums), (theirs, their_sums) = both(model, torch.arange(70))
    close = {"rtol": 1e-10, "atol": 1e-13, "equal_nan": True}
    for parameter, gradient in theirs.items():
        assert torch.allclose(ours[parameter], gradient, **close), parameter
    assert torch.allclose(our_sums, their_sums, **close)


@pytest.mark.parametrize("opt", ["sgd", "adam"])
@pytest.mark.parametrize("name", list(models.MODELS))
def test_fifty_steps_equal_torchs(name: str, opt: str, float64: None) -> None:
    weights, totals = [], []
    for backend in ("auto", "torch"):
        model = built(name, 32)
        set_backend(model, backend)
        settings = {"opt": opt, "lr": 0.1 if opt == "sgd" else 0.001}
        session, sums = open_chain(model, **settings), Sums(CPU)
        assert choose_step(session)[0] == ("compiled" if backend == "auto" else "eager")
        step = training_step(session, sums)
        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            step(torch.randperm(PICTURES, generator=generator)[:128])
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
        totals.append(sums.totals)
    assert torch.allclose(*weights, rtol=1e-9, atol=1e-9)
    assert torch.allclose(*totals, rtol=1e-9)


@pytest.mark.parametrize("name", list(models.MODELS))
def test_float32_agrees_where_no_charge_is_near_the_threshold(name: str) -> None:
    model = built(name, 32)
    x = Loader(pictures(), CPU).take(torch.arange(PICTURES))[0]
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


def compare_in_half(model: nn.Module, pictures: Pictures) -> tuple[int, int, float]:
    """Spikes of the loop that differ from those of autocast, all spikes, and the gradient's error.

    The error is that of one batch of all pictures, relative to the gradient's norm.
    """
    torch.set_num_threads(1)  # whose space holds a whole block
    loader = Loader(pictures, CPU)
    session = open_session(Experiment(amp=True), CPU, model, (loader, None, loader))
    compiled = CompiledGradients(model, FlatParameters(session), loader, Sums(CPU), half=True)
    differing = total = 0
    for block in torch.arange(len(pictures)).split(SAMPLES):
        compiled(block)
        with torch.no_grad(), record(model) as recording, session.precision.autocast():
            model(loader.take(block)[0])
        for layer, (name, module) in zip(compiled.layers, model.named_children(), strict=True):
            if name in recording and isinstance(module, IF | LIF | LinearRecurrentContainer):
                spikes = kept(compiled, int(layer["out"]), int(layer["outputs"]), len(block))
                differing += int((spikes != recording[name].s).sum())
                total += spikes.numel()
    everything = torch.arange(len(pictures))
    compiled(everything)
    ours = nn.utils.parameters_to_vector([p.grad for p in model.parameters()])
    model.zero_grad()
    eager_gradients(session, Sums(CPU))(everything)
    theirs = nn.utils.parameters_to_vector([p.grad for p in model.parameters()])
    return differing, total, float((ours - theirs).norm() / theirs.norm())


def kept(compiled: CompiledGradients, first: int, features: int, count: int) -> Tensor:
    """What the loop has kept of its last block for all steps, [T, N, F]."""
    n = -(-count // VECTOR) * VECTOR
    space = torch.from_numpy(compiled.spaces[0][0])
    values = space[first * compiled.steps * n :][: features * compiled.steps * n]
    return values.reshape(compiled.steps, features, n)[:, :, :count].transpose(1, 2)


@pytest.mark.parametrize("name", [*models.MODELS, *VARIANTS])
def test_mixed_precision_is_torchs_autocast(name: str) -> None:
    differing, total, error = compare_in_half(built(name, 33), pictures())
    assert differing <= total / 100_000
    assert differing or error < 1e-3


@pytest.mark.pictures
@pytest.mark.parametrize("name", list(models.MODELS))
def test_mixed_precision_of_trained_networks(name: str, pictures_root: Path) -> None:
    """On 1,000 real pictures."""
    model = models.build(name)
    run = Path(__file__).parents[2] / "runs" / "reference" / f"{name}_seed2020"
    model.load_state_dict(checkpoint.load(run / "latest.pt")["model"])
    real = splits.load("fashion-mnist", pictures_root, download=False).train
    differing, total, error = compare_in_half(model, real.subset(torch.arange(1000)))
    assert total > 1_000_000
    assert differing <= total / 100_000
    assert differing or error < 1e-3


@pytest.mark.slow
def test_a_streamed_batch_gives_the_same_bits() -> None:
    """Indices into the buffer of a batch that workers fill, or into the whole set."""
    gradients = []
    indices = torch.arange(PICTURES).flip(0)[:130]
    for workers in (0, 1):
        model = built("feedback", 32)
        loader = Loader(pictures(), CPU, workers=workers)
        (selection,) = loader.selections([indices])
        flat = FlatParameters(open_chain(model))
        CompiledGradients(model, flat, loader, Sums(CPU))(selection)
        gradients.append(nn.utils.parameters_to_vector([p.grad for p in model.parameters()]))
        loader.close()
    assert torch.equal(*gradients)


def test_the_loop_is_compiled_before_the_first_step() -> None:
    session = open_chain(built("plain", 32))
    flat = FlatParameters(session)
    gradients = CompiledGradients(session.model, flat, session.train, Sums(CPU))
    before = loop.signatures
    gradients(torch.arange(40))
    assert loop.signatures == before


def test_what_the_loop_cannot_compute() -> None:
    def why(*layers: nn.Module) -> str:
        return refusal(ColumnReader(*layers)) or ""

    assert all(refusal(models.build(name)) is None for name in models.MODELS)
    assert "Erf has no" in why(nn.Linear(28, 10), IF(surrogate=Erf(2.0)))
    assert "1 is a Flatten" in why(nn.Linear(28, 10), nn.Flatten())
    assert "Sequential is not" in (refusal(nn.Sequential(nn.Linear(28, 10))) or "")
    container = LinearRecurrentContainer(nn.Sequential(nn.Linear(10, 10), IF()), 10, 10)
    assert "Sequential inside" in why(nn.Linear(28, 10), container)
    shared = nn.Linear(28, 28)
    assert "share" in why(shared, IF(), shared, IF())
    assert "fit" in why(nn.Linear(28, 32), IF(), nn.Linear(16, 10))
    assert "fit" in why(nn.Linear(28, 5), IF())


def freeze(model: Any) -> None:
    model.fc1.bias.requires_grad_(False)


def hook_a_parameter(model: Any) -> None:
    model.fc1.weight.register_hook(lambda g: g * 0)


def replace_a_forward(model: Any) -> None:
    model.sn1.forward = lambda x: x


def tie(model: Any) -> None:
    model.fc2.bias = model.fc1.bias


def add_a_parameter(model: Any) -> None:
    model.extra = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (freeze, "not learnt"),
        (hook_a_parameter, "its parameters have hooks"),
        (replace_a_forward, "replaced"),
        (tie, "share"),
        (add_a_parameter, "other weights"),
    ],
)
def test_changes_to_a_model_that_the_loop_would_miss(change: Any, words: str) -> None:
    model = models.build("plain", hidden=10)
    change(model)
    assert words in (refusal(model) or "")
