"""The registry, the three networks' names, counts and shapes, and models from a user's file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import SMALL, refused

from rsnn_fmnist import cli, models

PARAMETERS = {
    "plain": (1258, {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}),
    "feedback": (
        3338,
        {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "sn1.rc.weight", "sn1.rc.bias"},
    ),
    "stateful-synapse": (1259, {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "sy1.w"}),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    model = models.build(name)
    count, names = PARAMETERS[name]
    assert sum(p.numel() for p in model.parameters()) == count
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("name", PARAMETERS)
def test_rates_are_mean_spikes(name: str) -> None:
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
def test_detach_reset(detach_reset: str, recurrent: bool, others: bool) -> None:
    feedback = models.build("feedback", detach_reset=detach_reset)
    assert feedback.sn1.sub_module.detach_reset is recurrent
    assert feedback.sn2.detach_reset is others
    assert models.build("plain", detach_reset=detach_reset).sn1.detach_reset is others


def test_mistakes_with_the_registry() -> None:
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


@pytest.mark.parametrize("how", ["", "0", "'bye'"])
def test_a_models_file_that_exits(here: Path, capsys: Any, how: str) -> None:
    (here / "mine.py").write_text(f"import sys\nsys.exit({how})\n")
    line = refused(capsys, 1, "--model", "mine", "--models-file", "mine.py")
    assert "--models-file mine.py: SystemExit" in line


def test_a_models_file_with_dataclasses_and_a_neighbour(here: Path, capsys: Any) -> None:
    (here / "neighbor_of_mine.py").write_text("WIDTH = 3\n")
    (here / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from neighbor_of_mine import WIDTH\n@dataclass\nclass Options:\n    width: int = WIDTH\n"
    )
    line = refused(capsys, 2, "--model", "mine", "--models-file", "mine.py")
    assert "--model mine: not registered" in line  # the file itself is fine


def test_a_models_file_that_fails(here: Path, capsys: Any) -> None:
    (here / "mine.py").write_text("import nothing_of_that_name\n")
    line = refused(capsys, 1, "--model", "mine", "--models-file", "mine.py")
    assert "--models-file mine.py: ModuleNotFoundError" in line


MINE = """
import torch
from rsnn_fmnist.models import register

@register("{name}")
def mine(width: int = 10):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(28 * 28, width))
"""


@pytest.mark.usefixtures("small_synthetic")
def test_a_models_file_trains_by_the_same_loop(here: Path, capsys: Any) -> None:
    name = "mine-that-works"
    (here / "mine.py").write_text(MINE.format(name=name))
    command = ["--models-file", "mine.py", "--model", name, *SMALL, "--epochs", "2", "--lr", "0.01"]
    try:
        assert cli.main(command) == 0
        assert "mine-that-works, 7,850 parameters" in capsys.readouterr().out
        models.MODELS.pop(name)
        line = refused(capsys, 2, *command, "--hidden", "64", "--quiet")
        assert "--hidden 64: the model mine-that-works has no such option" in line
        models.MODELS.pop(name)
        (run,) = (here / "runs").iterdir()
        line = refused(capsys, 2, "--resume", str(run))
        assert "a run of the model mine-that-works" in line
        assert line.endswith("name its file with --models-file (see --help)")
    finally:
        models.MODELS.pop(name, None)


@pytest.mark.usefixtures("small_synthetic")
def test_a_model_of_the_wrong_shape(here: Path, capsys: Any) -> None:
    name = "mine-too-narrow"
    (here / "mine.py").write_text(MINE.format(name=name).replace("= 10", "= 9"))
    try:
        line = refused(capsys, 1, "--models-file", "mine.py", "--model", name, *SMALL)
        assert "returns [2, 9]" in line
        assert not (here / "runs").exists()
    finally:
        models.MODELS.pop(name, None)
