"""Surrogates: spikes forward, slopes backward."""

import math

import pytest
import torch

from rsnn_fmnist.spiking import SURROGATES, ATan, Surrogate

# The smooth function whose derivative each slope is.
PRIMITIVES = {
    "atan": lambda u: torch.atan(math.pi / 2 * 2 * u) / math.pi + 0.5,
    "sigmoid": lambda u: 1 / (1 + torch.exp(-4 * u)),
    "erf": lambda u: torch.erfc(-2 * u) / 2,
    "soft-sign": lambda u: (2 * u / (1 + (2 * u).abs()) + 1) / 2,
    "piecewise-quadratic": lambda u: torch.where(
        u.abs() > 1, (u > 0).double(), -0.5 * u * u.abs() + u + 0.5
    ),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_slope_is_the_derivative_of_the_smooth_function(name: str) -> None:
    u = torch.linspace(-3, 3, 602, dtype=torch.float64).requires_grad_()
    (derivative,) = torch.autograd.grad(PRIMITIVES[name](u).sum(), u)
    torch.testing.assert_close(SURROGATES[name]().slope(u), derivative, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SURROGATES)
def test_fires_at_the_threshold_and_has_the_slope_as_its_gradient(name: str) -> None:
    surrogate = SURROGATES[name]()
    u = torch.tensor([-1.0, -1e-7, 0.0, 1e-7, 2.0], requires_grad=True)
    s = surrogate(u)
    assert s.tolist() == [0, 0, 1, 1, 1]
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    s.backward(upstream)
    assert torch.equal(u.grad, upstream * surrogate.slope(u.detach()))


def test_works_under_vmap_and_grad() -> None:
    u = torch.tensor([-0.5, 0.25])
    slopes = torch.func.vmap(torch.func.grad(ATan()))(u)
    assert torch.equal(slopes, ATan().slope(u))


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha is"):
        ATan(alpha)


def test_surrogates_are_values() -> None:
    assert ATan(2.0) == ATan()
    assert len({s().name for s in SURROGATES.values()}) == 5
    assert all(isinstance(s(), Surrogate) for s in SURROGATES.values())
