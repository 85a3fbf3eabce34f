"""Errors that end a run with one line and an exit code, and warnings."""

import contextlib
import sys


class RunError(Exception):
    """This machine, the data or a file lacks something; the message says what to do. Exit code 1.

    Attributes:
        alike: in a run of several processes, all of them raise this error and one prints it.
    """

    exit_code = 1
    alike = False


class DivergedError(RunError):
    """The loss or a weight is no longer finite."""

    alike = True


class UsageError(RunError):
    """A mistake in flags or configuration; the message names the value. Exit code 2."""

    exit_code = 2
    alike = True


def first_line(error: BaseException) -> str:
    """The first line of an error's message or, without one, its type's name.

    Of an OSError the system's own words, without the path.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def with_type(error: BaseException) -> str:
    """The type and the first line of an error that somebody else's code raised."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def on_terminal() -> bool:
    """Whether somebody watches standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def warn(message: str) -> None:
    """Print a warning, one line on standard error."""
    note(f"warning: {message}")


def note(message: str) -> None:
    """Print one line on standard error."""
    with contextlib.suppress(OSError, UnicodeError):  # it may be a file on a full disk
        print(f"rsnn_fmnist: {message}", file=sys.stderr, flush=True)
