"""Operations against counts by hand, on networks small enough for it."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from rsnn_fmnist import models
from rsnn_fmnist.models import ColumnReader
from rsnn_fmnist.report.energy import count_operations
from rsnn_fmnist.spiking import (
    IF,
    ElementWiseRecurrentContainer,
    LinearRecurrentContainer,
    SynapseFilter,
    TimeDistributed,
    record,
)

# Two pictures of 2 pixels and 3 columns. fc1 copies the pixels, so sn1's neurons fire where
# a pixel is 1: 4 spikes for the first picture, none for the second. sn2: 5.
PICTURES = torch.tensor([[[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]], [[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]])


def tiny(sn1: nn.Module, **between: nn.Module) -> nn.Module:
    fc1, fc2 = nn.Linear(2, 2, bias=False), nn.Linear(2, 5)
    with torch.no_grad():
        fc1.weight.copy_(torch.eye(2))
    return ColumnReader(OrderedDict(fc1=fc1, sn1=sn1, **between, fc2=fc2, sn2=IF()))


def test_plain() -> None:
    """fc1 receives 5 pixels that are not 0, two synapses each; fc2 4 spikes, five synapses each."""
    found = count_operations(tiny(IF()), [PICTURES])
    assert found.synaptic_operations == found.accumulates == 4 * 5 / 2
    assert found.multiply_accumulates == 5 * 2 / 2
    assert found.dense_multiply_accumulates == 3 * (2 * 2 + 2 * 5)
    assert found.joules == pytest.approx(10 * 0.9e-12 + 5 * 4.6e-12)
    assert found.dense_joules == pytest.approx(42 * 4.6e-12)


def test_spikes_of_a_container_reach_the_next_layer_and_the_feedback() -> None:
    """rc copies its input and ignores the feedback; a spike has 5 + 2 synapses, 0.5 is none."""
    sn1 = LinearRecurrentContainer(IF(), 2, 2, bias=False)
    with torch.no_grad():
        sn1.rc.weight.copy_(torch.eye(2, 4))
    found = count_operations(tiny(sn1), [PICTURES])
    assert found.synaptic_operations == found.accumulates == 4 * (5 + 2) / 2
    assert found.multiply_accumulates == (5 * 2 + 5 * 2) / 2
    assert found.dense_multiply_accumulates == 3 * (2 * 2 + 2 * 2 + 2 * 2 + 2 * 5)


def test_behind_a_filter_spikes_are_synaptic_operations_and_the_trace_is_work() -> None:
    """Both traces persist from their first spike to the end: 3 + 3 values that are not 0."""
    found = count_operations(tiny(IF(), sy1=SynapseFilter(2.0)), [PICTURES[:1], PICTURES[1:]])
    assert found.synaptic_operations == 4 * 5 / 2
    assert found.accumulates == 0
    assert found.multiply_accumulates == 5 * 2 / 2 + 6 * 5 / 2
    assert found.dense_multiply_accumulates == 42


def test_convolution() -> None:
    """3 x 3 in the middle of a 3 x 3 image reaches 9 outputs, in a corner 4; two channels."""
    model = nn.Sequential(TimeDistributed(nn.Conv2d(1, 2, 3, padding=1)), IF())
    x = torch.zeros(1, 1, 1, 3, 3)
    x[..., 1, 1] = x[..., 0, 0] = 1
    found = count_operations(model, [x])
    assert found.synaptic_operations == 2 * (9 + 4)
    assert found.dense_multiply_accumulates == 2 * (9 + 4 * 4 + 4 * 6)


@pytest.mark.parametrize(
    ("name", "fan_out", "dense"),
    [
        ("plain", 10, 28 * (28 * 32 + 320)),
        ("feedback", 10 + 32, 28 * (28 * 32 + 320 + 32 * 64)),
        ("stateful-synapse", 10, 28 * (28 * 32 + 320)),
    ],
)
def test_the_three_networks(name: str, fan_out: int, dense: int) -> None:
    torch.manual_seed(0)
    model = models.build(name)
    x = torch.rand(4, 28, 28) * 3
    before = {path: set(module.__dict__) for path, module in model.named_modules()}
    found = count_operations(model, [x])
    assert before == {path: set(module.__dict__) for path, module in model.named_modules()}
    with torch.no_grad(), record(model) as rec:
        model(x)
    spikes = rec["sn1"].s.sum().item()
    assert spikes > 0
    assert found.synaptic_operations == spikes * fan_out / 4
    assert found.dense_multiply_accumulates == dense


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        count_operations(models.build("plain"), [])
    inner = LinearRecurrentContainer(IF(), 2, 2)
    with pytest.raises(ValueError, match="container in a container"):
        count_operations(ElementWiseRecurrentContainer(inner, torch.add), [torch.ones(3, 1, 2)])
    inner = LinearRecurrentContainer(nn.Sequential(IF(), SynapseFilter(2.0)), 2, 2)
    with pytest.raises(ValueError, match="filter in a container"):
        count_operations(inner, [torch.ones(3, 1, 2)])


class Raw(nn.Module):
    """A matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.ConvTranspose2d(1, 1, 2), r"0, a ConvTranspose2d, has weights \(weight\)"),
        (nn.MultiheadAttention(2, 1), r"0, a MultiheadAttention, has weights \(in_proj_weight\)"),
        (nn.Conv3d(1, 1, 2), "Conv3d"),
        (nn.Bilinear(2, 2, 2), "Bilinear"),
        (nn.LSTM(2, 2), "LSTM"),
        (nn.Embedding(2, 2), "Embedding"),
        (Raw(), "0, a Raw"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_that_are_not_known_are_refused(layer: nn.Module, message: str) -> None:
    """Their operations would count as 0."""
    with pytest.raises(ValueError, match=message + ".* cannot be counted"):
        count_operations(nn.Sequential(layer, IF()), [PICTURES])
    with pytest.raises(ValueError, match="the model, a Raw"):
        count_operations(Raw(), [PICTURES])


def test_norms_and_parametrized_layers_are_no_layers_of_their_own() -> None:
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        linear.weight = torch.eye(2)
    norms = nn.Sequential(nn.LayerNorm((1, 2)), nn.RMSNorm((1, 2)), nn.PReLU())
    found = count_operations(nn.Sequential(linear, norms, IF()), [PICTURES[:1, :, None, :2]])
    assert found.multiply_accumulates + found.accumulates == 3 * 2


class Filtered(nn.Module):
    """Spikes x [T, N, 2] through filters to a layer of 5, connected as a test chooses."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.sy1, self.sy2, self.fc = SynapseFilter(2.0), SynapseFilter(3.0), nn.Linear(2, 5)
        self.skip = nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        trace = self.sy1(x)
        if self.way == "modified":
            return self.fc(trace.contiguous() * 1)
        if self.way == "reshaped":
            return self.fc(trace.flatten(0, 1))
        if self.way == "twice":
            return self.fc(self.sy2(trace))
        if self.way == "by name":
            return self.fc(input=self.sy1(x_seq=x))
        if self.way == "last":
            return self.sy2((self.fc(x) > 0).float())
        return self.skip(x * 0.3) + self.fc(trace)


SPIKES = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]], [[1.0, 1.0]]])


@pytest.mark.parametrize("way", ["reshaped", "twice", "by name", "beside another", "last"])
def test_spikes_are_followed_through_filters(way: str) -> None:
    """3 spikes, five synapses each; the three steps count as pictures here."""
    assert count_operations(Filtered(way), [SPIKES]).synaptic_operations == 3 * 5 / 3


def test_a_modified_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="sy1: its output is modified before fc receives it"):
        count_operations(Filtered("modified"), [SPIKES])
