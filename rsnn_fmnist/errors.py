"""The ways a run can be refused, which cli.py turns into one line and an exit code; and what is
told of a run that goes on.
"""

import contextlib
import sys


class RunError(Exception):
    """This machine, the data or a file lacks something; the message says what to do. Exit 1."""

    exit_code = 1
    alike = False  # of several processes, each meets it, and one tells it


class DivergedError(RunError):
    """The loss or a weight is no longer finite."""

    alike = True


class UsageError(RunError):
    """A mistake in flags or configuration; the message names the value. Exit 2."""

    exit_code = 2
    alike = True


def warn(message: str) -> None:
    """Tell on standard error, in a line, what the user should know."""
    with contextlib.suppress(OSError):  # as when standard error is a file on a full disk
        print(f"rsnn_fmnist: warning: {message}", file=sys.stderr, flush=True)
