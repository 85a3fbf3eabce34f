"""Faults of real processes: signals, full disks, a closed reader, two writers of one directory."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.program import ENVIRONMENT, PROGRAM
from helpers.runs import command, final
from torture import same

from rsnn_fmnist import cli
from rsnn_fmnist.storage import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_synthetic")]

COUNT = 200  # epochs: some seconds, so that a fault comes while the run trains
EPOCHS = f"--epochs {COUNT} --checkpoint-every 0.05"
ENDLESS = "--epochs 1000000 --checkpoint-every 0.05"
DISK = 524288  # bytes of a tiny disk


def start(folder: Path, flags: str, **options: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [*PROGRAM, *command(folder, flags)], env=ENVIRONMENT, **pipes, **options
    )


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for(path: Path) -> None:
    wait_until(path.exists)


def fill(disk: Path) -> Path:
    """Fill a tiny disk -> the file to remove for room."""
    filler = disk / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        file.write(b"\0" * DISK)
        file.flush()
    return filler


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """A full tiny disk inside; the checkpoint saved in disk/run before stays whole."""
    filler = fill(disk)
    yield
    checkpoint.load(disk / "run" / "latest.pt")
    filler.unlink()


def wait_for_save(run: Path) -> None:
    """Wait for a new checkpoint."""
    before = (run / "latest.pt").stat().st_ino  # each is a new file
    wait_until(lambda: (run / "latest.pt").stat().st_ino != before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The result of the run without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with start(folder, f"{EPOCHS} --tb --quiet") as process:
        assert process.wait(120) == 0
    return final(folder)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", ["", "-j 2"])
def test_asked_to_stop(
    tmp_path: Path, undisturbed: Any, signum: int, code: int, workers: str
) -> None:
    """The whole process group gets the signal, as from Ctrl-C on a terminal or a scheduler."""
    flags = f"{EPOCHS} --tb {workers}"
    with start(tmp_path, flags, start_new_session=True) as process:
        wait_for(tmp_path / "run" / "latest.pt")
        os.killpg(process.pid, signum)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert f"stopped by {signal.Signals(signum).name}" in out
    assert "Traceback" not in err
    assert cli.main(command(tmp_path, f"{EPOCHS} --tb --quiet --resume auto")) == 0
    assert same(final(tmp_path), undisturbed)


@pytest.mark.parametrize(("flags", "code"), [("", 0), ("--lr 1e30 --weight-decay 1e30", 1)])
def test_workers_end_with_the_program(tmp_path: Path, flags: str, code: int) -> None:
    """Finished or diverged, although workers block the signals that end processes."""
    arguments = command(tmp_path, f"--epochs 2 -j 2 --quiet {flags}")
    done = subprocess.run([*PROGRAM, *arguments], env=ENVIRONMENT, timeout=60, capture_output=True)
    assert done.returncode == code, done.stderr


def workers_of(pid: int) -> list[int]:
    """The loader's processes of a program."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("which", [slice(None), slice(-1, None)], ids=["all", "an idle one"])
def test_stopped_workers_do_not_hold_up_a_stop(
    tmp_path: Path, undisturbed: Any, which: slice
) -> None:
    """A batch that never comes: the wait for it ends at the first signal."""
    with start(tmp_path, f"{EPOCHS} --tb -j 2") as process:
        wait_for(tmp_path / "run" / "latest.pt")
        workers = workers_of(process.pid)
        assert len(workers) >= 2
        for worker in workers[which]:
            os.kill(worker, signal.SIGSTOP)
        time.sleep(1.0)
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "")
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert cli.main(command(tmp_path, f"{EPOCHS} --tb --quiet --resume auto")) == 0
    assert same(final(tmp_path), undisturbed)


def test_a_burst_of_signals_counts_as_one(tmp_path: Path) -> None:
    with start(tmp_path, ENDLESS) as process:
        wait_for(tmp_path / "run" / "latest.pt")
        for _ in range(50):
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
        assert process.stdout is not None
        assert "stopped by SIGTERM" in process.stdout.read()
    checkpoint.load(tmp_path / "run" / "latest.pt")


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """Every save fails: the run warns, trains to its end and exits with 1."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    flags = "--epochs 5 --checkpoint-every 0.01"
    with start(tmp_path, flags, preexec_fn=limit) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "warning: checkpoint not saved" in err
    assert err.splitlines()[-1].startswith("rsnn_fmnist: error: ")
    assert "Traceback" not in err
    assert not list((tmp_path / "run").glob("latest*"))
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KB, where mounting one is permitted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_for_a_while(tiny_disk: Path) -> None:
    """Saves fail while the disk is full; what was saved before stays whole; later ones succeed."""
    run = tiny_disk / "run"
    with start(tiny_disk, f"{ENDLESS} -b 8 --tb") as process:
        wait_for(run / "latest.pt")
        with full(tiny_disk):
            time.sleep(1)
        wait_for_save(run)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "warning: checkpoint not saved" in err
    assert "Traceback" not in err
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == checkpoint.load(run / "latest.pt")["rows"]


def test_a_disk_that_is_full_until_the_end(tiny_disk: Path) -> None:
    """The last line offers no resume, since the last checkpoint was not saved."""
    with start(tiny_disk, f"{ENDLESS} -b 8") as process:
        wait_for(tiny_disk / "run" / "latest.pt")
        with full(tiny_disk):
            time.sleep(1)
            process.terminate()
            out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "warning: checkpoint not saved" in err
    assert out.splitlines()[-1].startswith("stopped by SIGTERM in epoch ")
    assert "resume with" not in out


@pytest.mark.parametrize("flags", ["", "--tb"])
def test_a_disk_that_is_full_from_the_start(tiny_disk: Path, flags: str) -> None:
    (tiny_disk / "run").mkdir()
    fill(tiny_disk)
    with start(tiny_disk, f"--epochs 2 --quiet {flags}") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith(f"rsnn_fmnist: error: {tiny_disk / 'run'}: cannot be written (No space")
    assert "--output-dir" in line


def test_a_log_on_the_same_full_disk(tiny_disk: Path) -> None:
    """Lines that cannot be printed are lost; the run is not."""
    run = tiny_disk / "run"
    with (tiny_disk / "log").open("w") as log:
        process = subprocess.Popen(
            [*PROGRAM, *command(tiny_disk, f"{ENDLESS} -b 8")],
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
        )
        wait_for(run / "latest.pt")
        with full(tiny_disk):
            time.sleep(1)
        wait_for_save(run)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == checkpoint.load(run / "latest.pt")["epoch"]


def test_a_reader_that_closes(tmp_path: Path, undisturbed: Any) -> None:
    """`| head -5`: the run is saved before it ends."""
    with start(tmp_path, f"{EPOCHS} --tb") as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert 0 < checkpoint.load(tmp_path / "run" / "latest.pt")["epoch"] < COUNT
    assert cli.main(command(tmp_path, f"{EPOCHS} --tb --quiet --resume auto")) == 0
    assert same(final(tmp_path), undisturbed)


def test_two_writers_of_one_directory(tmp_path: Path, undisturbed: Any) -> None:
    flags = f"{EPOCHS} --tb --quiet --resume auto"
    with start(tmp_path, flags) as one, start(tmp_path, flags) as two:
        errors = [process.communicate(timeout=120)[1] for process in (one, two)]
    codes = sorted((one.returncode, two.returncode))
    assert codes in ([0, 1], [0, 0])  # refused, or begun when the other had finished
    if codes == [0, 1]:
        assert any("another process is writing this run" in err for err in errors)
    assert same(final(tmp_path), undisturbed)
