"""The ways a run can be refused; cli.py turns them into one line and an exit code."""


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
