"""python -m rsnn_fmnist: flags -> settings -> one run -> exit code.

config.py declares the flags; arguments.py has what all commands share.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import config
from .arguments import Parser, run_command, user_path
from .config import FIELDS, Experiment, Machine, Value

DESCRIPTION = (
    "Train a spiking neural network to read FashionMNIST column by column. "
    "python -m rsnn_fmnist --model feedback --dataset synthetic --epochs 3 needs no pictures."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (None: sys.argv) and return the exit code."""
    return run_command(_train, argv)


def _train(arguments: list[str]) -> int:
    flags = parse(arguments)
    flags.pop("debug", None)
    path = flags.pop("config", None)
    file = config.read_toml(Path(path)) if path else {}
    if flags.pop("info", False):
        from .storage.provenance import information

        print(information(config.from_settings(Machine, {**file, **flags})))
        return 0
    from .device import process_as_found
    from .run import run

    with process_as_found():
        return run(flags, file)


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The settings given as flags, checked; `config`, `info` and `debug` where given.

    Raises:
        UsageError: an unknown flag, or a value of the wrong type or out of range.
    """
    given = vars(build_parser().parse_all(arguments))
    return {name: _value(name, value) for name, value in given.items()}


def _value(name: str, given: Any) -> Value:
    if name not in FIELDS:
        return given
    value = config.from_text(name, given) if isinstance(given, str) else given
    return config.check(name, value, config.flag(name))


def build_parser() -> Parser:
    """The parser of every flag; flags that are not given are absent from its result."""
    parser = Parser(
        prog="rsnn_fmnist",
        description=DESCRIPTION,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=96),
    )
    experiment = parser.add_argument_group(
        "experiment", "what is computed; cannot change when a run resumes, --epochs aside"
    )
    machine = parser.add_argument_group("machine", "where and how; may change when a run resumes")
    for cls, group in ((Experiment, experiment), (Machine, machine)):
        for field in dataclasses.fields(cls):
            _add_flag(group, field)
    machine.add_argument(
        "--config",
        metavar="FILE.toml",
        type=partial(user_path, source="--config"),
        help="settings; flags override them",
    )
    machine.add_argument(
        "--info", action="store_true", help="print versions, devices and backends and exit"
    )
    parser.add_common()
    return parser


def _add_flag(group: Any, field: "dataclasses.Field[Any]") -> None:
    extras = field.metadata
    names = [*extras["flags"], config.flag(field.name)]
    if config.value_type(field.name) is bool:
        text = f"{extras['help']} (default: {config.flag(field.name) if field.default else 'off'})"
        group.add_argument(*names, action=argparse.BooleanOptionalAction, help=text)
        return
    shown = field.default not in ("", None)
    text = extras["help"] + (f" (default: {field.default})" if shown else "")
    choices = ",".join(extras["choices"])
    metavar = extras["metavar"] or (f"{{{choices}}}" if choices else "N")
    options = {} if extras["bare"] is None else {"nargs": "?", "const": extras["bare"]}
    group.add_argument(*names, dest=field.name, metavar=metavar, help=text, **options)
