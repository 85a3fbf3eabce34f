"""A run's directory: its name, its lock, its records, and when a checkpoint is written.

    config.toml  environment.json  metrics.jsonl  latest.pt  latest.prev.pt  best.pt  tb/  .lock
    models.py, where a user's file has registered the model

No run writes to the directory of another one.
"""

import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .. import config
from ..arguments import path_problem
from ..config import Experiment, Machine
from ..errors import RunError, UsageError, first_line, warn
from ..interrupt import InterruptedRunError
from ..models import imported
from ..session import Progress, Row, Session
from . import atomic, checkpoint

CONFIG, ENVIRONMENT, METRICS = "config.toml", "environment.json", "metrics.jsonl"
MODELS_FILE = "models.py"  # a copy of --models-file
LATEST, BEST, LOCK = "latest.pt", "best.pt", ".lock"


def locate(experiment: Experiment, machine: Machine) -> Path:
    """<output-dir>/<run>.

    Raises:
        UsageError: a --run-name that is not one plain name.
    """
    name = machine.run_name or config.run_name(experiment)
    if (
        name in (".", "..", "~")
        or Path(name).name != name
        or "\\" in name
        or not name.isprintable()
    ):
        raise UsageError(
            f"--run-name {name!r:.60}: must be a plain name; the folder is --output-dir"
        )
    directory = Path(machine.output_dir) / name
    if problem := path_problem(str(directory)):
        raise UsageError(f"--run-name {name!r:.60}: {problem}")
    return directory


def refuse_existing(run: Path) -> None:
    """Raise RunError where a new run would find anything in the directory."""
    if run.is_dir() and any(p.name != LOCK for p in run.iterdir()):
        raise RunError(
            f"{run} holds a run already: continue it with --resume auto, or name another "
            "directory with --run-name"
        )


def checkpoint_in(run: Path) -> tuple[Path | None, Path | None]:
    """The latest checkpoint of a run and the one before it; None where there is none."""
    latest = run / LATEST
    before = atomic.previous(latest)
    return (latest if latest.is_file() else None), (before if before.is_file() else None)


class RunDirectory:
    """A run's directory, created and locked; use as a context manager.

    Raises (on entering):
        RunError: it cannot be written, or another process is writing it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / LOCK, timeout=0)
        self._rows: list[Row] = []
        self._behind = False  # metrics.jsonl lacks a row, or ends in a part of one

    def __enter__(self) -> "RunDirectory":
        lock = self.path / LOCK
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._lock.acquire()
            if any("flock not supported" in str(warning.message) for warning in caught):
                warn(
                    f"{self.path}: no locks on this file system; if this process is killed, other "
                    f"machines find the run locked until {lock} is deleted"
                )
            else:
                lock.write_text(
                    f"{os.getpid()}\n{socket.gethostname()}\n"
                )  # as filelock does where there are no locks
        except Timeout:
            raise RunError(
                f"{self.path}: another process is writing this run{_holder(lock)}"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def write_records(
        self, experiment: Experiment, environment: dict[str, object], rows: list[Row]
    ) -> None:
        """Write config.toml, environment.json, the models file and the rows of metrics so far.

        Raises:
            RunError: they cannot be written; the old files are unchanged.
        """
        self._rows = list(rows)
        try:
            self._put(CONFIG, config.to_toml(experiment).encode())
            self._put(ENVIRONMENT, (json.dumps(environment, indent=2) + "\n").encode())
            if models_file := imported():
                self._put(MODELS_FILE, models_file.content)
            self._put_rows()
        except OSError as error:
            raise self._unwritable(error) from None

    def add_row(self, row: Row) -> None:
        """Append an epoch to metrics.jsonl; after a failure, the next call tries again."""
        self._rows.append(row)
        if self._behind:
            self.catch_up()
            return
        try:
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(_line(row))
        except OSError as error:
            self._fall_behind(error)

    def catch_up(self) -> None:
        """Write the whole metrics.jsonl where a row is missing in it."""
        if not self._behind:
            return
        try:
            self._put_rows()
            self._behind = False
        except OSError as error:
            self._fall_behind(error)

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.path}: cannot be written ({first_line(error)}); name another --output-dir"
        )

    def _fall_behind(self, error: OSError) -> None:
        self._behind = True
        warn(
            f"{self.path / METRICS} not written ({first_line(error)}); training continues and will "
            "try again"
        )

    def _put_rows(self) -> None:
        self._put(METRICS, "".join(map(_line, self._rows)).encode())

    def _put(self, name: str, content: bytes) -> None:
        atomic.write(self.path / name, lambda file: file.write(content))


def _holder(lock: Path) -> str:
    """What the lock file says of its holder, and the remedy if that may be gone."""
    with suppress(OSError, UnicodeDecodeError, ValueError):
        process, host, *_ = lock.read_text().split()
        remedy = "" if host == socket.gethostname() else f"; if it has ended, delete {lock}"
        return f": process {int(process)} on {host}{remedy}"
    return ""


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


class Saver:
    """Writes a run's checkpoints; one is due when the last is `every` seconds old.

    A failure to save is a warning; the next save tries again. Of several processes only the first
    one saves.

    Attributes:
        failed: the last save failed.
    """

    def __init__(self, path: Path, session: Session, every: float) -> None:
        self.path = path
        self.session = session
        self.every = every
        self.failed = False
        self._saved = time.monotonic()
        self._best_epoch: int | None = None

    def due(self) -> bool:
        return self.session.world.first and time.monotonic() - self._saved >= self.every

    def save(self, progress: Progress) -> None:
        if not self.session.world.first:
            return
        try:
            self._save_best(progress)  # first: once latest.pt is finished, nothing is missing
            content = checkpoint.capture(self.session, progress)
            atomic.save(self.path / LATEST, content, keep_previous=True)
            self.failed = False
        except OSError as error:
            self.failed = True
            warn(
                f"checkpoint not saved in {self.path} ({first_line(error)}); training "
                "continues and will try again"
            )
        self._saved = time.monotonic()

    @contextmanager
    def saving_on_failure(self, progress: Progress) -> Iterator[None]:
        """Save where what runs inside, which changes nothing of the run, fails with an error."""
        try:
            yield
        except (InterruptedRunError, RunError):  # whoever catches it saves, if that is right
            raise
        except Exception:
            self.save(progress)
            raise

    def _save_best(self, progress: Progress) -> None:
        best = checkpoint.capture_best(self.session, progress)
        if best is not None and best["row"]["epoch"] != self._best_epoch:
            atomic.save(self.path / BEST, best)
            self._best_epoch = best["row"]["epoch"]
