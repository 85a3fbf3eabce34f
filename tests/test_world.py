"""The processes of one run: what they share, how they stop together and resume in any number."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.event_files import points
from helpers.launch import launched
from helpers.runs import refused, rows
from torch import nn

from rsnn_fmnist.errors import RunError
from rsnn_fmnist.interrupt import Interrupt
from rsnn_fmnist.metrics import Sums
from rsnn_fmnist.storage import checkpoint
from rsnn_fmnist.world import ALONE, World

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [0, 1, 2, 7, 128])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 130])
def test_the_shares_together_are_the_batch(count: int, size: int) -> None:
    indices = torch.arange(count)
    shares = [World(rank, size).share(indices) for rank in range(size)]
    assert torch.equal(torch.cat(shares), indices)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_world_comes_from_torchruns_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert World.of_environment() == World(0, 1, 0)
    monkeypatch.setenv("RANK", "5")
    with pytest.raises(RunError, match="has RANK=5, no WORLD_SIZE, no LOCAL_RANK, which is no"):
        World.of_environment()
    monkeypatch.setenv("LOCAL_RANK", "1")
    for size in ("", "5", "many", "-8"):
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(RunError, match="start several processes with torchrun, or unset"):
            World.of_environment()
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert World.of_environment() == World(5, 8, 1)
    assert not World.of_environment().first


@pytest.mark.parametrize(
    ("variable", "value"), [("MASTER_ADDR", ""), ("MASTER_PORT", "many"), ("MASTER_PORT", "99999")]
)
def test_variables_that_name_no_meeting_point_are_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, variable: str, value: str
) -> None:
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, text in {**variables, "MASTER_PORT": "29400", variable: value}.items():
        monkeypatch.setenv(name, text) if text else monkeypatch.delenv(name, raising=False)
    assert "the processes of this run cannot connect: " in refused(capsys, 1, "--model", "plain")


def test_one_process_exchanges_nothing() -> None:
    world = ALONE
    assert world.on_first(lambda: 3) == world.on_all(lambda: 3) == 3
    assert world.gather("x") == ["x"]
    model, sums = nn.Linear(2, 2), Sums(CPU)
    sums.totals += 2
    state, weight = torch.get_rng_state(), model.weight.clone()
    world.begin(model)
    world.complete(sums, Interrupt())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.weight, weight)
    assert sums.totals.tolist() == [2] * 4


def pid_of(rank: int, job: Any) -> int:
    """The process of that rank among the launcher's children."""
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return int(child)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in Linux's /proc")
@pytest.mark.parametrize(
    ("signum", "size", "others"), [(signal.SIGKILL, 3, 2), (signal.SIGTERM, 2, 3)]
)
def test_a_job_that_loses_a_process_resumes_with_another_number(
    tmp_path: Path, signum: int, size: int, others: int
) -> None:
    """The last process receives the signal."""
    flags = "--model plain --dataset synthetic --device cpu -b 64 --lr 0.01 --epochs 100 --tb"
    words = [*flags.split(), "--run-name", "run", "--output-dir", str(tmp_path)]
    words += ["--resume", "auto", "--checkpoint-every", "0.1"]
    directory = tmp_path / "run"
    with launched(size, words) as job:
        deadline = time.monotonic() + 200
        while not (directory / "latest.pt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(pid_of(size - 1, job), signum)
        out, err = job.communicate(timeout=60)
    assert job.returncode != 0
    assert ("stopped by SIGTERM" in out) == (signum == signal.SIGTERM)
    assert err.count("Traceback") == 1, err  # torchrun's own
    done = checkpoint.load(directory / "latest.pt")["epoch"]
    assert [row["epoch"] for row in rows(directory)] == list(range(done))
    assert done < 100
    with launched(others, words) as job:
        out, err = job.communicate(timeout=200)
    assert job.returncode == 0, err
    assert f"from epoch {done}" in out
    assert [row["epoch"] for row in rows(directory)] == list(range(100))
    assert [epoch for epoch, _ in points(directory / "tb")["train_loss"]] == list(range(100))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--modle plain", "did you mean --model?"),
        ("--model plain --dataset synthetic -b 1", "fewer pictures than the 2 processes"),
        ("--resume {folder}", "holds no checkpoint of a run"),
    ],
)
def test_an_error_is_printed_once(tmp_path: Path, flags: str, message: str) -> None:
    with launched(2, flags.format(folder=tmp_path).split()) as job:
        _out, err = job.communicate(timeout=120)
    assert job.returncode == 1  # torchrun's
    lines = [line for line in err.splitlines() if line.startswith("rsnn_fmnist: ")]
    assert len(lines) == 1, err
    assert message in lines[0]
    code = 2 if "see --help" in lines[0] else 1
    codes = [line.split()[2] for line in err.splitlines() if "exitcode  :" in line]
    assert codes == [str(code)] * 2
    assert list(tmp_path.iterdir()) == []
