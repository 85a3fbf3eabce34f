"""One run as a user meets it: what is printed, exit codes, what is left behind."""

import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import SMALL, command, refused, rows, stop

from rsnn_fmnist import cli
from rsnn_fmnist.storage import checkpoint

pytestmark = pytest.mark.usefixtures("small_synthetic")


MISTAKES: list[tuple[str, int, str]] = [
    ("", 2, "--model is required: plain, feedback, stateful-synapse"),
    ("--model plane", 2, "registered: plain, feedback, stateful-synapse; did you mean plain?"),
    ("--modle plain", 2, "did you mean --model?"),
    ("--model fb", 2, "did you mean feedback?"),
    ("--model ss", 2, "did you mean stateful-synapse?"),
    ("--model plain --epochs -1", 2, "--epochs -1: must be at least 1"),
    ("--model plain --start-epoch 90", 2, "--start-epoch 90: must be below --epochs 90"),
    ("--model plain --start-epoch 1 --resume auto", 2, "--start-epoch"),
    ("--model plain --config none.toml", 2, "--config none.toml: no such file"),
    ("--model plain --device tpu9", 2, "--device tpu9"),
    ("--model plain --run-name ../elsewhere", 2, "must be a plain name"),
    ("--model plain --run-name /tmp/elsewhere", 2, "must be a plain name"),
    ("--model plain --run-name ..", 2, "must be a plain name"),
    (f"--model plain --run-name {'n' * 260}", 2, "too long"),
    (f"--model plain --output-dir {'n' * 260}", 2, "too long"),
    (f"--resume {'n' * 260}", 2, "too long"),
    (f"--model plain --models-file {'n' * 260}", 2, "too long"),
    (f"--config {'n' * 260}", 2, "too long"),
    ("--model plain --data-path=~nobody-here", 2, "no such home folder"),
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
def test_a_mistake_is_one_line_and_nothing_is_written(
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


def test_figures_without_matplotlib_are_refused_before_anything_is_written(
    here: Path, capsys: Any, without_matplotlib: None
) -> None:
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
    found = rows(run)
    assert [sorted(row) for row in found] == 3 * [
        ["epoch", "lr", "seconds", "test_acc1", "test_acc5", "test_images_per_second", "test_loss",
         "train_acc1", "train_acc5", "train_images_per_second", "train_loss"]
    ]  # fmt: skip
    lines = out.splitlines()
    assert lines[0] == "model    feedback, 3,338 parameters, seed 2020"
    assert lines[1] == "data     640 synthetic training pictures, 200 test pictures"
    assert "1 CPU thread, " in lines[2]
    assert lines[3] in ("step     compiled", "step     eager: sn1 runs in torch")
    assert lines[4] == "run      runs/feedback_synthetic_e3_b64_seed2020"
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["0/2", "1/2", "2/2"]
    share = f"{found[-1]['test_acc1']:.2f} %"
    assert f"feedback classifies {share} of the synthetic test pictures correctly after" in out
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
    assert cli.main([*command, "--resume", "auto"]) == 0  # finished: the summary only
    assert "plain classifies" in capsys.readouterr().out
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
    assert "leave out --resume runs/one" in kept
    assert not list(here.iterdir())


def test_test_only_evaluates_and_writes_nothing(here: Path, capsys: Any) -> None:
    assert cli.main(["--model", "plain", *SMALL, "--epochs", "2"]) == 0
    (run,) = (here / "runs").iterdir()
    last = rows(run)[-1]
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    for path in (run, run / "latest.pt", run / "best.pt"):
        capsys.readouterr()
        assert cli.main(["--resume", str(path), "--test-only", "--device", "cpu"]) == 0
        *before_it, result = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in before_it] == ["model", "data", "device"]
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
    again = ["--model", "plain", *SMALL, "--epochs", "2", "--run-name", "run"]
    assert "--seed 3" in refused(capsys, 2, *again, "--resume", "auto", "--seed", "3")
    assert "--run-name" in refused(capsys, 2, "--resume", path, "--run-name", "other")
    (here / "foreign.pt").write_bytes(b"nothing of ours")
    assert "not a checkpoint" in refused(capsys, 1, "--resume", "foreign.pt")


def test_a_link_in_place_of_the_event_folder_is_refused(here: Path, capsys: Any) -> None:
    (here / "foreign").mkdir()
    (here / "foreign" / "events.out.tfevents.1.mine").write_text("precious")
    command = ["--model", "plain", *SMALL, "--epochs", "1", "--run-name", "run"]
    assert cli.main(command) == 0
    (here / "runs" / "run" / "tb").symlink_to(here / "foreign")
    capsys.readouterr()
    more = ["--resume", "runs/run", "--epochs", "2", "--tb", "--device", "cpu", "--quiet"]
    assert "is a link" in refused(capsys, 1, *more)
    assert (here / "foreign" / "events.out.tfevents.1.mine").read_text() == "precious"


def test_a_run_with_fewer_epochs_than_are_done_is_finished(here: Path, capsys: Any) -> None:
    command = ["--model", "plain", *SMALL, "--run-name", "run", "--quiet"]
    assert cli.main([*command, "--epochs", "2"]) == 0
    assert cli.main([*command, "--epochs", "3", "--resume", "auto"]) == 0
    assert cli.main([*command, "--epochs", "2", "--resume", "auto"]) == 0  # as it was queued
    assert cli.main([*command, "--resume", "auto"]) == 0
    assert capsys.readouterr().out.count("after epoch 2") == 3


@pytest.mark.parametrize(
    ("flags", "step"),
    [
        ("--no-graph", "eager: --no-graph"),
        ("--amp", "compiled"),
        ("--amp --amp-dtype float16", "eager: float16"),
        ("--backend torch", "eager: sn1 runs in torch"),
    ],
)
def test_the_step_and_why_it_is_chosen(here: Path, capsys: Any, flags: str, step: str) -> None:
    arguments = command(here, f"{flags} --epochs 1")
    assert cli.main(arguments) == 0
    assert f"step     {step}" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("folder", ["latin\udce9", "utf-é"])
def test_a_folder_that_standard_output_cannot_name(
    here: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", output)
    arguments = ["--model", "plain", *SMALL, "--epochs", "1", "--output-dir", folder]
    assert cli.main([*arguments, "--prepare-only"]) == 0
    assert cli.main(arguments) == 0
    assert cli.main(["--resume", f"{folder}/plain_synthetic_e1_b64_seed2020"]) == 0
    printed = output.buffer.getvalue()  # type: ignore[attr-defined]
    assert printed.count(b"records: ") == 2
    assert rows(here / folder / "plain_synthetic_e1_b64_seed2020")


def test_a_run_in_a_notebooks_executor_leaves_the_process_as_found(here: Path) -> None:
    torch.set_num_threads(2)
    state, folders = torch.get_rng_state(), list(sys.path)
    arguments = ["--model", "plain", *SMALL, "--epochs", "1", "--deterministic"]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(cli.main, arguments).result() == 0
    assert cli.main([*arguments, "--run-name", "again"]) == 0
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert sys.path == folders


def test_a_stopped_run_prints_how_to_resume(here: Path, capsys: Any) -> None:
    assert stop(command(Path("a folder"), ""), after=13) == 130
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "stopped by SIGINT in epoch 1; resume with --resume 'a folder/run'"
