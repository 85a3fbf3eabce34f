"""What TensorBoard shows of the network besides the metrics."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.event_files import figures, hparams, points
from helpers.runs import command, final
from torture import same

from rsnn_fmnist import cli, run
from rsnn_fmnist.config import Experiment, Machine
from rsnn_fmnist.metrics import ranks
from rsnn_fmnist.session import Session, evaluating
from rsnn_fmnist.spiking import record
from rsnn_fmnist.storage import checkpoint
from rsnn_fmnist.tracking import diagnostics
from rsnn_fmnist.tracking.diagnostics import confusion
from rsnn_fmnist.training import loop

pytestmark = pytest.mark.usefixtures("small_synthetic")

METRICS = {
    "train_loss", "train_acc1", "train_acc5", "test_loss", "test_acc1", "test_acc5", "lr",
    "train_images_per_second", "accuracy/train", "accuracy/test", "loss/train", "loss/test",
}  # fmt: skip
VALIDATION = {"val_loss", "val_acc1", "val_acc5", "accuracy/val", "loss/val"}
UNITS = {
    f"units/{what}/{name}"
    for what in ("firing_rate", "never_fire", "always_fire")
    for name in ("sn1", "sn2")
}
ARGUMENTS = "--dataset synthetic --device cpu --threads 1 -b 64 --tb --run-name run".split()


def train(folder: Path, flags: str) -> Path:
    """Train on the small synthetic set -> the run's directory."""
    assert cli.main([*ARGUMENTS, *flags.split(), "--output-dir", str(folder)]) == 0
    return folder / "run"


def reopen(directory: Path) -> Session:
    """A session with the weights of the run's last checkpoint."""
    content = checkpoint.load(directory / "latest.pt")
    machine = Machine(device="cpu")
    experiment = Experiment(**content["experiment"])
    pictures = run.load_pictures(experiment, machine)
    session = run.build_session(experiment, machine, torch.device("cpu"), pictures)
    session.model.load_state_dict(content["model"])
    return session


@pytest.mark.parametrize(
    ("flags", "more"),
    [
        ("--model plain", set()),
        ("--model feedback --val-size 20", VALIDATION),
        ("--model stateful-synapse", {"units/tau/sy1"}),
    ],
)
def test_the_tags_of_a_run(tmp_path: Path, flags: str, more: set[str]) -> None:
    events = train(tmp_path, f"{flags} --epochs 2") / "tb"
    found = points(events)
    assert set(found) == METRICS | UNITS | {"updates/gradient_norm"} | more
    for drawn in found.values():
        assert [epoch for epoch, _ in drawn] == [0, 1]
    for name in ("sn1", "sn2"):
        assert all(0 < rate < 1 for _, rate in found[f"units/firing_rate/{name}"])
        assert all(0 <= share <= 1 for _, share in found[f"units/never_fire/{name}"])
    assert all(norm > 0 for _, norm in found["updates/gradient_norm"])
    assert set(hparams(events)) == {"experiment", "session_start_info", "session_end_info"}
    assert figures(events) == {}


def test_the_scalars_describe_the_test_pictures(tmp_path: Path) -> None:
    """They are measured again, with the checkpoint that the run leaves."""
    directory = train(tmp_path, "--model stateful-synapse --epochs 1")
    session = reopen(directory)
    ((x, _),) = session.test.batches([torch.arange(200)])
    with torch.no_grad(), record(session.model) as recording:
        session.model(x)
    found = {tag: value for tag, ((_, value),) in points(directory / "tb").items()}
    for name, layer in recording.items():
        counts = layer.s.sum((0, 1))
        always = (counts == layer.s[..., 0].numel()).float().mean()
        assert found[f"units/firing_rate/{name}"] == pytest.approx(layer.s.mean().item())
        assert found[f"units/never_fire/{name}"] == pytest.approx((counts == 0).float().mean())
        assert found[f"units/always_fire/{name}"] == pytest.approx(always)
    content = checkpoint.load(directory / "latest.pt")
    tau = 1 + torch.exp(-content["model"]["sy1.w"]).item()
    assert found["units/tau/sy1"] == pytest.approx(tau)
    assert found["updates/gradient_norm"] == pytest.approx(content["gradient_norm"])


def test_figures_and_histograms(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    directory = train(tmp_path, "--model stateful-synapse --epochs 1 --tb-pictures")
    drawn = figures(directory / "tb")
    weights = {f"weights/{name}" for name in reopen(directory).model.state_dict()}
    assert set(drawn) == weights | {
        "units/potential/sn1", "units/potential/sn2",
        "views/confusion", "views/picture_0", "views/picture_1", "views/picture_2",
        "views/picture_4",
    }  # fmt: skip
    for ((epoch, _),) in drawn.values():
        assert epoch == 0


@pytest.mark.parametrize("part", ["figures", "scalars", "evaluation"])
def test_what_fails_beside_a_step_costs_itself_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, part: str
) -> None:
    """Figures end, events end, or the run ends; it is saved, and resumes as if nothing had been."""

    def fail(*_: Any) -> Any:
        raise ValueError("cannot be drawn\nat all")

    assert cli.main(command(tmp_path / "whole", "--tb")) == 0
    flags = "--tb-pictures 1"
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        if part == "evaluation":
            patch.setattr(loop, "evaluate", fail)
        else:
            patch.setattr(diagnostics.Diagnostics, part, fail)
        code = cli.main(command(tmp_path / "failing", flags))
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: cannot be drawn" in line
    assert code == (1 if part == "evaluation" else 0)
    assert cli.main(command(tmp_path / "failing", "--tb --resume auto")) == 0
    whole, failing = final(tmp_path / "whole"), final(tmp_path / "failing")
    assert same(failing["rows"], whole["rows"])
    assert same(failing["files"]["latest.pt"]["model"], whole["files"]["latest.pt"]["model"])


def test_the_confusion_matrix_counts_every_test_picture(tmp_path: Path) -> None:
    session = reopen(train(tmp_path, "--model plain --epochs 1"))
    counts = confusion(session)
    ((x, labels),) = session.test.batches([torch.arange(200)])
    with evaluating(session):
        right = (ranks(session.model(x), labels) == 0).sum()
    assert counts.sum(1).tolist() == labels.bincount(minlength=10).tolist()
    assert counts.trace() == right
