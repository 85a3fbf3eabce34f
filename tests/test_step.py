"""Metrics and one optimisation step."""

import math

import pytest
import torch
from torch import nn

from rsnn_fmnist.config import Experiment
from rsnn_fmnist.data.fashion_mnist import Pictures
from rsnn_fmnist.data.loader import Loader
from rsnn_fmnist.session import Session, open_session
from rsnn_fmnist.training.step import Sums, evaluation_step, ranks, rate_loss, training_step

CPU = torch.device("cpu")


def session_of(model: nn.Module, **settings: object) -> Session:
    """A session of sixteen random pictures."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randint(0, 256, (16, 28, 28), generator=generator, dtype=torch.uint8)
    loader = Loader(Pictures(columns, torch.arange(16) % 10), CPU)
    return open_session(Experiment(**settings), CPU, model, (loader, None, loader))  # type: ignore[arg-type]


def test_ties_go_to_the_lower_class() -> None:
    rates = torch.tensor([[0.5, 0.5, 0.2], [0.5, 0.5, 0.2], [0.1, 0.1, 0.1], [0.0, 0.2, 0.9]])
    assert ranks(rates, torch.tensor([0, 1, 2, 0])).tolist() == [0, 1, 2, 2]


def test_ranks_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    rates = torch.randint(0, 4, (200, 10), generator=generator) / 28
    labels = torch.randint(0, 10, (200,), generator=generator)
    expected = [
        sum(r_j > r[y] or (r_j == r[y] and j < y) for j, r_j in enumerate(r))
        for r, y in zip(rates.tolist(), labels.tolist(), strict=True)
    ]
    assert ranks(rates, labels).tolist() == expected


def test_what_is_not_a_number_never_counts_as_a_hit() -> None:
    rates = torch.full((3, 10), math.nan)
    rates[1, :9] = 0.0  # the label's own rate is a number, another's is not
    sums = Sums(CPU)
    sums.add(torch.tensor(0.0), rates, torch.tensor([0, 0, 9]))
    assert sums.totals.tolist() == [0, 0, 1, 3]  # the second is among the first five


def test_loss_is_the_mean_squared_distance_to_one_hot() -> None:
    rates = torch.tensor([[1.0, 0.5], [0.25, 0.0]], dtype=torch.bfloat16)
    loss = rate_loss(rates, torch.tensor([0, 1]))
    assert loss.dtype == torch.float32
    assert loss.item() == (0 + 0.25 + 0.0625 + 1) / 4


def test_sums_weight_batches_by_their_size() -> None:
    sums = Sums(CPU)
    rates = torch.eye(10)[:3]
    sums.add(torch.tensor(0.5), rates, torch.tensor([0, 1, 2]))
    sums.add(torch.tensor(1.0), rates[:1], torch.tensor([9]))
    loss, acc1, acc5 = sums.means()
    assert loss == (0.5 * 3 + 1.0) / 4
    assert (acc1, acc5) == (75, 75)


def test_a_first_step_that_overflows_leaves_no_trace() -> None:
    """torch's fused SGD would go on from a momentum that nobody has set."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    session = session_of(model, lr=0.01, amp=True, amp_dtype="float16")
    step = training_step(session, Sums(CPU))
    before, first = model[1].weight.clone(), (torch.arange(16),)
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
    selection = (torch.arange(16),)
    before = model[1].weight.clone()
    sums = Sums(CPU)
    evaluation_step(session, session.train, sums)(selection)
    assert torch.equal(model[1].weight, before)
    step = training_step(session, sums)
    for _ in range(20):
        step(selection)
    again = Sums(CPU)
    evaluation_step(session, session.train, again)(selection)
    assert again.means()[0] < sums.means()[0]
    assert sums.totals[3] == 16 * 21
    assert session.scaler.is_enabled() == (amp == "float16")
