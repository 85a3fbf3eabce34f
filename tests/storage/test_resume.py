"""A run that is stopped and resumed ends with the same bits as one that never stops."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.event_files import figures, hparams, points
from helpers.runs import SMALL, command, final, refused, stop
from torture import same

from rsnn_fmnist import cli, models, random_state
from rsnn_fmnist.storage import atomic, checkpoint

pytestmark = pytest.mark.usefixtures("small_synthetic")

FLAGS = [
    "--tb",
    "--model feedback --opt adam --lr 0.01 --lrs step --step-size 1",
    "--model stateful-synapse --amp --lrs none",
    "--amp --amp-dtype float16 --val-size 100",
    "--model feedback --backend torch --weight-decay 0.001 --cosa-tmax 2 --tb",
]


@pytest.mark.parametrize("flags", FLAGS)
def test_stopped_at_any_batch(tmp_path: Path, capsys: Any, flags: str) -> None:
    """Stops after 1, 7, 3 and 12 checks: in the first batch, in training, in an evaluation."""
    assert cli.main(command(tmp_path / "whole", flags)) == 0
    resume = command(tmp_path / "stopped", f"{flags} --resume auto")
    for checks in (1, 7, 3, 12):
        assert stop(resume, after=checks) == 130
        out = capsys.readouterr().out
        assert "stopped by SIGINT" in out
        assert f"; resume with --resume {tmp_path / 'stopped' / 'run'}" in out
    assert cli.main(resume) == 0
    assert same(final(tmp_path / "stopped"), final(tmp_path / "whole"))


@pytest.mark.slow
def test_figures_are_drawn_once_and_the_same(tmp_path: Path) -> None:
    """After epochs 1 and 2 (every second one, and the last); stopped in training and evaluation."""
    pytest.importorskip("matplotlib")
    flags = "--model stateful-synapse --tb-pictures 2"
    assert cli.main(command(tmp_path / "whole", flags)) == 0
    resume = command(tmp_path / "stopped", f"{flags} --resume auto")
    for checks in (15, 8, 6, 4):
        assert stop(resume, after=checks) == 130
    assert cli.main(resume) == 0
    assert same(final(tmp_path / "stopped"), final(tmp_path / "whole"))
    whole, resumed = (figures(tmp_path / name / "run" / "tb") for name in ("whole", "stopped"))
    assert whole == resumed
    assert {
        "views/confusion", "views/picture_0", "views/picture_4", "weights/sy1.w",
        "units/potential/sn1",
    } <= set(whole)  # fmt: skip
    assert all([epoch for epoch, _ in drawn] == [1, 2] for drawn in whole.values())
    assert set(hparams(tmp_path / "stopped" / "run" / "tb")) == {
        "experiment", "session_start_info", "session_end_info"
    }  # fmt: skip


@pytest.mark.parametrize("flags", ["--tb", "--tb-pictures 1"])
def test_diagnostics_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    """With a model that draws random numbers even in an evaluation."""
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(models.MODELS, "noisy", lambda: Noisy(always=True))
    plain = "--model noisy --lr 0.01"
    assert cli.main(command(tmp_path / "plain", plain)) == 0
    assert cli.main(command(tmp_path / "observed", f"{plain} {flags}")) == 0
    one, other = final(tmp_path / "plain"), final(tmp_path / "observed")
    assert same(one["files"], other["files"])
    assert same(one["rows"], other["rows"])


@pytest.mark.parametrize("checks", [9, 10, 11, 12, 20, 21, 22])
def test_stopped_around_the_end_of_an_epoch(tmp_path: Path, checks: int) -> None:
    """Ten batches an epoch, one check in its evaluation; resumed by the directory's path."""
    assert cli.main(command(tmp_path / "whole", "--tb")) == 0
    assert stop(command(tmp_path / "stopped", "--tb"), after=checks) == 130
    directory = str(tmp_path / "stopped" / "run")
    assert cli.main(["--resume", directory, "--device", "cpu", "--threads", "1", "--tb"]) == 0
    assert same(final(tmp_path / "stopped"), final(tmp_path / "whole"))


class Noisy(torch.nn.Module):
    """A model that draws random numbers when built and in training, and counts in a buffer."""

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.start = torch.nn.Parameter(torch.tensor([random.random(), np.random.rand()]))
        layers = torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(784, 10)
        self.layers = torch.nn.Sequential(*layers, torch.nn.BatchNorm1d(10))
        self.always = always

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layers(x)
        if self.training:
            scores = scores + random.random() + np.random.randn() + np.random.rand()
        return scores + torch.rand_like(scores) if self.always else scores


def test_random_state_and_buffers_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.MODELS, "noisy", Noisy)
    flags = "--model noisy --lr 0.01"
    assert cli.main(command(tmp_path / "whole", flags)) == 0
    assert stop(command(tmp_path / "stopped", flags), after=17) == 130
    random_state.seed(5)
    assert cli.main(command(tmp_path / "stopped", f"{flags} --resume auto")) == 0
    assert same(final(tmp_path / "stopped"), final(tmp_path / "whole"))


def test_a_checkpoint_from_before_a_setting_existed(tmp_path: Path) -> None:
    """Nor did it hold the states of NumPy's and Python's generators, or what file built it."""
    assert cli.main(command(tmp_path / "whole", "")) == 0
    assert stop(command(tmp_path / "stopped", ""), after=17) == 130
    latest = tmp_path / "stopped" / "run" / "latest.pt"
    content = checkpoint.load(latest)
    for name in ("momentum", "detach_reset"):
        content["experiment"].pop(name)
    content["random_state"] = {"cpu": content["random_state"]["cpu"]}
    content.pop("models_file")
    atomic.save(latest, content)
    assert cli.main(command(tmp_path / "stopped", "--resume auto")) == 0
    assert same(final(tmp_path / "stopped"), final(tmp_path / "whole"))


def test_resume_auto_starts_where_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("of a run that died before its first checkpoint")
    assert cli.main(command(tmp_path, "--resume auto")) == 0
    assert len(final(tmp_path)["rows"]) == 3


def test_where_the_checkpoint_is_damaged_the_one_before_is_used(
    tmp_path: Path, capsys: Any
) -> None:
    assert cli.main(command(tmp_path / "whole", "")) == 0
    assert stop(command(tmp_path / "stopped", "--checkpoint-every 0"), after=15) == 130
    latest = tmp_path / "stopped" / "run" / "latest.pt"
    latest.write_bytes(latest.read_bytes()[:1000])
    capsys.readouterr()
    assert cli.main(command(tmp_path / "stopped", "--resume auto")) == 0
    assert f"; using {latest.with_name('latest.prev.pt')}" in capsys.readouterr().err
    assert same(final(tmp_path / "stopped"), final(tmp_path / "whole"))


def test_a_checkpoint_in_the_directory_of_another_run_is_refused(
    tmp_path: Path, capsys: Any
) -> None:
    for name in ("one", "other"):
        lr = "0.1" if name == "one" else "0.2"
        assert stop(command(tmp_path / name, f"--lr {lr}"), after=14) == 130
    kept = final(tmp_path / "other")
    copy = tmp_path / "other" / "run" / "copy.pt"
    copy.write_bytes((tmp_path / "one" / "run" / "latest.pt").read_bytes())
    capsys.readouterr()
    assert cli.main(["--resume", str(copy), "--device", "cpu"]) == 1
    assert "differs in --lr from the run in" in capsys.readouterr().err
    assert same(final(tmp_path / "other"), kept)
    assert cli.main(["--resume", str(copy), "--device", "cpu", "--test-only"]) == 0


def test_a_resumed_run_may_be_given_its_own_place(
    here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stop(command(Path("one"), ""), after=14) == 130
    (here / "link").symlink_to("one/run")
    capsys.readouterr()
    machine = ["--device", "cpu", "--threads", "1"]
    for flag, value in (("--output-dir", "two"), ("--run-name", "walk")):
        line = refused(capsys, 2, "--resume", "one/run", flag, value, *machine)
        assert f"{flag} {value}: a resumed run stays in its directory, one/run" in line
    for words in (
        "--resume one/run --output-dir one --run-name run",
        "--resume one/run/latest.pt --output-dir ./one/",
        f"--resume one/run --output-dir {here}/one",
        "--resume link --output-dir one",
        "--resume link --output-dir . --run-name link",
    ):
        assert cli.main([*words.split(), *machine]) == 0
        assert "after epoch 2" in capsys.readouterr().out
    monkeypatch.chdir("one/run")
    assert cli.main(["--resume", ".", "--output-dir", "..", *machine]) == 0


def test_through_a_link_a_run_resumes_where_it_is(here: Path) -> None:
    assert stop(command(Path("store"), "--checkpoint-every 0"), after=7) == 130
    (here / "picked.pt").symlink_to("store/run/latest.pt")
    (here / "linked").symlink_to("store/run")
    (here / "chain.pt").symlink_to("picked.pt")
    before = set(here.iterdir())
    more = ["--device", "cpu", "--threads", "1", "--resume"]
    for after, name in ((7, "picked.pt"), (7, "linked"), (0, "chain.pt")):
        assert stop([*more, name], after=after) == (130 if after else 0)
        assert set(here.iterdir()) == before
        assert (here / name).is_symlink()
    assert cli.main(command(Path("whole"), "")) == 0
    assert same(final(here / "store"), final(here / "whole"))


def test_a_new_run_says_which_run_is_near_it(here: Path, capsys: Any) -> None:
    def printed(flags: str) -> str:
        assert cli.main([*SMALL, *f"--model plain --resume auto {flags}".split()]) == 0
        lines = capsys.readouterr().out.splitlines()
        return next((line for line in lines if line.startswith("run ")), "")

    first = "plain_synthetic_e1_b64_seed2020"
    assert printed("--epochs 1") == f"run      runs/{first}"
    (here / "runs" / "a file").touch()
    (here / "runs" / "foreign").mkdir()
    (here / "runs" / "foreign" / "config.toml").write_text("of = 'another program'")
    for flags, name, words in (
        ("--epochs 1 --lr 0.5 --seed 1", "plain_synthetic_e1_b64_lr0.5_seed1", "--lr, --seed"),
        ("--epochs 2", "plain_synthetic_e2_b64_seed2020", "--epochs"),
    ):
        near = f"new: runs/{first} differs in {words}"
        assert printed(flags) == f"run      runs/{name}, {near}"
    same_settings = "has the same settings"
    assert (
        printed("--epochs 1 --run-name x") == f"run      runs/x, new: runs/{first} {same_settings}"
    )
    assert printed("--epochs 1") == ""  # finished


def test_an_extended_run_takes_the_longer_schedule(tmp_path: Path) -> None:
    """The remaining epochs have the learning rates that a run of the new length has there."""
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
