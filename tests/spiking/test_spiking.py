"""Neurons, synapse filter and containers: values computed by hand, shapes, dtypes, state."""

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rsnn_fmnist.spiking import (
    IF,
    LIF,
    ElementWiseRecurrentContainer,
    LinearRecurrentContainer,
    SequenceModule,
    SynapseFilter,
    TimeDistributed,
    record,
    set_backend,
    step,
)
from rsnn_fmnist.spiking.neuron import Neuron, NeuronSettings, if_step, neuron_sequence

MODULES: dict[str, Callable[[], SequenceModule]] = {
    "if": IF,
    "lif": LIF,
    "if-soft": lambda: IF(v_reset=None),
    "filter": lambda: SynapseFilter(tau=3.0, learnable=True),
    "elementwise": lambda: ElementWiseRecurrentContainer(IF(v_reset=None), torch.add),
    "linear": lambda: LinearRecurrentContainer(LIF(), 5, 5),
}


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Inputs that make neurons fire at about half of the steps."""
    generator = torch.Generator().manual_seed(7)
    return (torch.rand(*shape, generator=generator, dtype=torch.float64) * 1.5).to(dtype)


def test_if_integrates_fires_and_resets() -> None:
    x_seq = torch.tensor([0.25, 0.5, 0.25, 0.75, 1.5])
    hard, v_hard = IF().sequence(x_seq)
    assert hard.tolist() == [0, 0, 1, 0, 1]  # h: 0.25 0.75 1 0.75 2.25
    assert v_hard.item() == 0
    soft, v_soft = IF(v_reset=None).sequence(x_seq)
    assert soft.tolist() == [0, 0, 1, 0, 1]
    assert v_soft.item() == 1.25
    lower, v_lower = IF(v_reset=-0.5).sequence(x_seq)
    assert lower.tolist() == [0, 0, 0, 1, 1]  # h from -0.5: -0.25 0.25 0.5 1.25 1
    assert v_lower.item() == -0.5


def test_lif_leaks_towards_its_resting_potential() -> None:
    x_seq = torch.tensor([1.0, 1.0, 2.0, 0.0])
    s_seq, v = LIF(tau=2.0).sequence(x_seq)
    assert s_seq.tolist() == [0, 0, 1, 0]  # h: 0.5 0.75 1.375 0
    assert v.item() == 0
    s_seq, v = LIF(tau=4.0, v_reset=-1.0).sequence(torch.tensor([1.0, 0.0]))
    assert s_seq.tolist() == [0, 0]
    assert v.item() == -0.8125  # -1 + 1/4 = -0.75; -0.75 + (0 - 0.25) / 4


def test_synapse_filter_decays_without_spikes_and_not_with_them() -> None:
    x_seq = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])
    assert SynapseFilter(tau=2.0)(x_seq).tolist() == [1, 0.5, 0.25, 1.25, 2.25]


def test_tutorial_example_feedback_keeps_a_neuron_firing() -> None:
    """After one input of 1.5 and then none, the spike that is fed back suffices to fire again."""
    x_seq = torch.zeros(8)
    x_seq[0] = 1.5
    with_feedback = ElementWiseRecurrentContainer(IF(v_reset=None), torch.add)
    assert with_feedback(x_seq).tolist() == [1] * 8
    assert IF(v_reset=None)(x_seq).tolist() == [1] + [0] * 7


def test_tutorial_example_stateful_convolution() -> None:
    """A filter behind a convolution accumulates a constant input over the steps."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, kernel_size=3, padding=1)
    stateful_conv = nn.Sequential(TimeDistributed(conv), SynapseFilter(tau=100, learnable=True))
    x_seq = torch.rand(4, 2, 3, 6, 6)
    y_seq = stateful_conv(x_seq)
    assert y_seq.shape == (4, 2, 8, 6, 6)
    z = torch.stack([conv(x) for x in x_seq])
    torch.testing.assert_close(y_seq[0], z[0])
    expected = y_seq[0] - (1 - z[1]) * y_seq[0] / 100 + z[1]
    torch.testing.assert_close(y_seq[1], expected)
    y_seq.sum().backward()
    assert stateful_conv[1].w.grad.abs() > 0


@pytest.mark.parametrize("name", MODULES)
def test_step_sequence_and_forward_agree(name: str) -> None:
    torch.manual_seed(1)
    module = MODULES[name]()
    x_seq = inputs(9, 3, 5)
    whole, last = module.sequence(x_seq)
    assert torch.equal(module(x_seq), whole)
    state, by_step = None, []
    for x in x_seq:
        y, state = module.step(x, state)
        by_step.append(y)
    torch.testing.assert_close(torch.stack(by_step), whole)
    first, state = module.sequence(x_seq[:4])
    second, state = module.sequence(x_seq[4:], state)
    torch.testing.assert_close(torch.cat((first, second)), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("name", MODULES)
def test_no_state_survives_a_call(name: str) -> None:
    torch.manual_seed(1)
    module = MODULES[name]()
    before = copy.deepcopy(module.__dict__)
    first = module(inputs(6, 3, 5))
    assert torch.equal(module(inputs(6, 3, 5)), first)
    assert module.__dict__.keys() == before.keys()


@pytest.mark.parametrize("name", ["if", "lif", "if-soft", "filter", "elementwise"])
@pytest.mark.parametrize("shape", [(7,), (7, 2), (7, 2, 3), (7, 2, 3, 4, 5), (1, 1), (4, 0, 3)])
def test_any_trailing_shape(name: str, shape: tuple[int, ...]) -> None:
    module = MODULES[name]()
    x_seq = inputs(*shape)
    y_seq = module(x_seq)
    assert y_seq.shape == shape
    flat = module(x_seq.reshape(shape[0], math.prod(shape[1:])))
    assert torch.equal(y_seq.reshape(flat.shape), flat)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_output_follows_the_input_and_state_stays_wide(name: str, dtype: torch.dtype) -> None:
    module = MODULES[name]().to(dtype)
    y_seq, state = module.sequence(inputs(3, 2, 5, dtype=dtype))
    assert y_seq.dtype == dtype
    while isinstance(state, tuple):
        state = state[-1]
    assert state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_under_autocast_the_potential_is_kept_in_float32() -> None:
    """2^-9, added 512 times, reaches the threshold in float32, but stays at 0.5 in bfloat16."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0**-9)
    model = nn.Sequential(layer, IF())
    with torch.autocast("cpu", torch.bfloat16):
        s_seq = model(torch.ones(512, 1, 1))
        assert s_seq.dtype == torch.bfloat16
    assert s_seq.sum() == 1
    assert s_seq[-1].item() == 1


def test_non_contiguous_input() -> None:
    x = inputs(5, 3, 9)
    x_seq = x.permute(2, 1, 0)
    assert not x_seq.is_contiguous()
    for module in (IF(), SynapseFilter(), LinearRecurrentContainer(IF(), 5, 5)):
        torch.testing.assert_close(module(x_seq), module(x_seq.contiguous()))


def test_step_drives_a_sequential() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 4), LIF(), nn.Sequential(SynapseFilter(2.0), nn.ReLU()))
    x_seq = inputs(6, 3, 5)
    state, by_step = None, []
    for x in x_seq:
        y, state = step(model, x, state)
        by_step.append(y)
    torch.testing.assert_close(torch.stack(by_step), model(x_seq))
    assert isinstance(state, tuple)
    assert state[0] is None
    assert state[2][1] is None


def test_time_distributed_steps_and_refuses_stateful_modules() -> None:
    wrapped = TimeDistributed(nn.BatchNorm1d(5).eval())
    x_seq = inputs(4, 3, 5)
    assert torch.equal(wrapped(x_seq)[2], step(wrapped, x_seq[2])[0])
    with pytest.raises(ValueError, match="LIF keeps a state"):
        TimeDistributed(nn.Sequential(nn.Linear(5, 5), LIF()))


def test_linear_container_feeds_back_its_output() -> None:
    container = LinearRecurrentContainer(IF(v_reset=None), 1, 1, bias=False)
    nn.init.ones_(container.rc.weight)  # i = x + y: the element-wise container with add
    x_seq = torch.zeros(8, 1, 1)
    x_seq[0] = 1.5
    assert container(x_seq).flatten().tolist() == [1] * 8


def test_linear_container_around_a_sequential_changes_the_width() -> None:
    torch.manual_seed(3)
    container = LinearRecurrentContainer(nn.Sequential(nn.Linear(6, 4), LIF()), 6, 4)
    y_seq, (y, (nothing, v)) = container.sequence(inputs(5, 2, 6))
    assert y_seq.shape == (5, 2, 4)
    assert torch.equal(y, y_seq[-1])
    assert nothing is None
    assert v.shape == (2, 4)


def test_gradients_flow_through_time_and_stop_at_a_detached_reset() -> None:
    x = torch.tensor([[0.5], [0.75]], dtype=torch.float64, requires_grad=True)
    IF(detach_reset=True)(x)[1].sum().backward()
    slope = IF().surrogate.slope(torch.tensor(0.25, dtype=torch.float64))
    torch.testing.assert_close(x.grad.flatten(), torch.stack((slope, slope)))
    x.grad = None
    IF(detach_reset=False)(x)[1].sum().backward()  # v1 = h1 (1 - s1): r = 1 - s1 - h1 slope(h1)
    slope_1 = IF().surrogate.slope(torch.tensor(-0.5, dtype=torch.float64))
    torch.testing.assert_close(x.grad.flatten(), torch.stack((slope * (1 - 0.5 * slope_1), slope)))


def test_learnable_tau() -> None:
    synapse = SynapseFilter(tau=5.0, learnable=True)
    assert synapse.tau == pytest.approx(5.0)
    assert [name for name, _ in synapse.named_parameters()] == ["w"]
    assert synapse.w.shape == ()
    assert not list(SynapseFilter(tau=5.0).parameters())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: IF(v_threshold=0.0), "must lie above"),
        (lambda: IF(v_reset=1.5), "must lie above"),
        (lambda: IF(v_threshold=math.nan), "must be finite"),
        (lambda: LIF(tau=0.5), "at least 1"),
        (lambda: LIF(tau=math.inf), "at least 1"),
        (lambda: SynapseFilter(tau=1.0), "above 1"),
        (lambda: IF()(torch.zeros(0, 3)), "at least one step"),
        (lambda: IF()(torch.tensor(1.0)), "at least one step"),
        (lambda: set_backend(IF(), "jax"), "unknown backend 'jax'"),
    ],
)
def test_bad_values_are_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_set_backend_reaches_a_users_own_module() -> None:
    class Mine(SequenceModule):
        def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            count = torch.ones_like(x) if state is None else state + 1
            return x * count, count

    model = nn.Sequential(nn.Linear(2, 2), LinearRecurrentContainer(Mine(), 2, 2))
    set_backend(model, "torch")
    assert model[1].backend == "torch"
    assert model[1].sub_module.backend == "torch"
    assert Mine()(torch.ones(3)).tolist() == [1, 2, 3]


def test_a_users_neuron_with_functions_of_its_own() -> None:
    """Its step function and its sequence function halve the threshold."""

    def my_step(x: Tensor, v: Tensor, *, v_threshold: float, **others: Any) -> Any:
        return if_step(x, v, v_threshold=v_threshold / 2, **others)

    def my_sequence(x_seq: Tensor, v: Tensor, *, neuron: NeuronSettings, **others: Any) -> Any:
        halved = dataclasses.replace(neuron, v_threshold=neuron.v_threshold / 2)
        return neuron_sequence(x_seq, v, neuron=halved, **others)

    class Mine(Neuron):
        step_function = staticmethod(my_step)
        sequence_function = staticmethod(my_sequence)

    x_seq, mine, halved = inputs(6, 3, 5), Mine(v_threshold=2.0), IF(v_threshold=1.0)
    with record(mine) as recording:
        assert torch.equal(mine(x_seq), halved(x_seq))
    assert torch.equal(mine.step(x_seq[0])[0], halved.step(x_seq[0])[0])
    assert recording["model"].h.shape == x_seq.shape
    inner = LinearRecurrentContainer(mine, 5, 5)
    assert inner(x_seq).shape == x_seq.shape


def test_modules_copy_and_print() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "tau=2" in repr(copy.deepcopy(LIF()))
        assert "tau=4, learnable=True" in repr(SynapseFilter(4.0, learnable=True))
