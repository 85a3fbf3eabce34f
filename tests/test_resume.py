"""A run that is stopped and resumed ends with the same bits as one that never stops."""

import importlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint import same
from test_tracking import events, hparams, points

from rsnn_fmnist import cli, models
from rsnn_fmnist.interrupt import Interrupt, InterruptedRunError
from rsnn_fmnist.storage import checkpoint

pytestmark = pytest.mark.usefixtures("small_synthetic")

TIMINGS = {"train_images_per_second", "test_images_per_second", "seconds", "train_seconds"}
run_module = importlib.import_module("rsnn_fmnist.run")


class StopAfter(Interrupt):
    """A signal that comes at the n-th look, be it in training or in evaluation."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def check(self) -> None:
        self.looks -= 1
        if self.looks == 0:
            raise InterruptedRunError(signal.SIGINT)


def command(folder: Path, flags: str) -> list[str]:
    basis = ["--model", "plain", "--dataset", "synthetic", "--device", "cpu", "--threads", "1"]
    basis += ["-b", "64", "--epochs", "3", "--output-dir", str(folder), "--run-name", "run"]
    return [*basis, *flags.split()]


def final(folder: Path) -> Any:
    """Everything that is the run's result, timings left out."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k not in TIMINGS}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    run = folder / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tags = points(run / "tb") if (run / "tb").is_dir() else {}
    scalars = {tag: found for tag, found in tags.items() if tag not in TIMINGS}
    files = {name: checkpoint.load(run / name) for name in ("latest.pt", "best.pt")}
    return timeless({"files": files, "rows": rows, "scalars": scalars})


def figures(folder: Path) -> dict[str, list[tuple[int, bytes]]]:
    """The images and histograms in a folder of events: tag -> (epoch, bytes)."""
    found: dict[str, list[tuple[int, bytes]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.tag.startswith(("picture/", "confusion", "weight/", "potential/")):
                drawn = found.setdefault(value.tag, [])
                drawn.append((event.step, value.SerializeToString(deterministic=True)))
    return found


FLAGS = [
    "--tb",
    "--model feedback --opt adam --lr 0.01 --lrs step --step-size 1",
    "--model stateful-synapse --amp --lrs none",
    "--amp --amp-dtype float16 --val-size 100",
    "--model feedback --backend torch --weight-decay 0.001 --cosa-tmax 2 --tb",
]


@pytest.mark.parametrize("flags", FLAGS)
def test_stopped_at_any_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, flags: str
) -> None:
    """Stops after 1, 7, 3 and 12 looks: in the first batch, in training, in an evaluation."""
    assert cli.main(command(tmp_path / "whole", flags)) == 0
    resume = f"{flags} --resume auto"
    for looks in (1, 7, 3, 12):
        monkeypatch.setattr(run_module, "Interrupt", lambda looks=looks: StopAfter(looks))
        assert cli.main(command(tmp_path / "stopped", resume)) == 128 + signal.SIGINT
        assert "stopped by SIGINT" in capsys.readouterr().out
    monkeypatch.setattr(run_module, "Interrupt", Interrupt)
    assert cli.main(command(tmp_path / "stopped", resume)) == 0
    assert same(final(tmp_path / "stopped"), final(tmp_path / "whole"))


def test_figures_are_drawn_once_and_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of epochs 1 and 2 (every second one, and the last); stopped in training and in evaluation."""
    pytest.importorskip("matplotlib")
    flags = "--model stateful-synapse --tb-pictures 2"
    assert cli.main(command(tmp_path / "whole", flags)) == 0
    for looks in (15, 8, 6, 4):
        monkeypatch.setattr(run_module, "Interrupt", lambda looks=looks: StopAfter(looks))
        stopped = command(tmp_path / "stopped", f"{flags} --resume auto")
        assert cli.main(stopped) == 128 + signal.SIGINT
    monkeypatch.setattr(run_module, "Interrupt", Interrupt)
    assert cli.main(command(tmp_path / "stopped", f"{flags} --resume auto")) == 0
    assert same(final(tmp_path / "stopped"), final(tmp_path / "whole"))
    whole, mended = (figures(tmp_path / name / "run" / "tb") for name in ("whole", "stopped"))
    assert whole == mended
    assert {"confusion", "picture/0", "picture/4", "weight/sy1.w", "potential/sn1"} <= set(whole)
    assert all([epoch for epoch, _ in drawn] == [1, 2] for drawn in whole.values())
    assert len(hparams(tmp_path / "stopped" / "run" / "tb")) == 3


@pytest.mark.parametrize("flags", ["", "--tb", "--tb-pictures 1"])
def test_looking_inside_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    """Of a model that draws random numbers even in an evaluation."""
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(models.MODELS, "noisy", lambda: Noisy(always=True))
    plain = "--model noisy --lr 0.01"
    assert cli.main(command(tmp_path / "plain", plain)) == 0
    assert cli.main(command(tmp_path / "inside", f"{plain} {flags}")) == 0
    one, other = final(tmp_path / "plain"), final(tmp_path / "inside")
    assert same(one["files"], other["files"])
    assert same(one["rows"], other["rows"])


@pytest.mark.parametrize("batches", [9, 10, 11, 12, 20, 21, 22])
def test_stopped_around_the_end_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    """Ten batches an epoch, one look in its evaluation."""
    assert cli.main(command(tmp_path / "whole", "--tb")) == 0
    monkeypatch.setattr(run_module, "Interrupt", lambda: StopAfter(batches))
    assert cli.main(command(tmp_path / "stopped", "--tb")) == 128 + signal.SIGINT
    monkeypatch.setattr(run_module, "Interrupt", Interrupt)
    directory = str(tmp_path / "stopped" / "run")
    assert cli.main(["--resume", directory, "--device", "cpu", "--threads", "1", "--tb"]) == 0
    assert same(final(tmp_path / "stopped"), final(tmp_path / "whole"))


class Noisy(torch.nn.Module):
    """A model that draws random numbers while it trains, and counts in a buffer."""

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        layers = torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(784, 10)
        self.layers = torch.nn.Sequential(*layers, torch.nn.BatchNorm1d(10))
        self.always = always

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layers(x)
        return scores + torch.rand_like(scores) if self.always else scores


def test_random_state_and_buffers_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.MODELS, "noisy", Noisy)
    assert cli.main(command(tmp_path / "whole", "--model noisy --lr 0.01")) == 0
    monkeypatch.setattr(run_module, "Interrupt", lambda: StopAfter(17))
    assert cli.main(command(tmp_path / "stopped", "--model noisy --lr 0.01")) == 130
    monkeypatch.setattr(run_module, "Interrupt", Interrupt)
    torch.manual_seed(5)
    assert cli.main(command(tmp_path / "stopped", "--model noisy --lr 0.01 --resume auto")) == 0
    assert same(final(tmp_path / "stopped"), final(tmp_path / "whole"))


def test_resume_auto_starts_where_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("of a run that died before its first checkpoint")
    assert cli.main(command(tmp_path, "--resume auto")) == 0
    assert len(final(tmp_path)["rows"]) == 3


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(command(tmp_path / "whole", "")) == 0
    monkeypatch.setattr(run_module, "Interrupt", lambda: StopAfter(15))
    assert cli.main(command(tmp_path / "stopped", "--checkpoint-every 0")) == 130
    monkeypatch.setattr(run_module, "Interrupt", Interrupt)
    latest = tmp_path / "stopped" / "run" / "latest.pt"
    latest.write_bytes(latest.read_bytes()[:1000])
    capsys.readouterr()
    assert cli.main(command(tmp_path / "stopped", "--resume auto")) == 0
    assert "going on from" in capsys.readouterr().err
    assert same(final(tmp_path / "stopped"), final(tmp_path / "whole"))


def test_a_longer_run_goes_on_with_the_longer_schedule(tmp_path: Path) -> None:
    """Epochs to come take the learning rates that a run of the new length has there."""
    assert cli.main(command(tmp_path, "--tb")) == 0
    directory = str(tmp_path / "run")
    longer = ["--resume", directory, "--device", "cpu", "--threads", "1", "--tb"]
    assert cli.main([*longer, "--epochs", "5"]) == 0
    rows = final(tmp_path)["rows"]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    assert cli.main(command(tmp_path / "five", "--epochs 5")) == 0
    rates = [row["lr"] for row in final(tmp_path / "five")["rows"]]
    assert [row["lr"] for row in rows[3:]] == rates[3:]
    assert cli.main(longer) == 0  # finished, by the new length
    assert points(tmp_path / "run" / "tb")["lr"] == [
        (row["epoch"], pytest.approx(row["lr"])) for row in rows
    ]
