"""Files that appear whole: written beside their place, flushed to the disk, then renamed into it.

At every instant the name holds the old content or the new, never a part of one. A link that stands
at the name, or at the temporary one, is replaced and never written through.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write(path: Path, fill: Callable[[BinaryIO], object], *, keep_previous: bool = False) -> None:
    """Put what `fill(file)` writes at `path`.

    Args:
        keep_previous: what stood at `path` stays beside it, as `previous(path)`.

    Raises:
        OSError: it could not be written; what stood at `path` still does.
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


def previous(path: Path) -> Path:
    """Where the content before the present one is kept: latest.pt -> latest.prev.pt."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def _keep(path: Path) -> None:
    """A second name for the same file, so that neither name is ever without one."""
    link = previous(path).with_name(previous(path).name + ".tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, link)
    link.replace(previous(path))


def _sync(folder: Path) -> None:
    """Make a rename in it durable, where the system can (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
