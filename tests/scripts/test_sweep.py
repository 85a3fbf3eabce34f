"""The shell launchers: queues over devices, stops and restarts, Slurm's array without Slurm.

Where only the queue is looked at, a shell script stands in for the interpreter and notes its
arguments; elsewhere the program itself runs, on the small synthetic set.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.program import ENVIRONMENT, PROGRAM
from helpers.shell import MODELS, ROOT, SCRIPTS, interpreter, outcome, run, start, wait_for

STUB = """#!/bin/sh
case "$*" in
  *--info) echo "processor    One, 3 cores"; exit ;;
  *--prepare-only) echo "run      place/run"; exit ;;
esac
echo "$*" >>commands
case "$*" in *broken*) echo "rsnn_fmnist: error: it is broken" >&2; exit 1 ;; esac
echo "it classifies 90 % correctly"
"""


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """An environment whose PYTHON notes its arguments in the file `commands`."""
    return {**os.environ, "PYTHON": interpreter(tmp_path, STUB)}


@pytest.fixture
def program(tmp_path: Path) -> dict[str, str]:
    """An environment whose PYTHON runs the program on the small synthetic set."""
    text = f'#!/bin/sh\nshift 2\nexec {" ".join(PROGRAM)} "$@"\n'
    return {**ENVIRONMENT, "PYTHON": interpreter(tmp_path, text)}


def test_the_scripts_are_clean() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.defpath}")
    if shellcheck is None:
        pytest.skip("needs shellcheck: pip install 'rsnn-fmnist[test]'")
    scripts = [*map(str, SCRIPTS.glob("*.sh")), str(ROOT / ".ci" / "run")]
    assert len(scripts) == 5
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_sweep_runs_every_model_with_every_seed_once(
    tmp_path: Path, stub: dict[str, str]
) -> None:
    stub["DEVICES"] = "cuda:0, cuda:1"
    words = ("plain, feedback", "1\n2 3", "--config", "some where/{model}.toml", "--lr=1")
    code, out, err = run(tmp_path, stub, "sweep.sh", *words)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "6 runs on cuda:0 cuda:1; logs in place/logs"
    assert out.splitlines()[-1].split() == "ended 6 finished, 0 failed, 0 left".split()
    commands = (tmp_path / "commands").read_text().splitlines()
    used = {words.split()[9] for words in commands}
    assert used == {"cuda:0", "cuda:1"}
    assert sorted(c.replace("cuda:1", "cuda:0") for c in commands) == [
        f"-m rsnn_fmnist --model {model} --seed {seed} --resume auto --device cuda:0 "
        f"--config some where/{model}.toml --lr=1"
        for model in ("feedback", "plain")
        for seed in (1, 2, 3)
    ]
    log = (tmp_path / "place" / "logs" / "plain_seed3.log").read_text().splitlines()
    assert log[0].startswith("== ")
    assert log[1:] == ["it classifies 90 % correctly"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
@pytest.mark.parametrize("folder", [b"latin\xe9", "utf-é".encode()])
def test_a_folder_that_standard_output_cannot_name(
    tmp_path: Path, program: dict[str, str], folder: bytes
) -> None:
    """The program itself names the folder; a script stands in for the runs."""
    real = f'*--prepare-only) shift 2; exec {" ".join(PROGRAM)} "$@" ;;'
    text = STUB.replace('*--prepare-only) echo "run      place/run"; exit ;;', real)
    program |= {"PYTHON": interpreter(tmp_path, text), "PYTHONIOENCODING": "ascii"}
    words = [
        "plain",
        "1",
        "--dataset",
        "synthetic",
        "-b",
        "64",
        "--output-dir",
        os.fsdecode(folder),
    ]
    command = [str(SCRIPTS / "sweep.sh"), *words]
    done = subprocess.run(command, cwd=tmp_path, env=program, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"; logs in " + folder + b"/logs\n" in done.stdout
    assert (tmp_path / os.fsdecode(folder) / "logs" / "plain_seed1.log").exists()


def test_without_devices_every_core_takes_a_run(tmp_path: Path, stub: dict[str, str]) -> None:
    code, out, _ = run(tmp_path, stub, "sweep.sh", "plain", "1")
    assert code == 0
    assert out.splitlines()[0] == "1 runs on cpu cpu cpu; logs in place/logs"


def test_every_gpu_is_found(tmp_path: Path, stub: dict[str, str]) -> None:
    gpus = "processor    One, 3 cores\\ncuda:0       A GPU\\ncuda:10      Another"
    text = STUB.replace('echo "processor    One, 3 cores"', f'printf "{gpus}"')
    stub["PYTHON"] = interpreter(tmp_path, text)
    code, out, _ = run(tmp_path, stub, "sweep.sh", "plain", "1")
    assert code == 0
    assert out.splitlines()[0] == "1 runs on cuda:0 cuda:10; logs in place/logs"


def test_a_failing_run_is_told_and_the_others_go_on(tmp_path: Path, stub: dict[str, str]) -> None:
    stub["DEVICES"] = "cpu"
    code, out, _ = run(tmp_path, stub, "sweep.sh", "plain,broken,feedback", "1")
    assert code == 1
    told = [line.split()[0] for line in out.splitlines()[1:]]
    assert told == ["started", "finished", "started", "FAILED", "started", "finished", "ended"]
    assert "exit code 1: rsnn_fmnist: error: it is broken (place/logs/broken_seed1.log)" in out
    assert "2 finished, 1 failed" in out


def test_train_all_takes_the_seed_of_the_flags(tmp_path: Path, stub: dict[str, str]) -> None:
    stub["DEVICES"] = "cpu cpu cpu"
    code, _, _ = run(tmp_path, stub, "train_all.sh", "--seed", "7")
    assert code == 0
    assert sorted((tmp_path / "commands").read_text().splitlines()) == [
        f"-m rsnn_fmnist --model {model} --resume auto --device cpu --seed 7"
        for model in sorted(MODELS)
    ]


MISTAKES = [
    ([], "needs MODELS and SEEDS"),
    (["plain"], "needs MODELS and SEEDS"),
    (["--seed", "3"], "--seed where MODELS or SEEDS should be"),
    (["plain", "--epochs", "3"], "--epochs where MODELS or SEEDS should be"),
    (["", "1"], "must name at least one"),
    (["plain", ","], "must name at least one"),
    (["plain", "1", "--seed", "2"], "--seed: leave it out"),
    (["plain", "1", "--device=cpu"], "--device: leave it out"),
    (["plain", "-", "--resume", "auto"], "--resume: leave it out"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes(tmp_path: Path, stub: dict[str, str], words: list[str], message: str) -> None:
    code, out, err = run(tmp_path, stub, "sweep.sh", *words)
    assert (code, out) == (2, "")
    assert err.startswith("sweep.sh: ")
    assert message in err
    assert not (tmp_path / "commands").exists()


def test_no_interpreter(tmp_path: Path, stub: dict[str, str]) -> None:
    stub["PYTHON"] = "no-such-python"
    code, _, err = run(tmp_path, stub, "sweep.sh", "plain", "1")
    assert code == 2
    assert err == "sweep.sh: no-such-python: not found; activate the environment, or set PYTHON\n"


def test_a_misspelt_flag_starts_no_run(tmp_path: Path, program: dict[str, str]) -> None:
    code, out, err = run(tmp_path, program, "sweep.sh", "plain", "1,2", "--epoch", "3")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "rsnn_fmnist: error: unknown argument --epoch; did you mean --epochs? (see --help)"
    ]


def rows(run: Path) -> list[int]:
    """The epochs in a run's records."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_and_started_again_all_are_trained(
    tmp_path: Path, program: dict[str, str], signum: int, code: int
) -> None:
    """The whole process group gets the signal, as from Ctrl-C on a terminal."""
    program["DEVICES"] = "cpu cpu cpu"
    flags = "--dataset synthetic -b 64 --checkpoint-every 0.05 --lr 0.01 --epochs".split()
    runs = [tmp_path / "runs" / f"{model}_synthetic_e400_b64_lr0.01_seed2020" for model in MODELS]
    with start(tmp_path, program, "train_all.sh", *flags, "400") as process:
        wait_for([run / "latest.pt" for run in runs])
        os.killpg(process.pid, signum)
        stopped, out, err = outcome(process)
    assert (stopped, err) == (code, "")
    assert sorted(line.split()[1] for line in out.splitlines() if line[:7] == "stopped") == sorted(
        MODELS
    )
    assert "0 finished, 0 failed, 3 left" in out
    assert all(len(rows(run)) < 400 for run in runs)
    again, out, err = run_again = run(tmp_path, program, "train_all.sh", *flags, "400")
    assert (again, err) == (0, ""), run_again
    assert "3 finished, 0 failed, 0 left" in out
    assert [rows(run) for run in runs] == [list(range(400))] * 3


@pytest.mark.slow
def test_a_model_that_fails_does_not_stop_the_others(
    tmp_path: Path, program: dict[str, str]
) -> None:
    program["DEVICES"] = "cpu cpu"
    (tmp_path / "mine.py").write_text(
        "from rsnn_fmnist.models import register\n"
        '@register("mine")\ndef mine():\n    raise ValueError("not today")\n'
    )
    flags = "--models-file mine.py --dataset synthetic -b 64 --epochs 2".split()
    code, out, _ = run(tmp_path, program, "sweep.sh", "mine plain feedback", "3", *flags)
    assert code == 1
    assert "the model mine cannot be built: ValueError: not today" in out
    assert "2 finished, 1 failed, 0 left" in out
    for model in ("plain", "feedback"):
        assert rows(tmp_path / "runs" / f"{model}_synthetic_e2_b64_seed3") == [0, 1]


@pytest.mark.parametrize(
    ("task", "model", "seed"), [(0, "plain", 5), (1, "feedback", 5), (3, "feedback", 6)]
)
def test_an_array_task_is_one_run(
    tmp_path: Path, stub: dict[str, str], task: int, model: str, seed: int
) -> None:
    stub |= {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "8"}
    words = ("plain,feedback", "5 6", "--config", "{model}.toml")
    code, _, err = run(tmp_path, stub, "slurm_array.sh", *words)
    assert (code, err) == (0, "")
    assert (tmp_path / "commands").read_text().splitlines() == [
        f"-m rsnn_fmnist --model {model} --seed {seed} --resume auto --config {model}.toml"
    ]


def test_an_array_task_without_a_run(tmp_path: Path, stub: dict[str, str]) -> None:
    stub |= {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_JOB_ID": "8"}
    code, out, err = run(tmp_path, stub, "slurm_array.sh", "plain,feedback", "5 6")
    assert (code, err) == (0, "")
    assert out == (
        "slurm_array.sh: task 4: no run is left for it; 2 models x 2 seeds take --array=0-3\n"
    )
    assert not (tmp_path / "commands").exists()
    code, _, err = run(tmp_path, stub, "slurm_array.sh", ",", "5 6")
    assert (code, err) == (2, "slurm_array.sh: MODELS and SEEDS must name at least one each\n")
    code, _, err = run(tmp_path, stub, "slurm_array.sh", "plain", "--amp", "1,2")
    assert code == 2
    assert err == "slurm_array.sh: --amp where MODELS or SEEDS should be, which come first\n"


def test_what_an_array_task_asks_for_by_default() -> None:
    """A core for a quarter of an hour: training on a GPU has not been measured."""
    lines = (SCRIPTS / "slurm_array.sh").read_text().splitlines()
    asked = [line.split()[1] for line in lines if line.startswith("#SBATCH ")]
    assert {"--cpus-per-task=1", "--time=15"} <= set(asked)
    assert "##SBATCH --gpus=1" in lines
    assert not any("gpu" in word for word in asked)


def test_an_array_task_that_fails_is_not_requeued(tmp_path: Path, stub: dict[str, str]) -> None:
    stub |= {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "8"}
    code, _, err = run(tmp_path, stub, "slurm_array.sh", "broken", "5")
    assert code == 1
    assert err == "rsnn_fmnist: error: it is broken\n"


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGUSR1, 0), (signal.SIGTERM, 143)])
def test_an_array_task_is_requeued_before_its_time_is_up(
    tmp_path: Path, program: dict[str, str], signum: int, code: int
) -> None:
    """USR1 goes to the script alone, and requeues; scancel's TERM goes to all, and does not."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$*" >>requeued\n')
    scontrol.chmod(0o755)
    program["PATH"] = f"{scontrol.parent}:{program['PATH']}"
    program |= {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "8"}
    flags = "--dataset synthetic -b 64 --checkpoint-every 0.05 --lr 0.01 --epochs 300".split()
    directory = tmp_path / "runs" / "plain_synthetic_e300_b64_lr0.01_seed1"
    with start(tmp_path, program, "slurm_array.sh", "plain", "1", *flags) as process:
        wait_for([directory / "latest.pt"])
        send = os.kill if signum == signal.SIGUSR1 else os.killpg
        send(process.pid, signum)
        stopped, out, _ = outcome(process)
    assert stopped == code
    assert "stopped by SIGTERM" in out
    requeued = tmp_path / "requeued"
    expected = "requeue 8_0\n" if signum == signal.SIGUSR1 else None
    assert (requeued.read_text() if requeued.exists() else None) == expected
    assert len(rows(directory)) < 300
    again, _, _ = run(tmp_path, program, "slurm_array.sh", "plain", "1", *flags)
    assert again == 0
    assert rows(directory) == list(range(300))
