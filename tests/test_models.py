"""The registry, the three networks' names, counts and shapes, and models from a user's file."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import SMALL, command, final, refused, stop
from torture import same

from rsnn_fmnist import cli, models
from rsnn_fmnist.errors import RunError
from rsnn_fmnist.report import __main__ as report
from rsnn_fmnist.storage import atomic

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
COMMAND = ["--models-file", "mine.py", "--model", "mine", *SMALL, "--lr", "0.01"]


@pytest.mark.usefixtures("small_synthetic")
def test_a_models_file_trains_by_the_same_loop(here: Path, capsys: Any) -> None:
    (here / "mine.py").write_text(MINE.format(name="mine"))
    assert cli.main([*COMMAND, "--epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert "model    mine, 7,850 parameters, seed 2020, from mine.py\n" in out
    line = refused(capsys, 2, *COMMAND, "--hidden", "64", "--quiet")
    assert "--hidden 64: the model mine has no such option" in line
    line = refused(capsys, 2, "--model", "mine", *SMALL)  # of a program's second call, without file
    assert "--model mine: not registered" in line


@pytest.fixture
def stopped(here: Path, small_synthetic: None, capsys: Any) -> Path:
    """The directory of a run of a user's model that stopped in its second epoch."""
    (here / "mine.py").write_text(MINE.format(name="mine"))
    assert stop([*COMMAND, "--epochs", "2"], after=16) == 130
    capsys.readouterr()
    (run,) = (here / "runs").iterdir()
    return run


CHANGED = MINE.format(name="mine").replace("width))", "width, bias=True))")


def test_a_run_keeps_its_models_file(stopped: Path, here: Path, capsys: Any) -> None:
    """Resumed, tested and inspected by its copy, whatever has become of the original."""
    assert (stopped / "models.py").read_bytes() == (here / "mine.py").read_bytes()
    (here / "mine.py").write_text(CHANGED)
    for place in (stopped, stopped / "latest.pt"):
        assert cli.main(["--resume", str(place), "--test-only", "--device", "cpu"]) == 0
    assert cli.main([*COMMAND[2:], "--resume", "auto", "--epochs", "2"]) == 0
    assert f"from {Path('runs') / stopped.name / 'models.py'}\n" in capsys.readouterr().out
    rows = (stopped / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2
    pytest.importorskip("matplotlib")
    pytest.importorskip("scipy")
    inspecting = ["--inspect", str(stopped), "--out", str(here / "report")]
    assert report.main([str(stopped), *inspecting]) == 0
    printed = capsys.readouterr()
    assert "runs/*/models.py" in printed.err
    assert f"running {stopped / 'models.py'}" in printed.err
    assert "not registered" not in printed.err
    assert "7,850" in printed.out


def test_another_models_file_is_refused_by_name(stopped: Path, here: Path, capsys: Any) -> None:
    original = (here / "mine.py").read_bytes()
    (here / "mine.py").write_text(CHANGED)
    for mode in ([], ["--test-only"]):
        words = ["--models-file", "mine.py", "--resume", str(stopped), "--device", "cpu", *mode]
        line = refused(capsys, 2, *words)
        assert f"--models-file mine.py: not the file that the run in {stopped} was" in line
        assert f"use the run's own copy, {stopped / 'models.py'}" in line
    (stopped / "models.py").write_text(f"open({str(here / 'ran')!r}, 'w')\n" + CHANGED)
    line = refused(capsys, 2, "--resume", str(stopped))
    assert "name the original with --models-file" in line
    assert not (here / "ran").exists()
    (stopped / "models.py").unlink()
    line = refused(capsys, 2, "--resume", str(stopped))
    assert "name its file with --models-file" in line
    (here / "mine.py").write_bytes(original)
    words = ["--models-file", "mine.py", "--resume", str(stopped), "--device", "cpu"]
    assert cli.main(words) == 0


@pytest.mark.usefixtures("small_synthetic")
def test_a_file_beside_a_run_that_was_trained_without_is_not_run(here: Path, capsys: Any) -> None:
    assert cli.main(["--model", "plain", *SMALL, "--epochs", "1", "--run-name", "run"]) == 0
    (here / "runs" / "run" / "models.py").write_text("1 / 0\n")
    assert cli.main(["--resume", "runs/run", "--test-only", "--device", "cpu"]) == 0


@pytest.mark.usefixtures("small_synthetic")
def test_what_a_models_file_imports(here: Path, capsys: Any) -> None:
    """Is read again by a second call, and is not copied."""
    (here / "width_of_mine.py").write_text("WIDTH = 10\n")
    text = MINE.format(name="mine").replace("width))", "WIDTH))")
    (here / "mine.py").write_text(f"from width_of_mine import WIDTH\n{text}")
    assert cli.main([*COMMAND, "--epochs", "1", "--run-name", "run"]) == 0
    capsys.readouterr()
    line = refused(capsys, 1, "--resume", "runs/run", "--epochs", "2")
    assert "this is the run's own copy" in line
    assert "name the original with --models-file" in line
    (here / "width_of_mine.py").write_text("WIDTH = 3333\n")
    assert "returns [2, 3333]" in refused(capsys, 1, *COMMAND, "--run-name", "other")


def test_a_checkpoint_that_names_no_models_file(stopped: Path, here: Path, capsys: Any) -> None:
    content = torch.load(stopped / "latest.pt", weights_only=True)
    content.pop("models_file")
    atomic.save(stopped / "latest.pt", content)
    words = ["--resume", str(stopped), "--device", "cpu"]
    assert "name its file with --models-file" in refused(capsys, 2, *words)
    assert cli.main([*words, "--models-file", "mine.py"]) == 0
    assert "does not say which models file" in capsys.readouterr().err


def test_a_neighbour_does_not_hide_the_standard_library(here: Path, capsys: Any) -> None:
    (here / "colorsys.py").write_text("raise ImportError('not the standard library')\n")
    (here / "mine.py").write_text("import colorsys\n")
    line = refused(capsys, 2, "--model", "mine", "--models-file", "mine.py")
    assert "--model mine: not registered" in line


def test_a_file_changed_within_a_second_runs_as_it_is(here: Path) -> None:
    """Python's own cache of compiled files knows them by size and second."""
    with models.temporary_models():
        for word in ("first", "other"):
            (here / "mine.py").write_text(MINE.format(name=f"mine-{word}"))
            os.utime(here / "mine.py", (1, 1))
            models.import_models(Path("mine.py"))
            assert f"mine-{word}" in models.MODELS
        assert "mine-first" not in models.MODELS
    assert "mine-other" not in models.MODELS


ODD = """
import torch
from rsnn_fmnist.models import register

class Odd(torch.nn.Sequential):
    def __init__(self, *layers):
        super().__init__(*layers)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return super().forward(x)

    def get_extra_state(self):
        return {state}

    def set_extra_state(self, state):
        self.calls = state["calls"]

@register("mine")
def mine():
    return Odd(torch.nn.Flatten(), torch.nn.LazyLinear(16), torch.nn.LazyLinear(10))
"""


@pytest.mark.usefixtures("small_synthetic")
def test_lazy_layers_and_a_state_that_is_no_tensor(here: Path, capsys: Any) -> None:
    (here / "mine.py").write_text(ODD.replace("{state}", "dict(calls=self.calls)"))
    flags = f"--models-file {here / 'mine.py'} --model mine --lr 0.01"
    assert cli.main(command(here / "whole", flags)) == 0
    assert stop(command(here / "stopped", flags), after=17) == 130
    assert cli.main(command(here / "stopped", f"{flags} --resume auto")) == 0
    assert same(final(here / "stopped"), final(here / "whole"))
    kept = final(here / "whole")["files"]["latest.pt"]["model"]
    assert kept["_extra_state"] == {"calls": 30}
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    assert report.main([str(here / "whole"), "--out", str(here / "report")]) == 0
    assert "12,730" in capsys.readouterr().out
    assert kept["1.weight"].shape == (16, 784)


@pytest.mark.usefixtures("small_synthetic")
@pytest.mark.parametrize("mode", [[], ["--prepare-only"]])
def test_a_state_that_a_checkpoint_cannot_hold(here: Path, capsys: Any, mode: list[str]) -> None:
    """Refused before anything is trained, and by what is run before many runs."""
    (here / "mine.py").write_text(ODD.replace("{state}", "object()"))
    line = refused(capsys, 1, *COMMAND, *mode)
    assert "the model mine has a state that a checkpoint cannot hold" in line
    only_get = ODD.replace("{state}", "1.5").replace("def set_extra_state", "def unused")
    (here / "mine.py").write_text(only_get)
    line = refused(capsys, 1, *COMMAND, *mode)
    assert "the model mine has a state that a checkpoint cannot hold" in line
    line = refused(capsys, 2, *COMMAND, "--hidden", "64", *mode)
    assert "--hidden 64: the model mine has no such option" in line


@pytest.mark.usefixtures("small_synthetic")
@pytest.mark.parametrize("mode", [[], ["--prepare-only"]])
def test_a_backend_that_a_layer_cannot_have(here: Path, capsys: Any, mode: list[str]) -> None:
    (here / "mine.py").write_text(
        """
import torch
from rsnn_fmnist.models import ColumnReader, register
from rsnn_fmnist.spiking import IF, ElementWiseRecurrentContainer

@register("mine")
def mine():
    return ColumnReader(torch.nn.Linear(28, 10), ElementWiseRecurrentContainer(IF(), torch.add))
"""
    )
    line = refused(capsys, 1, *COMMAND, "--backend", "numba", *mode)
    assert "--backend numba: 1: " in line
    assert cli.main([*COMMAND, "--epochs", "1", "--quiet", *mode]) == 0


def test_a_column_reader_advances_by_a_column() -> None:
    torch.manual_seed(0)
    model, x = models.build("feedback"), torch.rand(5, 28, 28) * 4
    state, spikes = None, []
    for t in range(28):
        s, state = model.step(x[:, :, t], state)
        spikes.append(s)
    assert torch.stack(spikes).any()
    assert torch.equal(torch.stack(spikes).mean(0), model(x))


def test_a_models_file_may_be_given_again(here: Path) -> None:
    """In a notebook: edited, moved, failing half-way. Within one file a name is taken once."""
    (here / "copy").mkdir()
    file = here / "mine.py"
    with models.temporary_models():
        for width in (10, 11):
            file.write_text(MINE.format(name="mine").replace("= 10", f"= {width}"))
            models.import_models(file)
            assert models.build("mine")[1].out_features == width
        (here / "copy" / "mine.py").write_text(file.read_text())
        models.import_models(here / "copy" / "mine.py")
        file.write_text(MINE.format(name="mine") + "1 / 0")
        for _ in range(2):
            with pytest.raises(RunError, match="ZeroDivisionError"):
                models.import_models(file)
        for name, text in (("twice", MINE + MINE), ("plain", MINE)):
            file.write_text(text.replace("{name}", name))
            with pytest.raises(RunError, match="registered already"):
                models.import_models(file)
    assert list(models.MODELS) == list(PARAMETERS)


@pytest.mark.usefixtures("small_synthetic")
def test_a_model_of_the_wrong_shape(here: Path, capsys: Any) -> None:
    (here / "mine.py").write_text(MINE.format(name="mine").replace("= 10", "= 9"))
    assert "returns [2, 9]" in refused(capsys, 1, *COMMAND)
    assert not (here / "runs").exists()
