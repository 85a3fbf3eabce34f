"""Download missing FashionMNIST archives with torchvision, one process at a time."""

import contextlib
import io
import socket
import tempfile
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import RunError, first_line, note, on_terminal

TIMEOUT = 20.0  # seconds without a byte


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, and say so on standard error if that takes waiting.

    Raises:
        OSError: it cannot be written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        note(f"waiting for the process that holds {path}; if there is none, delete it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fetch(raw: Path, names: list[str]) -> None:
    """Put the archive `NAME.gz` of each name into the folder `raw`, whole and with the right md5.

    Raises:
        RunError: the folder cannot be written, or the download fails.
    """
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    timeout = socket.getdefaulttimeout()
    # torchvision always draws a bar
    bar = contextlib.nullcontext() if on_terminal() else contextlib.redirect_stderr(io.StringIO())
    try:
        socket.setdefaulttimeout(TIMEOUT)
        raw.mkdir(parents=True, exist_ok=True)
        with locked(raw / "download.lock"), tempfile.TemporaryDirectory(dir=raw) as part, bar:
            for archive, md5 in FashionMNIST.resources:
                if archive.removesuffix(".gz") in names and not (raw / archive).is_file():
                    download_url(FashionMNIST.mirrors[0] + archive, part, archive, md5)
                    (Path(part) / archive).replace(raw / archive)
    except (OSError, HTTPException, RuntimeError) as error:  # the last for a wrong md5
        raise RunError(
            f"cannot download FashionMNIST to {raw} ({first_line(error)}): check the network and "
            "the folder, put the archives there by hand, or train on --dataset synthetic"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
