"""A run's directory: its name, its lock, its records."""

import errno
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from helpers.runs import rows

from rsnn_fmnist import config
from rsnn_fmnist.config import Experiment, Machine
from rsnn_fmnist.errors import RunError, UsageError
from rsnn_fmnist.storage import run_directory
from rsnn_fmnist.storage.run_directory import RunDirectory, locate, refuse_existing

EXPERIMENT = Experiment(model="plain", seed=3)


def test_its_name() -> None:
    assert locate(EXPERIMENT, Machine()) == Path("runs", "plain_seed3")
    assert locate(EXPERIMENT, Machine(output_dir="a", run_name="b")) == Path("a", "b")
    for name in ("..", ".", "~", "a/b", "/a", "a\\b", "a\nb", "a\0b"):
        with pytest.raises(UsageError, match=r"--run-name .*: must be a plain name"):
            locate(EXPERIMENT, Machine(run_name=name))


def test_a_name_that_is_too_long_for_a_file_system() -> None:
    assert locate(EXPERIMENT, Machine(run_name="n" * 255)).name == "n" * 255
    long = Experiment(model="m" * 260)
    for experiment, machine in ((EXPERIMENT, Machine(run_name="n" * 260)), (long, Machine())):
        with pytest.raises(UsageError, match=r"--run-name .*: too long") as caught:
            locate(experiment, machine)
        assert len(str(caught.value)) < 200


def test_a_directory_is_free_where_it_holds_nothing_but_a_lock(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "none")
    refuse_existing(tmp_path)
    with RunDirectory(tmp_path):
        refuse_existing(tmp_path)
    (tmp_path / "config.toml").touch()
    with pytest.raises(RunError, match=r"holds a run already: .*--resume auto.*--run-name"):
        refuse_existing(tmp_path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(RunError, match="another process is writing this run"),
        RunDirectory(tmp_path),
    ):
        pass
    with RunDirectory(tmp_path):
        pass


def test_who_holds_the_lock_is_named(tmp_path: Path) -> None:
    """Of a process on another machine it cannot be known whether it still runs."""
    own = rf"writing this run: process {os.getpid()} on {re.escape(socket.gethostname())}$"
    with RunDirectory(tmp_path), pytest.raises(RunError, match=own), RunDirectory(tmp_path):
        pass
    with FileLock(tmp_path / ".lock"):
        (tmp_path / ".lock").write_text("77\nanother-host\n")
        remedy = r": process 77 on another-host; if it has ended, delete .*\.lock$"
        with pytest.raises(RunError, match=remedy), RunDirectory(tmp_path):
            pass


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    own = rf"process {os.getpid()} on "
    with RunDirectory(tmp_path), pytest.raises(RunError, match=own), RunDirectory(tmp_path):
        pass
    message = capsys.readouterr().err
    assert "no locks on this file system" in message
    assert f"until {tmp_path / '.lock'} is deleted" in message
    (tmp_path / ".lock").write_text("77\nanother-host\n")  # left by a process that was killed
    remedy = r": process 77 on another-host; if it has ended, delete .*\.lock$"
    with pytest.raises(RunError, match=remedy), RunDirectory(tmp_path):
        pass


def test_its_records(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as records:
        records.write_records(EXPERIMENT, {"threads": 1}, [{"epoch": 0}])
        records.add_row({"epoch": 1})
    run = tmp_path / "run"
    kept = config.from_settings(Experiment, config.read_toml(run / "config.toml"))
    assert kept == EXPERIMENT
    assert json.loads((run / "environment.json").read_text()) == {"threads": 1}
    assert rows(run) == [{"epoch": 0}, {"epoch": 1}]


def test_a_row_that_could_not_be_written_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with RunDirectory(tmp_path) as records:
        records.write_records(EXPERIMENT, {}, [])
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", full)
            records.add_row({"epoch": 0})
            records.add_row({"epoch": 1})
            records.catch_up()
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 3
        assert "metrics.jsonl not written (No space left on device); training continues" in lines[0]
        assert rows(tmp_path) == []
        records.add_row({"epoch": 2})
        assert rows(tmp_path) == [{"epoch": 0}, {"epoch": 1}, {"epoch": 2}]


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunError, match=r"file.run: cannot be written .*; name another --output-dir"),
        RunDirectory(tmp_path / "file" / "run"),
    ):
        pass

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with RunDirectory(tmp_path / "run") as records:
        monkeypatch.setattr(run_directory.atomic, "write", full)
        with pytest.raises(RunError, match=r"cannot be written \(No space left"):
            records.write_records(EXPERIMENT, {}, [])
