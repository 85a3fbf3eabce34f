"""What all commands share: the parser, paths, closest matches, errors in one line, exit codes.

The only reader of sys.argv. The flags themselves belong to each command.
"""

import argparse
import codecs
import difflib
import io
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from . import __version__
from .errors import RunError, UsageError, with_type
from .interrupt import BROKEN_PIPE, InterruptedRunError, install

PATIENCE = 10.0  # seconds that a process waits for another one to print the error of both
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # its environment variables, of each process
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes


def run_command(command: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """Call `command` with the arguments (None: sys.argv) and return its exit code.

    An error becomes one line on standard error and its exit code. Works in any thread; signal
    handlers and streams are afterwards what they were.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    before = install({signal.SIGTERM: _stop})
    try:
        with _printable():
            return _exit_code(command, arguments)
    finally:  # raised while the interpreter exits, SystemExit would only print a traceback
        install(before)


def _exit_code(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    try:
        try:
            return command(arguments)
        finally:
            _flush()
    except RunError as error:
        return _report(error, error.exit_code, arguments)
    except KeyboardInterrupt:
        print("rsnn_fmnist: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except InterruptedRunError as stop:  # before there was anything to save
        return stop.exit_code
    except BrokenPipeError:  # the reader of standard output has closed it, as `| head` does
        return 128 + BROKEN_PIPE
    except Exception as error:  # a defect, here or in a user's model
        return _report(RunError(f"{with_type(error)} (--debug shows where)"), 1, arguments)


@contextmanager
def _printable() -> Iterator[None]:
    """Standard output and standard error take every character, whatever their encoding."""
    codecs.register_error("rsnn_fmnist.printable", _print_otherwise)
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="rsnn_fmnist.printable")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with suppress(OSError, ValueError):  # the disk below it is full, or it is closed
                stream.reconfigure(errors=errors)


def _print_otherwise(error: UnicodeError) -> tuple[str | bytes, int]:
    """Print a byte of a file name that is no character as it is, any other character escaped."""
    assert isinstance(error, UnicodeEncodeError)
    character, after = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":  # as Python decodes such bytes
        return bytes([ord(character) - 0xDC00]), after
    return character.encode("ascii", "backslashreplace").decode(), after


def user_path(text: str, source: str) -> str:
    """A path as a user means it: with `~` or `~user` at its start expanded.

    A shell expands them too, but not in --flag=~/x, in quotes or in a TOML file.

    Args:
        source: what the error message names, such as the flag.
    Raises:
        UsageError: there is no such home folder, or no file can have this path.
    """
    problem = path_problem(text)
    if not problem and text.startswith("~"):
        try:
            return str(Path(text).expanduser())
        except RuntimeError:
            problem = "no such home folder; a file whose name begins with ~ is written ./~"
    if problem:
        raise UsageError(f"{source} {text!r:.60}: {problem}")
    return text


def path_problem(path: str) -> str:
    """Why no file can have this path; "" where one can."""
    try:
        parts = [os.fsencode(part) for part in Path(path).parts]
    except UnicodeEncodeError:
        return "has a character that file names cannot have here"
    if b"\0" in b"".join(parts):
        return "has a NUL character"
    if max(map(len, parts), default=0) > LONGEST_NAME or sum(map(len, parts)) > LONGEST_PATH:
        return f"too long; file systems allow names of {LONGEST_NAME} bytes"
    return ""


def closest(word: str, words: Iterable[str]) -> str:
    """ "; did you mean X?", or nothing where no word is near."""
    match = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {match[0]}?" if match else ""


class Parser(argparse.ArgumentParser):
    """Raises UsageError for a mistake, instead of printing the usage block and exiting."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        # argparse's own pattern takes -1e-4 and -inf for flags and reports a missing value
        self._negative_number_matcher = re.compile(r"^-(\d|\.\d|inf$|nan$)")

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def add_common(self) -> None:
        """Add the flags that every command has."""
        self.add_argument("--debug", action="store_true", help="print a traceback with an error")
        self.add_argument("--version", action="version", version=f"rsnn_fmnist {__version__}")

    def add_path(self, name: str, metavar: str, **settings: Any) -> None:
        """Add a flag, or an argument, whose value is a path; see `user_path`."""
        source = name if name.startswith("-") else metavar
        kind = partial(user_path, source=source)
        self.add_argument(name, metavar=metavar, type=kind, **settings)

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        """As parse_intermixed_args; an unknown flag is refused with the closest match."""
        namespace, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            known = [word for action in self._actions for word in action.option_strings]
            word = unknown[0].split("=")[0]
            raise UsageError(f"unknown argument {word}{closest(word, known)}")
        return namespace


def _flush() -> None:
    """Flush standard output; where that fails, drop what is left, or Python would complain."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(signum: int, _: FrameType | None) -> NoReturn:
    """SIGTERM before there is a run to save, or a second one: exit at once."""
    raise SystemExit(128 + signum)


def _report(error: RunError, code: int, arguments: list[str]) -> int:
    if error.alike and _prints_elsewhere():
        install({signal.SIGTERM: lambda *_: sys.exit(code)})
        time.sleep(PATIENCE)  # torchrun ends all processes when one has ended
        return code
    if "--debug" in arguments:
        traceback.print_exc()
    line = " ".join(str(error).split())
    more = " (see --help)" if isinstance(error, UsageError) else ""
    print(f"rsnn_fmnist: error: {line}{more}", file=sys.stderr)
    return code


def _prints_elsewhere() -> bool:
    """Whether torchrun has started another process on this machine that prints the same error."""
    started = all(os.environ.get(name, "").isdecimal() for name in TORCHRUN)
    return started and int(os.environ["LOCAL_RANK"]) > 0
