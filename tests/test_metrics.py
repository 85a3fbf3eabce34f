"""The loss, the ranks behind the accuracies, the sums of an epoch, and the gradient norm."""

import math

import pytest
import torch
from torch import nn

from rsnn_fmnist.metrics import Sums, gradient_norm, ranks, rate_loss

CPU = torch.device("cpu")


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


def test_a_rate_that_is_nan_is_never_a_hit() -> None:
    rates = torch.full((3, 10), math.nan)
    rates[1, :9] = 0.0  # the label's rate is 0, class 9's is NaN
    sums = Sums(CPU)
    sums.add(torch.tensor(0.0), rates, torch.tensor([0, 0, 9]))
    assert sums.totals.tolist() == [0, 0, 1, 3]  # the label of the second is second


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
    sums.reset()
    assert sums.totals.tolist() == [0, 0, 0, 0]


def test_the_gradient_norm_is_over_all_parameters() -> None:
    model = nn.Linear(2, 1)
    assert gradient_norm(model) is None
    model.weight.grad, model.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    assert gradient_norm(model) == pytest.approx(5)
