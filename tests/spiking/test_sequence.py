"""What `step`, the containers and TimeDistributed refuse, and what dtypes they take."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rsnn_fmnist.spiking import (
    IF,
    LIF,
    ElementWiseRecurrentContainer,
    LinearRecurrentContainer,
    SequenceModule,
    SynapseFilter,
    TimeDistributed,
    set_backend,
    step,
)
from rsnn_fmnist.spiking.sequence import sequential_step


class Block(nn.Module):
    """A user's block, which works on sequences and keeps its state to itself."""

    def __init__(self, memory: nn.Module) -> None:
        super().__init__()
        self.fc, self.sn = nn.Linear(4, 4), memory

    def forward(self, x: Tensor) -> Tensor:
        return self.sn(self.fc(x))


class Residual(nn.Sequential):
    """A Sequential with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Named(nn.Sequential):
    """A Sequential that adds nothing."""


def patched() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 4), IF())
    layers.forward = lambda x: x + IF()(x)  # type: ignore[method-assign]
    return layers


HIDDEN: dict[str, Callable[[], nn.Module]] = {
    "block": lambda: Block(IF()),
    "block around a filter": lambda: Block(SynapseFilter(2.0)),
    "block deep in a sequential": lambda: nn.Sequential(nn.Sequential(nn.ReLU(), Block(LIF()))),
    "own forward": lambda: Residual(nn.Linear(4, 4), IF()),
    "own forward of one object": patched,
    "compiled": lambda: torch.compile(IF()),
    "data parallel": lambda: nn.DataParallel(IF()),
    "averaged": lambda: AveragedModel(IF()),
    "list": lambda: nn.ModuleList([IF()]),
    "torch's own cell": lambda: nn.GRUCell(4, 4),
    "torch's own sequence": lambda: Block(nn.RNN(4, 4)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch 2.11's
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_state_is_refused(name: str) -> None:
    """Its first axis is taken for time, or its state is lost between two steps."""
    message = r"step\(x, state\) cannot pass on: make .* a SequenceModule"
    for build in (
        lambda m: LinearRecurrentContainer(m, 4, 4),
        lambda m: ElementWiseRecurrentContainer(m, torch.add),
        lambda m: step(m, torch.rand(8, 4)),
        lambda m: step(nn.Sequential(nn.ReLU(), m), torch.rand(8, 4)),
    ):
        with pytest.raises(ValueError, match=message):
            build(HIDDEN[name]())
    with pytest.raises(ValueError, match="keeps a state over time"):
        TimeDistributed(HIDDEN[name]())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch 2.11's
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_state_is_refused_where_a_module_is_replaced(name: str) -> None:
    linear, element_wise = (
        LinearRecurrentContainer(IF(), 4, 4),
        ElementWiseRecurrentContainer(IF(), torch.add),
    )
    for container in (linear, element_wise):
        container.sub_module = HIDDEN[name]()
        with pytest.raises(ValueError, match="cannot pass on"):
            container(torch.rand(3, 8, 4))
        with pytest.raises(ValueError, match="cannot pass on"):
            container.step(torch.rand(8, 4))
    distributed = TimeDistributed(nn.ReLU())
    distributed.module = HIDDEN[name]()
    for call in (distributed, distributed.step):
        with pytest.raises(ValueError, match="keeps a state over time"):
            call(torch.rand(3, 8, 4))


def test_a_combination_has_no_memory() -> None:
    class Combined(Block):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x + y)

    with pytest.raises(ValueError, match="f contains IF"):
        ElementWiseRecurrentContainer(IF(), Combined(IF()))
    ElementWiseRecurrentContainer(IF(), Combined(nn.ReLU()))


@pytest.mark.parametrize("build", [TimeDistributed, lambda m: LinearRecurrentContainer(m, 4, 4)])
def test_a_class_is_not_a_module(build: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="ReLU is not a module; give an instance"):
        build(nn.ReLU)


def test_what_passes_its_state_is_advanced() -> None:
    """Sequentials, subclasses that keep forward or define step, and stateless modules."""

    class Stepped(Residual):
        def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            y, state = sequential_step(self, x, state)
            return x + y, state

    torch.manual_seed(0)
    x_seq, layers = torch.rand(5, 3, 4) * 2, (nn.Linear(4, 4), LIF())
    for module in (nn.Sequential(*layers), Named(*layers), Stepped(*layers)):
        inner, state, by_step = ElementWiseRecurrentContainer(module, lambda x, y: x), None, []
        for x in x_seq:
            y, state = step(module, x, state)
            by_step.append(y)
        torch.testing.assert_close(torch.stack(by_step), module(x_seq))
        torch.testing.assert_close(inner(x_seq), module(x_seq))
    for stateless in (Residual(nn.Linear(4, 4), nn.ReLU()), Block(nn.ReLU())):
        assert torch.equal(step(stateless, x_seq[0])[0], stateless(x_seq[0]))


SPIKES = torch.tensor([1, 0, 0, 1, 0])
LAYERS: dict[str, Callable[[], SequenceModule]] = {
    "if": IF,
    "lif": LIF,
    "lif-soft": lambda: LIF(v_reset=None),
    "filter": lambda: SynapseFilter(2.0),
    "filter-learnt": lambda: SynapseFilter(2.0, learnable=True),
    "elementwise": lambda: ElementWiseRecurrentContainer(SynapseFilter(2.0), torch.add),
    "linear": lambda: LinearRecurrentContainer(LIF(v_threshold=0.2), 5, 5),
    "linear-around-two": lambda: LinearRecurrentContainer(
        nn.Sequential(SynapseFilter(2.0), LIF(v_threshold=0.2)), 5, 5
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_integers_and_bools_are_numbers(name: str, dtype: torch.dtype, backend: str) -> None:
    """They give what the same values give in torch's default dtype, whole or step by step."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    set_backend(layer, backend)
    x_seq = torch.stack([SPIKES.roll(shift) for shift in range(8)])
    expected, last = layer.sequence(x_seq.float())
    y_seq, state = layer.sequence(x_seq.to(dtype))
    assert y_seq.dtype == torch.float32
    assert torch.equal(y_seq, expected)
    torch.testing.assert_close(state, last, rtol=0, atol=0)
    y, after = layer.step(x_seq[0].to(dtype))
    assert torch.equal(y, layer.step(x_seq[0].float())[0])
    assert layer.step(x_seq[1].to(dtype), after)[0].is_floating_point()


def test_the_trace_of_integer_spikes_is_not_truncated() -> None:
    assert SynapseFilter(2.0)(SPIKES).tolist() == [1, 0.5, 0.25, 1.25, 0.625]


def test_the_default_dtype_is_torchs(float64: None) -> None:
    assert SynapseFilter(2.0)(SPIKES).dtype == torch.float64


def test_the_dtype_of_numbers_stays() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert SynapseFilter(2.0)(SPIKES.to(dtype)).dtype == dtype
    embedding = TimeDistributed(nn.Embedding(2, 3))  # it takes integers
    assert embedding(SPIKES[:, None]).shape == (5, 1, 3)


def test_gradients_reach_the_weights_behind_integer_spikes() -> None:
    layer = LinearRecurrentContainer(LIF(v_threshold=0.2), 5, 5)
    gradients = []
    for x_seq in (SPIKES.expand(4, 2, 5), SPIKES.expand(4, 2, 5).float()):
        other = copy.deepcopy(layer)
        other(x_seq).sum().backward()
        gradients.append(other.rc.weight.grad)
    assert torch.equal(*gradients)
    assert gradients[0].any()


def test_of_the_recurrent_layer_only_weight_and_bias_are_read() -> None:
    container, x = LinearRecurrentContainer(IF(), 4, 4), torch.rand(3, 2, 4)
    torch.nn.utils.parametrizations.spectral_norm(container.rc)
    container(x)
    for change in (torch.nn.utils.spectral_norm, lambda rc: setattr(rc, "forward", rc.forward)):
        container = LinearRecurrentContainer(IF(), 4, 4)
        change(container.rc)
        with pytest.raises(ValueError, match=r"rc must be an nn.Linear with its own forward"):
            container(x)
