"""The training loop: learning, repeatability, streaming, divergence."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import rows
from helpers.sessions import small_progress, small_session
from torch import nn
from torture import timeless

from rsnn_fmnist import cli, models
from rsnn_fmnist.interrupt import Interrupt
from rsnn_fmnist.training.loop import evaluate, finish_epoch
from rsnn_fmnist.training.step import Evaluation

pytestmark = pytest.mark.usefixtures("small_synthetic")


def train(folder: Path, *flags: str) -> list[dict[str, Any]]:
    """Train on the small synthetic set -> the rows of metrics, timings left out."""
    arguments = ["--dataset", "synthetic", "--threads", "1", "--output-dir", str(folder)]
    assert cli.main([*arguments, "--device", "cpu", "--run-name", "run", *flags]) == 0
    return timeless(rows(folder / "run"))


@pytest.mark.parametrize("model", models.MODELS)
@pytest.mark.parametrize(
    "flags", ["", "--amp", "--amp --amp-dtype float16", "--opt adam --lr 0.01"]
)
def test_every_model_learns_in_every_precision(tmp_path: Path, model: str, flags: str) -> None:
    found = train(tmp_path, "--model", model, "--epochs", "4", "-b", "32", *flags.split())
    assert [row["epoch"] for row in found] == [0, 1, 2, 3]
    assert found[-1]["train_loss"] < found[0]["train_loss"] < 0.2
    assert found[-1]["test_acc1"] > 20  # chance is 10
    assert found[-1]["test_acc5"] > found[-1]["test_acc1"]


def test_the_seed_determines_the_numbers(tmp_path: Path) -> None:
    flags = ("--model", "feedback", "--epochs", "2", "-b", "64")
    first = train(tmp_path / "1", *flags)
    torch.rand(3)  # torch's random state before the run has no effect
    assert train(tmp_path / "2", *flags) == first
    assert train(tmp_path / "3", *flags, "--seed", "7") != first


@pytest.mark.slow
def test_workers_stream_the_same_batches(tmp_path: Path) -> None:
    flags = ("--model", "plain", "--epochs", "2", "-b", "64", "--no-normalize")
    assert train(tmp_path / "1", *flags, "-j", "2") == train(tmp_path / "2", *flags)


def test_held_out_pictures_choose_the_best_epoch(tmp_path: Path, capsys: Any) -> None:
    found = train(tmp_path, "--model", "plain", "--epochs", "3", "-b", "32", "--val-size", "100")
    assert all("val_acc1" in row for row in found)
    out = capsys.readouterr().out
    best = max(found, key=lambda row: (row["val_acc1"], -row["epoch"]))
    assert (
        f"test accuracy at the epoch best on the held-out pictures: {best['test_acc1']:.2f} % "
        f"at epoch {best['epoch']}" in out
    )
    assert "optimistic" not in out


def test_an_evaluation_is_repeated_from_zero() -> None:
    session = small_session()
    evaluation = Evaluation(session, session.test)
    with torch.no_grad():
        session.model.get_parameter("fc2.bias").fill_(20.0)  # every output neuron fires
    first, _ = evaluate(session, evaluation, Interrupt())
    assert first.totals[3] == 8
    assert first.means()[0] == pytest.approx(0.9)
    with torch.no_grad():
        session.model.get_parameter("fc2.bias").fill_(-20.0)  # none fires
    second, _ = evaluate(session, evaluation, Interrupt())
    assert second.totals[3] == 8
    assert second.means()[0] == pytest.approx(0.1)


def test_the_end_of_an_epoch() -> None:
    session = small_session()
    progress = small_progress(session)
    before = session.optimizer.param_groups[0]["lr"]
    for epoch, accuracy, best in ((1, 12.5, 0), (2, 13.0, 2)):
        weight = session.model.get_parameter("fc1.weight")
        with torch.no_grad():
            weight.fill_(epoch)
        finish_epoch(session, progress, {"epoch": epoch, "test_acc1": accuracy, "seconds": 1.0})
        assert progress.best is not None
        assert progress.best.epoch == best
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()  # as training changes them later
    assert torch.equal(progress.best.model["fc1.weight"], kept)
    assert (progress.epoch, progress.batch, progress.train_seconds) == (3, 0, 0.0)
    assert progress.sums.totals.tolist() == [0, 0, 0, 0]
    assert [row["epoch"] for row in progress.rows] == [0, 1, 2]
    assert session.optimizer.param_groups[0]["lr"] < before


def test_start_epoch_counts_epochs_and_the_schedule_from_there(tmp_path: Path) -> None:
    flags = ("--model", "plain", "--epochs", "4", "-b", "64", "--start-epoch", "2")
    found = train(tmp_path, *flags)
    assert [row["epoch"] for row in found] == [2, 3]
    assert found[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("broken", ["loss", "weights"])
def test_divergence_stops_the_run(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The loss is not finite, or only the weights are: silent neurons hide them from the loss."""

    class Diverging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(28, 10)
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += self.training
            scores = self.fc(x.mean(2))
            if self.calls > 3 and broken == "loss":
                return scores / 0
            if self.calls > 3 and self.training:
                self.fc.weight.data.fill_(float("nan"))
                return torch.nan_to_num(scores) * 0
            return scores

    monkeypatch.setitem(models.MODELS, "diverging", Diverging)
    arguments = "--model diverging --dataset synthetic --threads 1 --device cpu -b 64"
    code = cli.main([*arguments.split(), "--output-dir", str(tmp_path), "--run-name", "run"])
    captured = capsys.readouterr()
    assert code == 1
    verb = "is" if broken == "loss" else "are"
    assert f"the {broken} {verb} no longer finite (NaN or inf) in epoch 0" in captured.err
    assert "--lr" in captured.err
    assert not (tmp_path / "run" / "latest.pt").exists()


@pytest.mark.pictures
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "least"), [("plain", 60.0), ("feedback", 62.0), ("stateful-synapse", 68.0)]
)
def test_real_pictures_are_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures_root: Path, model: str, least: float
) -> None:
    """Two default epochs: the median of three seeds, and under --amp within 3 points of it."""
    monkeypatch.undo()

    def median(*flags: str) -> float:
        accuracies = []
        for seed in ("2020", "2021", "2022"):
            folder = tmp_path / "_".join((seed, *flags))
            arguments = ["--dataset", "fashion-mnist", "--data-path", str(pictures_root)]
            arguments += ["--model", model, "--epochs", "2", "--seed", seed, *flags]
            accuracies.append(train(folder, *arguments)[-1]["test_acc1"])
        return sorted(accuracies)[1]

    full = median()
    assert full >= least
    assert abs(median("--amp") - full) <= 3
