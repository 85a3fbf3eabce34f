"""What is recorded is what the running backend computes, and nothing of it remains in the model."""

import copy
import importlib
import pickle
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rsnn_fmnist import models
from rsnn_fmnist.spiking import (
    IF,
    LIF,
    ElementWiseRecurrentContainer,
    LinearRecurrentContainer,
    Observer,
    SequenceModule,
    SynapseFilter,
    TimeDistributed,
    record,
    set_backend,
    step,
)
from rsnn_fmnist.spiking.monitor import (
    Firing,
    Recording,
    SpikeCounts,
    count_spikes,
    is_observed,
    layers,
)
from rsnn_fmnist.spiking.neuron import Neuron

BACKENDS = ["torch", "numba", pytest.param("cupy", marks=pytest.mark.cuda)]
T, N = 16, 9


def exact_model(name: str) -> nn.Module:
    """A model whose weights are multiples of 1/16, in float64, so that no sum is rounded."""
    model = models.build(name).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for path, p in model.named_parameters():
            if path != "sy1.w":  # 0: k is 1/2
                p.copy_(torch.randint(-6, 8, p.shape, generator=generator) / 16)
    return model


def pictures() -> Tensor:
    """[N, H = 28, W = T], multiples of 1/4."""
    return torch.randint(0, 5, (N, 28, T), generator=torch.Generator().manual_seed(8)).double() / 4


def fire(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of an IF neuron with threshold 1 and a reset to 0 -> s, h, v."""
    h = v + x
    s = (h >= 1).double()
    return s, h, h * (1 - s)


def by_hand(model: Any, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """s and h of each layer, [T, N, F], and the traces, computed here step by step."""
    s: dict[str, list[Tensor]] = {"sn1": [], "sn2": []}
    h: dict[str, list[Tensor]] = {"sn1": [], "sn2": []}
    v1 = y1 = trace = torch.zeros(len(x), 32).double()
    v2 = torch.zeros(len(x), 10).double()
    traces = []
    for t in range(x.shape[2]):
        i = model.fc1(x[:, :, t])
        if hasattr(model.sn1, "rc"):
            i = model.sn1.rc(torch.cat((i, y1), dim=1))
        y1, h1, v1 = fire(v1, i)
        out = y1
        if hasattr(model, "sy1"):
            out = trace = trace - (1 - y1) * trace / 2 + y1
            traces.append(trace)
        s2, h2, v2 = fire(v2, model.fc2(out))
        for name, spikes, potential in (("sn1", y1, h1), ("sn2", s2, h2)):
            s[name].append(spikes)
            h[name].append(potential)
    stack = {name: torch.stack(steps) for name, steps in s.items()}
    return stack, {name: torch.stack(steps) for name, steps in h.items()}, traces


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["plain", "feedback", "stateful-synapse"])
def test_equals_the_equations_step_by_step(name: str, backend: str, gradients: bool) -> None:
    model, x = exact_model(name), pictures()
    with torch.no_grad():
        s, h, traces = by_hand(model, x)
    device = "cuda" if backend == "cupy" else "cpu"
    model = model.to(device)
    set_backend(model, backend)
    with torch.set_grad_enabled(gradients), record(model) as rec:
        rates = model(x.to(device))
    assert list(rec) == ["sn1", "sn2"]
    for layer in rec:
        assert rec[layer].s.shape == (T, N, 32 if layer == "sn1" else 10)
        assert 0.02 < s[layer].mean() < 0.98  # neither silent nor saturated
        assert torch.equal(rec[layer].s.cpu(), s[layer])
        assert torch.equal(rec[layer].h.cpu(), h[layer])
        assert not rec[layer].s.requires_grad
        assert not rec[layer].h.requires_grad
    assert torch.equal(rec["sn2"].s.mean(0), rates)
    assert list(rec.traces) == (["sy1"] if traces else [])
    if traces:
        assert torch.equal(rec.traces["sy1"].cpu(), torch.stack(traces))
        assert rec.order == ["sn1", "sy1", "sn2"]


@pytest.mark.parametrize("name", ["plain", "feedback"])
def test_h_is_that_of_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The h of a kernel that adds 1000 to it is recorded; h is kept only while it is recorded."""
    kernels = importlib.import_module("rsnn_fmnist.spiking.kernels.cpu.functions")
    kept = []

    def off(function: Any) -> Any:
        def run(*given: Any, keep_h: bool) -> Any:
            kept.append(keep_h)
            s, h, *rest = function(*given, keep_h=keep_h)
            return s, h + 1000, *rest

        return run

    for function in ("fire", "fire_recurrently"):
        monkeypatch.setattr(kernels, function, off(getattr(kernels, function)))
    model, x = exact_model(name), pictures()
    set_backend(model, "numba")
    with torch.no_grad():
        _, h, _ = by_hand(model, x)
        model(x)
        assert kept == [False, False]
        with record(model) as rec:
            model(x)
    assert kept == [False, False, True, True]
    assert torch.equal(rec["sn1"].h, h["sn1"] + 1000)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("name", ["plain", "feedback", "stateful-synapse"])
def test_recording_does_not_change_gradients(name: str, backend: str) -> None:
    def gradients(recorded: bool) -> list[Tensor]:
        model = exact_model(name)
        set_backend(model, backend)
        if recorded:
            with record(model), count_spikes(model):
                rates = model(pictures())
        else:
            rates = model(pictures())
        rates.square().sum().backward()
        return [rates, *(p.grad for p in model.parameters() if p.grad is not None)]

    assert all(map(torch.equal, gradients(True), gradients(False)))


def leftovers(model: nn.Module) -> list[str]:
    return [
        path
        for path, module in model.named_modules()
        if "observer" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks
    ]


def test_no_observer_remains() -> None:
    model = exact_model("stateful-synapse")
    names = {path: set(module.__dict__) for path, module in model.named_modules()}
    with suppress(ZeroDivisionError), record(model) as rec:
        assert leftovers(model) == ["sn1", "sy1", "sn2"]
        raise ZeroDivisionError  # any error inside
    assert not leftovers(model)
    assert names == {path: set(module.__dict__) for path, module in model.named_modules()}
    assert list(rec) == []
    with pytest.raises(KeyError, match="sn1 has not run"):
        rec["sn1"]
    model(pictures())
    assert len(rec) == 0


def test_two_recordings_at_once() -> None:
    model, x = exact_model("feedback"), pictures()
    with record(model) as outer:
        with record(model) as inner:
            model(x)
        model(x)
    assert not leftovers(model)
    assert inner["sn1"].h.shape[0] == T
    assert torch.equal(outer["sn1"].h, torch.cat((inner["sn1"].h, inner["sn1"].h)))


def test_steps_and_halves_are_recorded_in_turn() -> None:
    reader, x_seq = exact_model("feedback"), pictures().permute(2, 0, 1)
    model: Any = nn.Sequential(OrderedDict(reader.named_children()))  # reads a column a step
    with record(reader) as whole:
        reader(pictures())
    state = None
    with record(model) as rec:
        for x in x_seq:
            _, state = step(model, x, state)
    neurons = model.sn1
    assert isinstance(neurons, LinearRecurrentContainer)
    with record(neurons) as halves, torch.no_grad():
        currents = model.fc1(x_seq)
        _, state = neurons.sequence(currents[:5])
        neurons.sequence(currents[5:], state)
    for layer in whole:
        assert torch.equal(rec[layer].h, whole[layer].h)
        assert torch.equal(rec[layer].s, whole[layer].s)
    assert torch.equal(halves["model"].h, whole["sn1"].h)


def test_names_are_the_models_attributes() -> None:
    class Own(SequenceModule):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(3, 3), LIF())
            inner = nn.Sequential(nn.Linear(3, 4), LIF())
            self.sn = LinearRecurrentContainer(inner, 3, 4)
            two = nn.Sequential(IF(), nn.Linear(4, 4), SynapseFilter(2.0), LIF())
            self.both = ElementWiseRecurrentContainer(two, torch.add)

        def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            after = []
            parts = (self.block, self.sn, self.both)
            for part, before in zip(parts, state or (None,) * 3, strict=True):
                x, s = step(part, x, before)
                after.append(s)
            return x, tuple(after)

    model = Own()
    assert list(layers(model, Neuron)) == ["block.1", "sn", "both.0", "both.3"]
    assert list(layers(IF(), Neuron)) == ["model"]
    with record(model) as rec:
        model(torch.rand(5, 2, 3))
    assert {name: tuple(layer.h.shape) for name, layer in rec.items()} == {
        "block.1": (5, 2, 3),
        "sn": (5, 2, 4),
        "both.0": (5, 2, 4),
        "both.3": (5, 2, 4),
    }
    assert rec.traces["both"].shape == (5, 2, 4)


def test_passes_of_different_shapes() -> None:
    neuron = IF(v_threshold=2.0)
    with record(neuron) as rec, count_spikes(neuron) as counts:
        neuron(torch.full((4, 1, 2), 2.0))
        neuron(torch.zeros(4, 1, 3))
    with pytest.raises(ValueError, match="record each pass by itself"):
        rec["model"]
    firing = counts.firing()["model"]
    assert (firing.rate, firing.never, firing.always) == (0.4, 0.6, 0.4)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_counts(backend: str) -> None:
    """One neuron never fires, one always, and one at half the steps of one of two samples."""
    neuron = IF()
    set_backend(neuron, backend)
    x_seq = torch.zeros(4, 2, 3)
    x_seq[:, :, 1] = 1.0
    x_seq[:, 1, 2] = 0.5
    with torch.inference_mode(), count_spikes(neuron) as counts:
        neuron(x_seq)
        neuron(x_seq)
    firing = counts.firing()["model"]
    assert (firing.never, firing.always) == (1 / 3, 1 / 3)
    assert firing.rate == pytest.approx((0 + 1 + 0.25) / 3)


def test_recorded_spikes_are_not_changed_in_place() -> None:
    model = nn.Sequential(IF(), nn.Threshold(2.0, 0.0, inplace=True))
    with torch.no_grad(), record(model) as rec:
        assert model(torch.ones(3, 1, 1)).sum() == 0
    assert rec["0"].s.sum() == 3


def test_copies_are_not_recorded() -> None:
    model, x = exact_model("stateful-synapse"), pictures()
    with record(model) as rec, count_spikes(model):
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for other in copies:
            other(x)
        assert len(rec) == 0
        model(x)
    assert rec["sn1"].s.shape[0] == T
    with record(copies[0]) as again:
        copies[0](x)
    assert torch.equal(again["sn1"].h, rec["sn1"].h)
    assert not leftovers(copies[0])


def test_recordings_may_end_in_any_order() -> None:
    model, x = exact_model("plain"), pictures()
    first, second = record(model), record(model)
    one, two = first.__enter__(), second.__enter__()
    model(x)
    first.__exit__(None, None, None)
    model(x)
    second.__exit__(None, None, None)
    assert (one["sn1"].s.shape[0], two["sn1"].s.shape[0]) == (T, 2 * T)
    assert not leftovers(model)


def test_a_module_that_is_used_twice_is_one_layer() -> None:
    neuron = IF()
    model = nn.Sequential(neuron, neuron)
    with record(model) as rec:
        model(torch.ones(3, 1, 2))
    assert list(rec) == ["0"]
    assert rec["0"].s.shape == (6, 1, 2)


def test_an_attribute_named_almost_like_that_of_a_container() -> None:
    model = nn.Module()
    model.my_sub_module = IF()
    model.sub_modules = LinearRecurrentContainer(IF(), 2, 2)
    assert list(layers(model, Neuron)) == ["my_sub_module", "sub_modules"]


@pytest.mark.parametrize("passes", [(2**24, 1), (2**24 + 1,)])
def test_counts_are_exact(passes: tuple[int, ...]) -> None:
    """float32 does not represent every integer above 2^24."""
    counts = SpikeCounts()
    observer = counts.observer("sn")
    for steps in passes:
        s = torch.ones(1, 1, 1).expand(steps, 1, 1)
        observer(s, s)
    assert counts.firing()["sn"] == Firing(1.0, 0.0, 1.0)


def ignore(*_: Any) -> None:
    """A hook that does nothing."""


@pytest.mark.parametrize(
    "hook",
    [
        lambda model: model.sn1.register_forward_hook(ignore),
        lambda model: model.fc1.register_forward_pre_hook(ignore),
        lambda model: model.register_full_backward_hook(ignore),
        lambda model: model.fc2.register_full_backward_pre_hook(ignore),
        lambda model: nn.modules.module.register_module_forward_hook(ignore),
    ],
    ids=["forward", "forward pre", "backward", "backward pre", "all modules"],
)
def test_hooks_are_observers_too(hook: Any) -> None:
    model = models.build("feedback")
    assert not is_observed(model)
    handle = hook(model)
    assert is_observed(model)
    handle.remove()
    assert not is_observed(model)


@pytest.mark.parametrize("context", [record, count_spikes])
def test_a_model_is_observed_inside_the_contexts_only(context: Any) -> None:
    model = models.build("plain")
    with context(model):
        assert is_observed(model)
    assert not is_observed(model)


class Own(SequenceModule):
    """A user's layer that calls an observer."""

    observer: Observer | None

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = x + (torch.zeros_like(x) if state is None else state)
        s = (h >= 1).to(x.dtype)
        if self.observer is not None:
            self.observer(s[None], h[None])
        return s, h - s


class OfClass(Own):
    """Its observer is an attribute of the class."""

    observer = None


class OfObject(Own):
    """Its observer is an attribute of each object, and it has a threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.observer = None
        self.v_threshold = 1.0


class Unseen(SequenceModule):
    """A user's layer that calls no observer."""

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return x, state


@pytest.mark.parametrize("kind", [OfClass, OfObject])
def test_a_users_own_layer_is_recorded(kind: type[Own], capsys: Any) -> None:
    """As a layer, and in a container; it does what an IF with a soft reset does."""
    torch.manual_seed(0)
    own = nn.Sequential(OrderedDict(sn1=kind(), sn2=LinearRecurrentContainer(kind(), 5, 5)))
    expected: Any = copy.deepcopy(own)
    expected.sn1, expected.sn2.sub_module = IF(v_reset=None), IF(v_reset=None)
    set_backend(expected, "torch")
    before = [set(vars(module)) for module in own.modules()]
    x_seq = torch.rand(6, 3, 5, requires_grad=True) * 2
    with record(own) as rec, count_spikes(own) as counts:
        assert is_observed(own)
        own(x_seq)
    with record(expected) as right, count_spikes(expected) as right_counts:
        expected(x_seq)
    assert rec.order == list(rec) == ["sn1", "sn2"]
    assert rec.unseen == right.unseen == []
    for name in rec:
        assert torch.equal(rec[name].s, right[name].s)
        assert torch.equal(rec[name].h, right[name].h)
        assert not rec[name].h.requires_grad
    assert counts.firing() == right_counts.firing()
    assert rec["sn1"].v_threshold == (1 if kind is OfObject else None)
    assert [set(vars(module)) for module in own.modules()] == before
    assert not is_observed(own)
    own(x_seq)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("context", [record, count_spikes])
def test_a_layer_that_is_not_seen_is_named_once(context: Any, capsys: Any) -> None:
    class Around(SequenceModule):  # its parts are seen
        def __init__(self) -> None:
            super().__init__()
            self.sn = IF()

        def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            return self.sn.step(x, state)

    parts = {context.__name__: Unseen(), "fb": LinearRecurrentContainer(Unseen(), 2, 2)}
    others = {"sn": IF(), "sy": SynapseFilter(2.0), "around": Around()}
    model = nn.Sequential(
        OrderedDict(**parts, **others, relu=nn.ReLU(), flat=TimeDistributed(nn.ReLU()))
    )
    for _ in range(3):
        with context(model):
            model(torch.rand(3, 1, 2))
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the activity of {context.__name__}, fb is not recorded" in line
    assert "docs/inside.md" in line
    assert Recording(model).unseen == [context.__name__, "fb"]


def test_a_users_own_observer_stays() -> None:
    neuron, seen = IF(), []
    neuron.observer = observer = lambda s, h: seen.append(s.shape)
    with record(neuron) as rec:
        neuron(torch.ones(3, 2))
    assert neuron.observer is observer
    neuron(torch.ones(4, 2))
    assert seen == [(3, 2), (4, 2)]
    assert rec["model"].s.shape == (3, 2)
