"""The command line: flags <-> settings, errors -> one line and an exit code.

The only reader of sys.argv, for report.py too. The flags are made of config.py's declarations.
"""

import argparse
import dataclasses
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from . import __version__, config
from .config import FIELDS, Experiment, Machine, Value
from .errors import RunError, UsageError
from .interrupt import BROKEN_PIPE, InterruptedRunError

DESCRIPTION = (
    "Train a spiking neural network to read FashionMNIST column by column. "
    "python -m rsnn_fmnist --model feedback --dataset synthetic --epochs 3 needs no pictures."
)
PATIENCE = 10.0  # seconds that a process gives another one to tell their error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's own) and return the exit code."""
    return answer(_dispatch, argv)


def answer(do: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """Do what the arguments ask and return its exit code; tell an error in one line instead."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    signal.signal(signal.SIGTERM, _stop)
    try:
        try:
            return do(arguments)
        finally:
            _flush()
    except RunError as error:
        return _report(error, error.exit_code, arguments)
    except KeyboardInterrupt:
        print("rsnn_fmnist: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except InterruptedRunError as stop:  # before there was anything to save
        return stop.exit_code
    except BrokenPipeError:  # nobody reads any more (`| head`)
        return 128 + BROKEN_PIPE
    except Exception as error:  # a defect, here or in a user's model: still one line
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        return _report(RunError(f"{message} (--debug shows where)"), 1, arguments)


def _dispatch(arguments: list[str]) -> int:
    flags = parse(arguments)
    flags.pop("debug", None)
    path = flags.pop("config", None)
    file = config.read_toml(Path(path)) if path else {}
    if flags.pop("info", False):
        from .storage.provenance import information

        print(information(config.from_settings(Machine, {**file, **flags})))
        return 0
    from .run import run

    return run(flags, file)


def _flush() -> None:
    """Send out what was printed; where nobody takes it, drop it before Python complains."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(signum: int, _: FrameType | None) -> NoReturn:
    """SIGTERM before the run can be saved, or a second time: stop at once, with its exit code."""
    raise SystemExit(128 + signum)


def _report(error: RunError, code: int, arguments: list[str]) -> int:
    if _told_elsewhere(error):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
        time.sleep(PATIENCE)
        return code
    if "--debug" in arguments:
        traceback.print_exc()
    line = " ".join(str(error).split())
    more = " (see --help)" if isinstance(error, UsageError) else ""
    print(f"rsnn_fmnist: error: {line}{more}", file=sys.stderr)
    return code


def _told_elsewhere(error: RunError) -> bool:
    """Whether another process on this machine meets the same error and tells it.

    torchrun ends all when one has ended, so it must be given the time to.
    """
    if not error.alike or "LOCAL_RANK" not in os.environ:
        return False
    from .world import World

    return World.of_environment().local_rank > 0


class Parser(argparse.ArgumentParser):
    """Tells a mistake as UsageError, in one line, instead of printing the usage block."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # argparse's own takes -1e-4 and -inf for flags, and would say that a value is missing
        self._negative_number_matcher = re.compile(r"^-(\d|\.\d|inf$|nan$)")

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        """As parse_intermixed_args; an unknown flag is refused with the closest match."""
        namespace, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            known = [word for action in self._actions for word in action.option_strings]
            word = unknown[0].split("=")[0]
            raise UsageError(f"unknown argument {word}{config.closest(word, known)}")
        return namespace


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The settings that flags name explicitly, checked, and `config`, `info`, `debug` if given.

    Raises:
        UsageError: an unknown flag, or a value out of type or range.
    """
    given = vars(build_parser().parse_all(arguments))
    return {name: _value(name, value) for name, value in given.items()}


def _value(name: str, given: Any) -> Value:
    if name not in FIELDS:
        return given
    value = config.from_text(name, given) if isinstance(given, str) else given
    return config.check(name, value, config.flag(name))


def build_parser() -> Parser:
    """The parser of every flag; what is not given does not appear in the result."""
    parser = Parser(
        prog="rsnn_fmnist",
        description=DESCRIPTION,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=96),
    )
    experiment = parser.add_argument_group(
        "experiment", "what is computed; fixed for the life of a run, --epochs aside"
    )
    machine = parser.add_argument_group("machine", "where and how; may change when a run resumes")
    for cls, group in ((Experiment, experiment), (Machine, machine)):
        for field in dataclasses.fields(cls):
            _add_flag(group, field)
    machine.add_argument("--config", metavar="FILE.toml", help="settings; flags override them")
    machine.add_argument(
        "--info", action="store_true", help="print versions, devices and backends, and stop"
    )
    machine.add_argument(
        "--debug", action="store_true", help="show a traceback with the message of an error"
    )
    parser.add_argument("--version", action="version", version=f"rsnn_fmnist {__version__}")
    return parser


def _add_flag(group: Any, field: "dataclasses.Field[Any]") -> None:
    extras = field.metadata
    names = [*extras["flags"], config.flag(field.name)]
    if config.value_type(field.name) is bool:
        text = f"{extras['help']} (default: {'on' if field.default else 'off'})"
        group.add_argument(*names, action=argparse.BooleanOptionalAction, help=text)
        return
    shown = field.default not in ("", None)
    text = extras["help"] + (f" (default: {field.default})" if shown else "")
    choices = ",".join(extras["choices"])
    metavar = extras["metavar"] or (f"{{{choices}}}" if choices else "N")
    options = {} if extras["bare"] is None else {"nargs": "?", "const": extras["bare"]}
    group.add_argument(*names, dest=field.name, metavar=metavar, help=text, **options)
