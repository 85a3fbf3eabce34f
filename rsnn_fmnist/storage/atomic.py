"""Files that appear whole: written next to their place, flushed to the disk, then renamed.

At every instant the name holds the old content or the new, never a part of either. A link at the
name, or at the temporary name, is replaced and never written through.
"""

import contextlib
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import first_line


def write(path: Path, fill: Callable[[BinaryIO], object], *, keep_previous: bool = False) -> None:
    """Replace the file at `path` by what `fill(file)` writes.

    Args:
        keep_previous: keep the old file as `previous(path)`.
    Raises:
        OSError: it could not be written; the old file is unchanged.
    """
    fresh = path.with_name(path.name + ".tmp")
    fresh.unlink(missing_ok=True)
    try:
        with fresh.open("xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.is_file():
            _keep(path)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def save(path: Path, content: object, *, keep_previous: bool = False) -> None:
    """`write` of what torch.save makes of `content`; raises OSError for all failures."""
    try:
        write(path, lambda file: torch.save(content, file), keep_previous=keep_previous)
    except RuntimeError as error:  # torch wraps some failures to write
        raise OSError(first_line(error)) from error


def check_sums(path: Path) -> None:
    """Verify the check sums of a file of torch.save, which torch.load ignores.

    Raises:
        ValueError: one is wrong.
    """
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"the check sum of {damaged} is wrong")


def previous(path: Path) -> Path:
    """Where the file before the present one is kept: latest.pt -> latest.prev.pt."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def _keep(path: Path) -> None:
    """Link the previous name to the present file, so that neither name ever vanishes."""
    link = previous(path).with_name(previous(path).name + ".tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, link)
    link.replace(previous(path))


def _sync(folder: Path) -> None:
    """Make a rename in the folder durable, where the system can (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
