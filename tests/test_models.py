"""The registry and the three networks' contract: names, counts, shapes."""

import pytest
import torch

from rsnn_fmnist import models

PARAMETERS = {
    "plain": (1258, {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}),
    "feedback": (
        3338,
        {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "sn1.rc.weight", "sn1.rc.bias"},
    ),
    "stateful-synapse": (1259, {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "sy1.w"}),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_contracts(name: str) -> None:
    model = models.build(name)
    count, names = PARAMETERS[name]
    assert sum(p.numel() for p in model.parameters()) == count
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("name", PARAMETERS)
def test_rates_of_pictures(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, hidden=64)
    x = torch.rand(5, 28, 28) * 4
    rates = model(x)
    assert rates.shape == (5, 10)
    spikes = rates * 28
    torch.testing.assert_close(spikes, spikes.round())
    assert 0 < rates.mean() < 1
    assert torch.equal(model(x.unsqueeze(1)), rates)


def test_pictures_are_read_by_columns_left_to_right() -> None:
    """Changing the last column can change only spikes of the last step."""
    torch.manual_seed(0)
    model = models.build("plain")
    x = torch.rand(64, 28, 28) * 4
    changed = x.clone()
    changed[:, :, -1] = -100
    with torch.no_grad():
        difference = (model(x) - model(changed)) * 28
        assert difference.max().item() == pytest.approx(1)
        assert not torch.equal(model(x), model(x.transpose(1, 2)))


@pytest.mark.parametrize(
    ("detach_reset", "recurrent", "others"),
    [("all", True, True), ("recurrent", True, False), ("none", False, False)],
)
def test_detach_reset_is_set_where_it_says(
    detach_reset: str, recurrent: bool, others: bool
) -> None:
    feedback = models.build("feedback", detach_reset=detach_reset)
    assert feedback.sn1.sub_module.detach_reset is recurrent
    assert feedback.sn2.detach_reset is others
    assert models.build("plain", detach_reset=detach_reset).sn1.detach_reset is others


def test_registry_names_what_it_does_not_know() -> None:
    with pytest.raises(KeyError, match="registered: plain, feedback, stateful-synapse"):
        models.build("plane")
    with pytest.raises(TypeError, match="hiden"):
        models.build("plain", hiden=3)
    with pytest.raises(ValueError, match="registered already"):
        models.register("plain")(models.plain)
    assert models.options("plain") == {"hidden", "surrogate", "detach_reset"}


def test_amp_rates_are_exact_multiples_in_float32() -> None:
    torch.manual_seed(0)
    model = models.build("feedback")
    with torch.autocast("cpu", torch.bfloat16):
        rates = model(torch.rand(5, 28, 28) * 4)
    assert rates.dtype == torch.float32
    assert torch.equal(rates, (rates * 28).round() / 28)
