"""Fetch missing FashionMNIST archives, through torchvision, one process at a time.

An archive appears under its name only when it is whole and its md5 right. Reading archives is
data.py's.
"""

import contextlib
import io
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock

from ..errors import RunError

LOCK = "download.lock"
STALL_SECONDS = 20  # without a byte, after which the network counts as absent


def fetch(raw: Path, archives: dict[str, str]) -> None:
    """Put each archive `NAME.gz` of {name: md5} into `raw`, which is made if need be.

    Raises:
        RunError: the folder cannot be written, or the network does not deliver.
    """
    missing = [folder for folder in (raw, *raw.parents) if not folder.exists()]
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with FileLock(raw / LOCK):
            for name, md5 in archives.items():
                if not (raw / f"{name}.gz").is_file():  # another process may have fetched it
                    _fetch_one(raw, f"{name}.gz", md5)
    except RunError:
        _remove_empty(missing, raw)
        raise
    except OSError as error:
        raise RunError(
            f"cannot download FashionMNIST to {raw} ({error.strerror or error}); name a "
            "--data-path that can be written, or train on --dataset synthetic"
        ) from None


def _remove_empty(made: list[Path], raw: Path) -> None:
    """After a failure, take away the folders that were made for nothing, innermost first."""
    if made and {path.name for path in raw.iterdir()} <= {LOCK}:
        (raw / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another process has put something there
            for folder in made:
                folder.rmdir()


def _fetch_one(raw: Path, archive: str, md5: str) -> None:
    """Download in a thread, so that a network that swallows packets cannot hold us for minutes."""
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    part = raw / f"{archive}.part"
    failures: list[Exception] = []

    def download() -> None:
        try:
            download_url(FashionMNIST.mirrors[0] + archive, raw, part.name, md5)
        except Exception as error:  # urllib, sockets and torchvision each have their own
            failures.append(error)

    worker = threading.Thread(target=download, daemon=True)
    try:
        with _bars_on_a_terminal_only():
            worker.start()
            if not _finishes(worker, part):
                failures.append(TimeoutError(f"no answer for {STALL_SECONDS} s"))
        if failures:
            raise RunError(
                f"cannot download {archive} ({failures[0]}): is there a network? Without one, put "
                f"the four archives into {raw}, or train on --dataset synthetic"
            )
        part.replace(raw / archive)
    finally:
        part.unlink(missing_ok=True)


def _finishes(worker: threading.Thread, part: Path) -> bool:
    """Wait for the download; False when its file has stayed the same for STALL_SECONDS."""
    size, changed = -1, time.monotonic()
    while worker.is_alive():
        worker.join(0.2)
        now = part.stat().st_size if part.exists() else 0
        if now != size:  # smaller too: what a killed process left is begun anew
            size, changed = now, time.monotonic()
        if worker.is_alive() and time.monotonic() - changed > STALL_SECONDS:
            return False
    return True


def _bars_on_a_terminal_only() -> contextlib.AbstractContextManager[object]:
    """torchvision draws its progress on standard error wherever that goes."""
    if sys.stderr is not None and sys.stderr.isatty():
        return contextlib.nullcontext()
    return contextlib.redirect_stderr(io.StringIO())
