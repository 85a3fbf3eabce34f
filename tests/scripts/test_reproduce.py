"""scripts/reproduce.sh: its queues, what it copies, how it fails and stops."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.program import ENVIRONMENT, SOURCE
from helpers.shell import MODELS, ROOT, interpreter, outcome, run, start, wait_for

STUB = """#!/bin/sh
case "$*" in
  *--prepare-only) echo "run      $RUNS/run"; exit ;;
esac
echo "$*" >>commands
case "$*" in
  *rsnn_fmnist.report*) exit ;;
  *--lr\\ 7*) exit 1 ;;
  *--lr\\ 8*) : >started; exec sleep 60 ;;
esac
echo "it classifies 90 % correctly"
"""

PROGRAM = """
import sys
from rsnn_fmnist import cli
from rsnn_fmnist.data import splits
from rsnn_fmnist.report import __main__ as report
splits.SYNTHETIC = {"train": (6400, 1), "test": (200, 2)}
sys.exit((report if sys.argv.pop(1) == "rsnn_fmnist.report" else cli).main())
"""


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing outside tmp_path is written, for one seed."""
    return {
        **ENVIRONMENT,
        "RUNS": str(tmp_path / "runs"),
        "RECORDS": str(tmp_path / "records"),
        "SEEDS": "2020",
        "DEVICES": "cpu cpu",
    }


@pytest.fixture
def stub(tmp_path: Path, places: dict[str, str]) -> dict[str, str]:
    """As `places`; PYTHON notes its arguments in the file `commands`."""
    return {**places, "PYTHON": interpreter(tmp_path, STUB)}


def test_the_runs_are_those_of_three_queues(tmp_path: Path, stub: dict[str, str]) -> None:
    del stub["SEEDS"]
    code, out, err = run(tmp_path, stub, "reproduce.sh", "--data-path", "some where", "--amp")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if line[:2] == "=="] == [
        "== default settings",
        "== 2022 edition",
        "== 5,000 pictures held out",
    ]
    *trained, reported = (tmp_path / "commands").read_text().splitlines()
    queues = ("", f" --config {ROOT}/configs/2022-MODEL.toml", " --val-size 5000")
    assert sorted(trained) == sorted(
        f"-m rsnn_fmnist --model {model} --seed {seed} --resume auto --device cpu --output-dir "
        f"{tmp_path}/runs{flags.replace('MODEL', model)} --data-path some where --amp"
        for flags in queues
        for model in MODELS
        for seed in range(2020, 2025)
    )
    assert reported == (
        f"-m rsnn_fmnist.report {tmp_path}/runs --memory --out {tmp_path}/records/report "
        "--data-path some where"
    )


def test_a_run_that_fails_costs_the_exit_code_and_not_the_report(
    tmp_path: Path, stub: dict[str, str]
) -> None:
    code, out, _ = run(tmp_path, stub, "reproduce.sh", "--lr", "7", "--no-download")
    assert code == 1
    assert out.count("FAILED") == 9
    reported = (tmp_path / "commands").read_text().splitlines()[-1]
    assert reported.endswith("/records/report --no-download")


@pytest.mark.parametrize(
    "flag", ["--output-dir", "--config=x.toml", "--val-size", "--run-name", "--seed"]
)
def test_flags_that_the_queues_set(tmp_path: Path, stub: dict[str, str], flag: str) -> None:
    code, _, err = run(tmp_path, stub, "reproduce.sh", "--amp", flag, "x")
    assert code == 2
    assert f"{flag.split('=')[0]}: leave it out" in err
    assert not (tmp_path / "commands").exists()


def test_a_search_path_of_cd_changes_nothing(stub: dict[str, str]) -> None:
    """`cd` prints the folder that it finds there."""
    stub["CDPATH"] = f"/:{ROOT}"
    command = ["bash", "scripts/reproduce.sh", "--seed", "1"]  # which sweep.sh refuses
    done = subprocess.run(command, cwd=ROOT, env=stub, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[0].split(":")[0]) == (2, "sweep.sh")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_script_alone_stops_everything(
    tmp_path: Path, stub: dict[str, str], signum: int, code: int
) -> None:
    with start(tmp_path, stub, "reproduce.sh", "--lr", "8") as process:
        wait_for([tmp_path / "started"])
        os.kill(process.pid, signum)
        stopped, out, _ = outcome(process)
    assert stopped == code
    assert "== 2022 edition" not in out
    assert "rsnn_fmnist.report" not in (tmp_path / "commands").read_text()


def test_help(tmp_path: Path, stub: dict[str, str]) -> None:
    code, out, err = run(tmp_path, stub, "reproduce.sh", "--help")
    assert (code, err) == (0, "")
    assert "scripts/reproduce.sh [flags]" in out
    assert "RECORDS" in out
    assert "set -e" not in out


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_reproduction(tmp_path: Path, places: dict[str, str]) -> None:
    """One epoch of the nine runs of a seed; the second time everything is passed over."""
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    (tmp_path / "program.py").write_text(PROGRAM)
    text = f'#!/bin/sh\nshift\nexec {sys.executable} {tmp_path}/program.py "$@"\n'
    places["PYTHON"] = interpreter(tmp_path, text)
    words = ("--dataset", "synthetic", "--epochs", "1", "--backend", "torch")
    command = [str(ROOT / "scripts" / "reproduce.sh"), *words]
    said = [
        subprocess.run(
            command, cwd=tmp_path, env=places, capture_output=True, text=True, check=True
        ).stdout.split("# Report")
        for _ in range(2)
    ]
    assert "3 finished, 0 failed, 0 left" in said[0][0]
    assert said[0][1] == said[1][1]  # the same report
    runs, records = tmp_path / "runs", tmp_path / "records"
    copied = sorted(file.relative_to(records) for file in records.glob("*_seed2020/*"))
    assert len(copied) == 9 * 3 + 3
    weights = [str(file.parent) for file in copied if file.suffix == ".pt"]
    assert weights == [f"{model}_synthetic_e1_seed2020" for model in sorted(MODELS)]
    for file in copied:
        assert (records / file).read_bytes() == (runs / file).read_bytes()
    report = (records / "report" / "report.md").read_text()
    assert report.count("\n## ") == 3
    assert "Test accuracy from part of each picture's columns:" in report
    assert (records / "report" / "memory_read_synthetic_e1.svg").exists()
    alone = [sys.executable, "-m", "rsnn_fmnist.report", str(records), "--out", "again"]
    subprocess.run(alone, cwd=tmp_path, env=places, check=True, capture_output=True)
    drawn = "test_accuracy_synthetic_val5000_e1.svg"  # records are enough for it
    again = (tmp_path / "again" / drawn).read_bytes()
    assert again == (records / "report" / drawn).read_bytes()


COMMITTED = {
    "benchmark.json": True,
    "plain_seed2020/config.toml": True,
    "plain_seed2021/metrics.jsonl": True,
    "feedback_val5000_seed2020/environment.json": True,
    "plain_seed2020/latest.pt": True,
    "feedback_seed2020/latest.pt": True,
    "stateful-synapse_seed2020/latest.pt": True,
    "plain_seed2021/latest.pt": False,
    "feedback_val5000_seed2020/latest.pt": False,
    "plain_seed2020/best.pt": False,
    "plain_seed2020/.lock": False,
    "plain_seed2020/tb/events": False,
    "logs/plain_seed2020.log": False,
    "report/report.md": True,
    "report/runs.csv": True,
    "report/test_accuracy.svg": True,
    "report/test_accuracy.png": False,
}


def test_records_are_committed_and_nothing_more() -> None:
    if not (SOURCE / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a clone")
    for name, committed in COMMITTED.items():
        command = ["git", "-C", str(SOURCE), "check-ignore", "-q", f"runs/reference/{name}"]
        assert subprocess.run(command).returncode == int(committed), name
