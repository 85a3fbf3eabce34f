"""The command line as a person meets it: what is printed, exit codes, what is left behind."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_report import forget_matplotlib

from rsnn_fmnist import cli, config, models
from rsnn_fmnist.config import Experiment
from rsnn_fmnist.storage import checkpoint

pytestmark = pytest.mark.usefixtures("small_synthetic")

SMALL = "--dataset synthetic --device cpu --threads 1 -b 64".split()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RSNN_FMNIST_DATA", raising=False)
    return tmp_path


def refused(capsys: Any, code: int, *arguments: str) -> str:
    """The one line on standard error with which the command is refused."""
    assert cli.main(list(arguments)) == code
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("rsnn_fmnist: error: ")
    return lines[0]


MISTAKES: list[tuple[str, int, str]] = [
    ("", 2, "--model is required: plain, feedback, stateful-synapse"),
    ("--model plane", 2, "registered: plain, feedback, stateful-synapse; did you mean plain?"),
    ("--modle plain", 2, "did you mean --model?"),
    ("--model plain --epochs -1", 2, "--epochs -1: must be at least 1"),
    ("--model plain --start-epoch 90", 2, "--start-epoch 90: must be below --epochs 90"),
    ("--model plain --start-epoch 1 --resume auto", 2, "--start-epoch"),
    ("--model plain --config none.toml", 2, "--config none.toml: no such file"),
    ("--model plain --device tpu9", 2, "--device tpu9"),
    ("--model plain --run-name ../elsewhere", 2, "inside --output-dir"),
    ("--model plain --run-name /tmp/elsewhere", 2, "inside --output-dir"),
    ("--model plain --run-name ..", 2, "inside --output-dir"),
    ("--model plain --resume none", 2, "--resume none: no such file or directory"),
    ("--model plain --resume .", 1, "--resume .: holds no checkpoint"),
    ("--test-only", 2, "--test-only: name what to evaluate with --resume PATH"),
    ("--model plain --test-only --resume auto", 2, "--resume PATH"),
    ("--model plain --resume /dev/null", 2, "--resume /dev/null: no such file or directory"),
    ("--model plain --models-file none.py", 2, "--models-file none.py: no such file"),
    ("--model plain --no-download", 1, "train-images-idx3-ubyte.gz (md5 8d4fb7e6c68d591d4c3d"),
    ("--model plain --no-download --data-path nowhere", 1, "nowhere/FashionMNIST/raw"),
    ("--model plain --dataset synthetic -b 700", 2, "--batch-size 700: larger than the training"),
    ("--model plain --dataset synthetic --val-size 640", 2, "--val-size 640"),
    ("--model plain --dataset synthetic --output-dir /proc/none", 1, "another --output-dir"),
]


@pytest.mark.parametrize(("line", "code", "words"), MISTAKES)
def test_mistakes_get_one_line_and_leave_nothing(
    here: Path, capsys: Any, line: str, code: int, words: str
) -> None:
    assert words in refused(capsys, code, *line.split(), *(["--quiet"] if line else []))
    assert not list(here.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_cuda(here: Path, capsys: Any) -> None:
    line = refused(capsys, 1, "--model", "plain", "--dataset", "synthetic", "--device", "cuda")
    assert "--device cuda: " in line
    assert "use --device cpu" in line
    assert not list(here.iterdir())


@pytest.mark.parametrize("how", ["", "0", "'bye'"])
def test_a_models_file_that_exits(here: Path, capsys: Any, how: str) -> None:
    (here / "mine.py").write_text(f"import sys\nsys.exit({how})\n")
    line = refused(capsys, 1, "--model", "mine", "--models-file", "mine.py")
    assert "--models-file mine.py: SystemExit" in line


def test_a_models_file_with_dataclasses_and_a_neighbour(here: Path, capsys: Any) -> None:
    (here / "neighbour_of_mine.py").write_text("WIDTH = 3\n")
    (here / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from neighbour_of_mine import WIDTH\n@dataclass\nclass Options:\n    width: int = WIDTH\n"
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


def test_a_model_of_the_wrong_shape(here: Path, capsys: Any) -> None:
    name = "mine-too-narrow"
    (here / "mine.py").write_text(MINE.format(name=name).replace("= 10", "= 9"))
    try:
        line = refused(capsys, 1, "--models-file", "mine.py", "--model", name, *SMALL)
        assert "returns [2, 9]" in line
        assert not (here / "runs").exists()
    finally:
        models.MODELS.pop(name, None)


def test_figures_without_matplotlib_are_refused_before_anything_is_written(
    here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_matplotlib(monkeypatch)
    line = refused(capsys, 1, "--model", "plain", *SMALL, "--tb-pictures", "--quiet")
    assert line.endswith(
        "--tb-pictures: figures need matplotlib: pip install 'rsnn-fmnist[report]'"
    )
    assert not list(here.iterdir())
    assert cli.main(["--model", "plain", *SMALL, "--epochs", "1", "--tb", "--quiet"]) == 0


def test_a_run_from_start_to_summary(here: Path, capsys: Any) -> None:
    assert cli.main(["--model", "feedback", *SMALL, "--epochs", "3", "--tb"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    run = here / "runs" / "feedback_synthetic_e3_b64_seed2020"
    assert {p.name for p in run.iterdir()} == {
        ".lock", "config.toml", "environment.json", "metrics.jsonl", "latest.pt", "best.pt", "tb",
    }  # fmt: skip
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [sorted(row) for row in rows] == 3 * [
        ["epoch", "lr", "seconds", "test_acc1", "test_acc5", "test_images_per_second", "test_loss",
         "train_acc1", "train_acc5", "train_images_per_second", "train_loss"]
    ]  # fmt: skip
    lines = out.splitlines()
    assert lines[0] == "model    feedback, 3,338 parameters, seed 2020"
    assert lines[1] == "data     640 synthetic training pictures, 200 for testing"
    assert "1 CPU thread, " in lines[2]
    assert lines[3].startswith("step     ")
    assert lines[4] == "run      runs/feedback_synthetic_e3_b64_seed2020"
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["0/2", "1/2", "2/2"]
    assert f"feedback names {rows[-1]['test_acc1']:.2f} % of the drawn (synthetic)" in out
    assert "best test accuracy (optimistic)" in out
    assert lines[-1] == "curves: tensorboard --logdir runs"
    environment = json.loads((run / "environment.json").read_text())
    assert environment["threads"] == 1
    assert environment["device"] == "cpu"
    assert str(here) not in json.dumps(environment)
    assert environment["torch"] == torch.__version__.split("+")[0]


def test_a_directory_that_holds_a_run_is_left_alone(here: Path, capsys: Any) -> None:
    command = ["--model", "plain", *SMALL, "--epochs", "1"]
    assert cli.main(command) == 0
    run = here / "runs" / "plain_synthetic_e1_b64_seed2020"
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    capsys.readouterr()
    line = refused(capsys, 1, *command)
    assert "--resume auto" in line
    assert "--run-name" in line
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    assert cli.main([*command, "--resume", "auto"]) == 0  # finished: the summary, nothing done
    assert "plain names" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_the_saved_config_repeats_the_run(here: Path) -> None:
    flags = ["--model", "plain", "--epochs", "2", "--opt", "adam", "--lr", "0.003", "--amp"]
    assert cli.main([*SMALL, *flags]) == 0
    (run,) = (here / "runs").iterdir()
    repeat = ["--config", str(run / "config.toml"), "--output-dir", "again", "--threads", "1"]
    assert cli.main([*repeat, "--device", "cpu"]) == 0
    (again,) = (here / "again").iterdir()
    assert again.name == run.name
    one, two = (checkpoint.load(r / "latest.pt")["model"] for r in (run, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_quiet_prints_the_summary_only(here: Path, capsys: Any) -> None:
    assert cli.main(["--model", "plain", *SMALL, "--epochs", "1", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.split()[0] for line in out.splitlines()] == ["plain", "best", "records:"]


def test_prepare_only_checks_and_writes_nothing(here: Path, capsys: Any) -> None:
    assert cli.main(["--model", "plain", *SMALL, "--prepare-only"]) == 0
    assert capsys.readouterr().out == f"run      {Path('runs', 'plain_synthetic_b64_seed2020')}\n"
    assert "--batch-size 700" in refused(
        capsys, 2, "--model", "plain", *SMALL, "-b", "700", "--prepare-only"
    )
    missing = refused(capsys, 1, "--model", "plain", "--no-download", "--prepare-only")
    assert "no FashionMNIST in data" in missing
    kept = refused(capsys, 2, "--prepare-only", "--resume", "runs/one")
    assert "leave --resume runs/one out" in kept
    assert not list(here.iterdir())


def test_test_only_evaluates_and_writes_nothing(here: Path, capsys: Any) -> None:
    assert cli.main(["--model", "plain", *SMALL, "--epochs", "2"]) == 0
    (run,) = (here / "runs").iterdir()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    for path in (run, run / "latest.pt", run / "best.pt"):
        capsys.readouterr()
        assert cli.main(["--resume", str(path), "--test-only", "--device", "cpu"]) == 0
        result = capsys.readouterr().out.splitlines()[-1]
        if path.name != "best.pt":
            assert f"top-1 {last['test_acc1']:.2f} %" in result
            assert f"test loss {last['test_loss']:.6f}" in result
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    line = refused(capsys, 1, "--resume", str(run / "best.pt"), "--quiet")
    assert "weights of one epoch only" in line


def test_resuming_another_experiment_is_refused_by_name(here: Path, capsys: Any) -> None:
    assert cli.main(["--model", "plain", *SMALL, "--epochs", "2", "--run-name", "run"]) == 0
    capsys.readouterr()
    path = str(here / "runs" / "run")
    for flags, words in (
        (["--lr", "0.5"], "--lr 0.5: the run in"),
        (["--model", "feedback"], "--model feedback: the run in"),
        (["--amp"], "--amp True: the run in"),
    ):
        assert words in refused(capsys, 2, "--resume", path, *flags)
    same = ["--model", "plain", *SMALL, "--epochs", "2", "--run-name", "run"]
    assert "--seed 3" in refused(capsys, 2, *same, "--resume", "auto", "--seed", "3")
    assert "--run-name" in refused(capsys, 2, "--resume", path, "--run-name", "other")
    (here / "foreign.pt").write_bytes(b"nothing of ours")
    assert "not a checkpoint" in refused(capsys, 1, "--resume", "foreign.pt")


def test_a_linked_event_folder_is_left_alone(here: Path, capsys: Any) -> None:
    (here / "foreign").mkdir()
    (here / "foreign" / "events.out.tfevents.1.mine").write_text("precious")
    command = ["--model", "plain", *SMALL, "--epochs", "1", "--run-name", "run"]
    assert cli.main(command) == 0
    (here / "runs" / "run" / "tb").symlink_to(here / "foreign")
    capsys.readouterr()
    more = ["--resume", "runs/run", "--epochs", "2", "--tb", "--device", "cpu", "--quiet"]
    assert "is a link" in refused(capsys, 1, *more)
    assert (here / "foreign" / "events.out.tfevents.1.mine").read_text() == "precious"


def test_fewer_epochs_than_are_done_are_done(here: Path, capsys: Any) -> None:
    command = ["--model", "plain", *SMALL, "--run-name", "run", "--quiet"]
    assert cli.main([*command, "--epochs", "2"]) == 0
    assert cli.main([*command, "--epochs", "3", "--resume", "auto"]) == 0
    assert cli.main([*command, "--epochs", "2", "--resume", "auto"]) == 0  # as it was queued
    assert cli.main([*command, "--resume", "auto"]) == 0
    assert capsys.readouterr().out.count("after epoch 2") == 3


def test_a_directory_locked_by_another_process(here: Path, capsys: Any) -> None:
    from filelock import FileLock

    run = here / "runs" / "run"
    run.mkdir(parents=True)
    with FileLock(run / ".lock"):
        line = refused(
            capsys, 1, "--model", "plain", *SMALL, "--run-name", "run", "--quiet", "--epochs", "1"
        )
    assert "another process is writing this run" in line


def test_debug_shows_a_traceback(here: Path, capsys: Any) -> None:
    assert cli.main(["--model", "plain", "--resume", "none", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_defects_are_told_in_one_line(
    here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a defect\nin two lines")

    monkeypatch.setattr(importlib.import_module("rsnn_fmnist.run"), "load_pictures", fail)
    line = refused(capsys, 1, "--model", "plain")
    assert "ZeroDivisionError: a defect (--debug shows where)" in line


def test_info_and_version_and_help(capsys: Any) -> None:
    assert cli.main(["--info", "--data-path", "nowhere"]) == 0
    out = capsys.readouterr().out
    assert f"torch        {torch.__version__.split('+')[0]}" in out
    assert "0 of 4 files in nowhere/FashionMNIST/raw" in out
    started = [line.split()[0] for line in out.splitlines()]
    assert {"cuda", "driver", "kernels", "device"} <= set(started)
    if not torch.cuda.is_available():
        assert "\nkernels      CUDA's are not compiled: no GPU is found\n" in out
    for flag, words in (("--version", "rsnn_fmnist 0."), ("--help", "experiment:")):
        with pytest.raises(SystemExit) as caught:
            cli.main([flag])
        assert caught.value.code == 0
        assert words in capsys.readouterr().out


def test_help_names_every_flag(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(config.flag(name) in out for name in config.FIELDS)


def test_as_a_module(here: Path) -> None:
    """The real program, once: standard output is not buffered away, no bar without a terminal."""
    command = [sys.executable, "-m", "rsnn_fmnist", "--model", "plane"]
    source = str(Path(models.__file__).parents[1])
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": source}
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


CONFIGS = Path(models.__file__).parents[1] / "configs"


@pytest.mark.parametrize("model", ["plain", "feedback", "stateful-synapse"])
def test_configs_hold_the_editions_settings(model: str) -> None:
    first = config.from_settings(Experiment, config.read_toml(CONFIGS / f"{model}.toml"))
    assert first == Experiment(model=model)
    second = config.from_settings(Experiment, config.read_toml(CONFIGS / f"2022-{model}.toml"))
    assert config.differences(second, first) == [
        "normalize",
        "detach_reset",
        "epochs",
        "batch_size",
    ]
    assert (second.epochs, second.batch_size, second.normalize) == (64, 256, False)
    assert second.detach_reset == "recurrent"
