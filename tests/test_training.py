"""The shared loop: learning, schedules, repeatability, divergence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rsnn_fmnist import cli, models
from rsnn_fmnist.config import Experiment
from rsnn_fmnist.session import amp_dtype, build_optimizer, build_scheduler

pytestmark = pytest.mark.usefixtures("small_synthetic")

TIMINGS = ("train_images_per_second", "test_images_per_second", "seconds")


def train(folder: Path, *flags: str) -> list[dict[str, Any]]:
    """Train on the small synthetic set -> the rows of metrics, timings left out."""
    arguments = ["--dataset", "synthetic", "--threads", "1", "--output-dir", str(folder)]
    assert cli.main([*arguments, "--device", "cpu", "--run-name", "run", *flags]) == 0
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


@pytest.mark.parametrize("model", models.MODELS)
@pytest.mark.parametrize(
    "flags", ["", "--amp", "--amp --amp-dtype float16", "--opt adam --lr 0.01"]
)
def test_every_model_learns_in_every_precision(tmp_path: Path, model: str, flags: str) -> None:
    rows = train(tmp_path, "--model", model, "--epochs", "4", "-b", "32", *flags.split())
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] < 0.2
    assert rows[-1]["test_acc1"] > 20  # chance is 10
    assert rows[-1]["test_acc5"] > rows[-1]["test_acc1"]


def test_same_seed_same_numbers_another_seed_others(tmp_path: Path) -> None:
    flags = ("--model", "feedback", "--epochs", "2", "-b", "64")
    first = train(tmp_path / "1", *flags)
    torch.rand(3)  # the state of the process does not matter
    assert train(tmp_path / "2", *flags) == first
    assert train(tmp_path / "3", *flags, "--seed", "7") != first


def test_workers_stream_the_same_batches(tmp_path: Path) -> None:
    flags = ("--model", "plain", "--epochs", "2", "-b", "64", "--no-normalize")
    assert train(tmp_path / "1", *flags, "-j", "2") == train(tmp_path / "2", *flags)


def test_held_out_pictures_choose_the_best_epoch(tmp_path: Path, capsys: Any) -> None:
    rows = train(tmp_path, "--model", "plain", "--epochs", "3", "-b", "32", "--val-size", "100")
    assert all("val_acc1" in row for row in rows)
    out = capsys.readouterr().out
    best = max(rows, key=lambda row: (row["val_acc1"], -row["epoch"]))
    assert (
        f"best on the held-out pictures: {best['test_acc1']:.2f} % at epoch {best['epoch']}" in out
    )
    assert "optimistic" not in out


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"lrs": "cosa", "epochs": 4}, [0.1, 0.0853553, 0.05, 0.0146447]),
        ({"lrs": "cosa", "epochs": 4, "cosa_tmax": 2}, [0.1, 0.05, 0.0, 0.05]),
        ({"lrs": "step", "step_size": 2, "step_gamma": 0.5, "epochs": 5}, [0.1, 0.1, 0.05, 0.05]),
        ({"lrs": "none"}, [0.1, 0.1, 0.1]),
    ],
)
def test_schedules(settings: dict[str, Any], rates: list[float]) -> None:
    experiment = Experiment(model="plain", **settings)
    model = models.build("plain")
    optimizer = build_optimizer(model, experiment)
    scheduler = build_scheduler(optimizer, experiment, 0)
    for epoch, rate in enumerate(rates):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=1e-7)
        late = build_optimizer(model, experiment)
        build_scheduler(late, experiment, epoch)
        assert late.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


def test_optimizers_are_the_experiments() -> None:
    model = models.build("plain")
    sgd = build_optimizer(model, Experiment(lr=0.5, momentum=0.25, weight_decay=0.125))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"]) == (0.5, 0.25)
    assert sgd.defaults["weight_decay"] == 0.125
    adam = build_optimizer(model, Experiment(opt="adam", lr=0.5, weight_decay=0.125))
    assert isinstance(adam, torch.optim.Adam)
    assert (adam.defaults["lr"], adam.defaults["weight_decay"]) == (0.5, 0.125)


def test_start_epoch_counts_epochs_and_the_schedule_from_there(tmp_path: Path) -> None:
    flags = ("--model", "plain", "--epochs", "4", "-b", "64", "--start-epoch", "2")
    rows = train(tmp_path, *flags)
    assert [row["epoch"] for row in rows] == [2, 3]
    assert rows[0]["lr"] == pytest.approx(0.05)


def test_amp_precision() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert amp_dtype(Experiment(), cuda) is None
    assert amp_dtype(Experiment(amp=True), cpu) is torch.bfloat16
    assert amp_dtype(Experiment(amp=True), cuda) is torch.float16
    assert amp_dtype(Experiment(amp=True, amp_dtype="bfloat16"), cuda) is torch.bfloat16


@pytest.mark.parametrize("broken", ["loss", "weights"])
def test_divergence_stops_the_run(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A loss that is not finite, and weights that are not behind silent neurons."""

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
    assert f"the {broken} became not finite in epoch 0" in captured.err
    assert "--lr" in captured.err
    assert not (tmp_path / "run" / "latest.pt").exists()


@pytest.mark.pictures
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "least"), [("plain", 60.0), ("feedback", 62.0), ("stateful-synapse", 68.0)]
)
def test_real_pictures_are_learnt(
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
