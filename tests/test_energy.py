"""Operations counted by hand, on networks small enough for it."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from rsnn_fmnist import models
from rsnn_fmnist.models import ColumnReader
from rsnn_fmnist.report.energy import measure
from rsnn_fmnist.spiking import (
    IF,
    ElementWiseRecurrentContainer,
    LinearRecurrentContainer,
    SynapseFilter,
    TimeDistributed,
    record,
)

# Two pictures of 2 pixels and 3 columns. fc1 passes the pixels on as they are, so that sn1's
# neurons fire where a pixel is 1: 4 spikes for the first picture, none for the second. sn2: 5.
PICTURES = torch.tensor([[[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]], [[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]])


def tiny(sn1: nn.Module, **between: nn.Module) -> nn.Module:
    fc1, fc2 = nn.Linear(2, 2, bias=False), nn.Linear(2, 5)
    with torch.no_grad():
        fc1.weight.copy_(torch.eye(2))
    return ColumnReader(OrderedDict(fc1=fc1, sn1=sn1, **between, fc2=fc2, sn2=IF()))


def test_plain() -> None:
    """fc1 hears 5 pixels that are not 0, two synapses each; fc2 4 spikes, five synapses each."""
    energy = measure(tiny(IF()), [PICTURES])
    assert energy.synaptic_operations == energy.accumulates == 4 * 5 / 2
    assert energy.multiply_accumulates == 5 * 2 / 2
    assert energy.dense_multiply_accumulates == 3 * (2 * 2 + 2 * 5)
    assert energy.joules == pytest.approx(10 * 0.9e-12 + 5 * 4.6e-12)
    assert energy.dense_joules == pytest.approx(42 * 4.6e-12)


def test_feedback_spikes_reach_the_layer_behind_and_the_feedback() -> None:
    """rc passes its input on and adds nothing; a spike has 5 + 2 synapses, and 0.5 is no spike."""
    sn1 = LinearRecurrentContainer(IF(), 2, 2, bias=False)
    with torch.no_grad():
        sn1.rc.weight.copy_(torch.eye(2, 4))
    energy = measure(tiny(sn1), [PICTURES])
    assert energy.synaptic_operations == energy.accumulates == 4 * (5 + 2) / 2
    assert energy.multiply_accumulates == (5 * 2 + 5 * 2) / 2
    assert energy.dense_multiply_accumulates == 3 * (2 * 2 + 2 * 2 + 2 * 2 + 2 * 5)


def test_behind_a_filter_spikes_count_as_synaptic_operations_and_the_trace_as_work() -> None:
    """Both traces last from their first spike to the end: 3 + 3 values that are not 0."""
    energy = measure(tiny(IF(), sy1=SynapseFilter(2.0)), [PICTURES[:1], PICTURES[1:]])
    assert energy.synaptic_operations == 4 * 5 / 2
    assert energy.accumulates == 0
    assert energy.multiply_accumulates == 5 * 2 / 2 + 6 * 5 / 2
    assert energy.dense_multiply_accumulates == 42


def test_convolution() -> None:
    """3 x 3 in the middle of a 3 x 3 image reaches 9 outputs, in a corner 4; two channels."""
    model = nn.Sequential(TimeDistributed(nn.Conv2d(1, 2, 3, padding=1)), IF())
    x = torch.zeros(1, 1, 1, 3, 3)
    x[..., 1, 1] = x[..., 0, 0] = 1
    energy = measure(model, [x])
    assert energy.synaptic_operations == 2 * (9 + 4)
    assert energy.dense_multiply_accumulates == 2 * (9 + 4 * 4 + 4 * 6)


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
    energy = measure(model, [x])
    assert before == {path: set(module.__dict__) for path, module in model.named_modules()}
    with torch.no_grad(), record(model) as rec:
        model(x)
    spikes = rec["sn1"].s.sum().item()
    assert spikes > 0
    assert energy.synaptic_operations == spikes * fan_out / 4
    assert energy.dense_multiply_accumulates == dense


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        measure(models.build("plain"), [])
    inner = LinearRecurrentContainer(IF(), 2, 2)
    with pytest.raises(ValueError, match="container in a container"):
        measure(ElementWiseRecurrentContainer(inner, torch.add), [torch.ones(3, 1, 2)])
    inner = LinearRecurrentContainer(nn.Sequential(IF(), SynapseFilter(2.0)), 2, 2)
    with pytest.raises(ValueError, match="filter in a container"):
        measure(inner, [torch.ones(3, 1, 2)])


class Filtered(nn.Module):
    """Spikes x [T, N, 2] through filters to a layer of 5, in a way that a test chooses."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.sy1, self.sy2, self.fc = SynapseFilter(2.0), SynapseFilter(3.0), nn.Linear(2, 5)
        self.skip = nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        trace = self.sy1(x)
        if self.way == "changed":
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
    assert measure(Filtered(way), [SPIKES]).synaptic_operations == 3 * 5 / 3


def test_a_trace_that_is_changed_on_its_way_is_refused() -> None:
    with pytest.raises(ValueError, match="sy1: its output is changed before fc hears it"):
        measure(Filtered("changed"), [SPIKES])
