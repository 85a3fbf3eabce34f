"""Every setting, declared once: what is computed (Experiment), where and how (Machine).

A declaration holds name, type, default, range and help. cli.py generates the flags from it, a TOML
file uses the same names. Later layers win: defaults < TOML < flags. Left out: which models and
devices exist.
"""

import dataclasses
import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .arguments import closest, user_path
from .errors import UsageError, first_line

Value = str | int | float | bool | None
Settings = Mapping[str, Value]


@dataclass(frozen=True)
class Rule:
    """A range: whether it holds for a value, and its wording."""

    holds: Callable[[Any], bool]
    words: str


POSITIVE_INT = Rule(lambda v: v >= 1, "at least 1")
COUNT = Rule(lambda v: v >= 0, "0 or more")
THREADS = Rule(lambda v: 1 <= v <= 1024, "from 1 to 1024")
WORKERS = Rule(lambda v: 0 <= v <= 256, "from 0 to 256")
SEED = Rule(lambda v: 0 <= v < 2**63, "from 0 to 2^63 - 1")
POSITIVE = Rule(lambda v: v > 0, "above 0")
NON_NEGATIVE = Rule(lambda v: v >= 0, "0 or more")
BELOW_ONE = Rule(lambda v: 0 <= v < 1, "in [0, 1)")
FRACTION = Rule(lambda v: 0 < v <= 1, "in (0, 1]")


def setting(
    default: Value,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    rule: Rule | None = None,
    flags: tuple[str, ...] = (),
    short: str = "",
    bare: int | None = None,
    metavar: str | None = None,
    path: bool = False,
) -> Any:
    """A dataclass field with its command line and its checks.

    Args:
        help: text of --help.
        choices: the strings allowed.
        rule: the range allowed.
        flags: spellings in addition to --long-name.
        short: short form of an experiment setting in a run's name.
        bare: value of the flag when it is given without one.
        metavar: placeholder in --help.
        path: the value is a path, in which `~` is expanded.
    """
    extras = {
        "help": help,
        "choices": choices,
        "rule": rule,
        "flags": flags,
        "short": short,
        "bare": bare,
        "metavar": metavar,
        "path": path,
    }
    return field(default=default, metadata=extras)


@dataclass(frozen=True)
class Experiment:
    """What is computed. The same experiment on the same machine gives the same numbers."""

    model: str = setting(
        "", "network to train, one of the registered models; required", metavar="NAME"
    )
    dataset: str = setting(
        "fashion-mnist",
        "the real pictures, or synthetic ones that the package draws",
        choices=("fashion-mnist", "synthetic"),
    )
    val_size: int = setting(
        0, "training pictures held out to choose the best epoch", rule=COUNT, short="val"
    )
    normalize: bool = setting(
        True, "scale pixels to mean 0 and standard deviation 1, else to [0, 1]", short="norm"
    )
    hidden: int = setting(32, "neurons in the hidden layer", rule=POSITIVE_INT, short="h")
    surrogate: str = setting(
        "atan",
        "surrogate gradient of the spike",
        choices=("atan", "sigmoid", "erf", "soft-sign", "piecewise-quadratic"),
    )
    detach_reset: str = setting(
        "all",
        "neurons that pass no gradient through the reset; recurrent: those in the container",
        choices=("all", "recurrent", "none"),
        short="detach-",
    )
    epochs: int = setting(90, "passes over the training set", rule=POSITIVE_INT, short="e")
    batch_size: int = setting(
        128, "pictures per training step", rule=POSITIVE_INT, flags=("-b",), short="b"
    )
    opt: str = setting("sgd", "optimizer", choices=("sgd", "adam"))
    lr: float = setting(
        0.1, "learning rate of the first epoch", rule=POSITIVE, short="lr", metavar="RATE"
    )
    momentum: float = setting(0.9, "momentum of --opt sgd", rule=BELOW_ONE, short="m", metavar="M")
    weight_decay: float = setting(
        0.0, "weight decay", rule=NON_NEGATIVE, flags=("--wd",), short="wd", metavar="W"
    )
    lrs: str = setting(
        "cosa",
        "learning rate schedule: CosineAnnealingLR, StepLR, or constant",
        choices=("cosa", "step", "none"),
    )
    step_size: int = setting(
        30, "epochs between two decays of --lrs step", rule=POSITIVE_INT, short="step"
    )
    step_gamma: float = setting(
        0.1, "factor of one decay of --lrs step", rule=FRACTION, short="gamma", metavar="FACTOR"
    )
    cosa_tmax: int | None = setting(
        None,
        "epochs until the rate of --lrs cosa reaches 0 (default: --epochs)",
        rule=POSITIVE_INT,
        short="tmax",
    )
    start_epoch: int = setting(
        0,
        "start counting epochs, and the schedule, at N; not with --resume",
        rule=COUNT,
        short="from",
    )
    amp: bool = setting(False, "automatic mixed precision")
    amp_dtype: str = setting(
        "auto",
        "dtype of --amp; auto: float16 on CUDA, bfloat16 elsewhere",
        choices=("auto", "float16", "bfloat16"),
    )
    seed: int = setting(
        2020, "random seed of the weights, the order of the pictures and the split", rule=SEED
    )


@dataclass(frozen=True)
class Machine:
    """Where and how it is computed. May change when a run resumes."""

    device: str = setting(
        "auto",
        "cpu, cuda, cuda:1, mps; auto: the accelerator that torch finds, else cpu",
        metavar="NAME",
    )
    backend: str = setting(
        "auto",
        "implementation of the spiking layers; auto: the fastest on the device",
        choices=("auto", "torch", "numba", "cupy"),
    )
    threads: int = setting(1, "CPU threads; more than one pays only on idle cores", rule=THREADS)
    workers: int = setting(
        0,
        "processes that load the pictures; 0: the whole set stays on the device",
        rule=WORKERS,
        flags=("-j",),
    )
    data_path: str = setting(
        "",
        "folder that holds FashionMNIST/raw (default: $RSNN_FMNIST_DATA, else data)",
        metavar="DIR",
        path=True,
    )
    download: bool = setting(True, "download missing pictures")
    cache_dataset: bool = setting(False, "keep the decoded pictures in a file next to raw/")
    output_dir: str = setting("runs", "folder for run directories", metavar="DIR", path=True)
    run_name: str = setting(
        "", "name of the run directory (default: derived from the settings)", metavar="NAME"
    )
    resume: str = setting(
        "",
        "resume a run directory or a checkpoint; auto: the settings' run, or a new one",
        metavar="auto|PATH",
        path=True,
    )
    checkpoint_every: float = setting(
        30.0, "time between checkpoints; 0: after every batch", rule=NON_NEGATIVE, metavar="SECONDS"
    )
    tb: bool = setting(False, "write TensorBoard events to the run directory")
    tb_pictures: int | None = setting(
        None,
        "as --tb, with figures of the network every EVERY epochs; without a value: 10",
        rule=POSITIVE_INT,
        bare=10,
        metavar="EVERY",
    )
    deterministic: bool = setting(False, "refuse operations that are not deterministic")
    graph: bool = setting(
        True, "run a training step as a CUDA graph or, on the CPU, compiled; off: eager"
    )
    test_only: bool = setting(False, "evaluate the checkpoint of --resume and exit")
    prepare_only: bool = setting(False, "check the settings, download the pictures and exit")
    models_file: str = setting(
        "", "Python file that registers more models", metavar="FILE.py", path=True
    )
    quiet: bool = setting(False, "print the summary and warnings only")

    def wants_events(self) -> bool:
        """Whether TensorBoard events are written, with or without figures."""
        return self.tb or self.tb_pictures is not None

    def data_root(self) -> Path:
        """The torchvision root that holds FashionMNIST/raw.

        Raises:
            UsageError: RSNN_FMNIST_DATA is no path.
        """
        variable = "RSNN_FMNIST_DATA"
        return Path(self.data_path or user_path(os.environ.get(variable, ""), variable) or "data")


C = TypeVar("C", Experiment, Machine)
FIELDS = {f.name: f for cls in (Experiment, Machine) for f in dataclasses.fields(cls)}
_TYPES = {**typing.get_type_hints(Experiment), **typing.get_type_hints(Machine)}


def value_type(name: str) -> type:
    """The type of a setting, None aside: bool, int, float or str."""
    hint = _TYPES[name]
    return (
        next(t for t in typing.get_args(hint) if t is not types.NoneType)
        if (typing.get_origin(hint) is types.UnionType)
        else hint
    )


def flag(name: str) -> str:
    """The long flag of a setting: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")


def from_text(name: str, text: str) -> Value:
    """Convert a flag's text to the setting's type; `check` tests the range."""
    kind = value_type(name)
    if _is_none(name, text):
        return None
    if kind is str:
        choices = FIELDS[name].metadata["choices"]
        return text.lower() if text.lower() in choices else text
    try:
        return kind(text)
    except ValueError:
        noun = {int: "a whole number", float: "a number"}[kind]
        raise UsageError(f"{flag(name)} {text}: not {noun}") from None


def _is_none(name: str, text: str) -> bool:
    """Whether the text stands for None, and the setting may be None."""
    return text.lower() == "none" and type(None) in typing.get_args(_TYPES[name])


def check(name: str, value: Value, source: str) -> Value:
    """Return the value in the setting's type; an int is accepted for a float.

    Args:
        source: what the error message names, such as the flag.
    Raises:
        UsageError: wrong type, not a choice, or out of range.
    """
    kind, extras = value_type(name), FIELDS[name].metadata
    if value is None and type(None) in typing.get_args(_TYPES[name]):
        return None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        nouns = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
        raise UsageError(f"{source} {json.dumps(value, default=str)}: must be {nouns[kind]}")
    if extras["choices"] and value not in extras["choices"]:
        near = closest(str(value), extras["choices"])
        raise UsageError(f"{source} {value}: choose one of {', '.join(extras['choices'])}{near}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{source} {value}: must be finite")
    if extras["rule"] and not extras["rule"].holds(value):
        raise UsageError(f"{source} {value}: must be {extras['rule'].words}")
    return user_path(value, source) if extras["path"] and isinstance(value, str) else value


def read_toml(path: Path) -> dict[str, Value]:
    """The settings of a TOML file, checked.

    Raises:
        UsageError: no such file, invalid TOML, an unknown key or a bad value.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows adds a mark
    except FileNotFoundError:
        raise UsageError(f"--config {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: cannot be read ({first_line(error)})") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--config {path}: not valid TOML: {error}") from None
    settings = {}
    for key, value in table.items():
        if key not in FIELDS:
            raise UsageError(f"{path}: unknown setting {key!r}{closest(key, FIELDS)}")
        if isinstance(value, str) and (value_type(key) is str or _is_none(key, value)):
            value = from_text(key, value)
        settings[key] = check(key, value, f"{path}: {key} =")
    return settings


def to_toml(experiment: Experiment) -> str:
    """The experiment as TOML for --config; settings that are None are left out."""
    values = dataclasses.asdict(experiment)
    return "".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n"
        for name, value in values.items()
        if value is not None
    )


def from_settings(cls: type[C], settings: Settings) -> C:
    """An Experiment or a Machine from its part of `settings`, defaults for the rest."""
    names = {f.name for f in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in settings.items() if name in names})  # type: ignore[arg-type]


def check_together(experiment: Experiment, machine: Machine) -> None:
    """Check the rules between settings.

    Raises:
        UsageError: two settings contradict each other.
    """
    if experiment.start_epoch >= experiment.epochs:
        raise UsageError(
            f"--start-epoch {experiment.start_epoch}: must be below --epochs {experiment.epochs}"
        )
    if machine.cache_dataset and experiment.dataset == "synthetic":
        raise UsageError("--cache-dataset: synthetic pictures are never cached; leave it out")


def differences(asked: Experiment, kept: Experiment) -> list[str]:
    """The names of the settings in which two experiments differ."""
    return [
        f.name
        for f in dataclasses.fields(Experiment)
        if getattr(asked, f.name) != getattr(kept, f.name)
    ]


def run_name(experiment: Experiment) -> str:
    """The run's name: model, settings that differ from the defaults in short form, seed."""
    parts = [experiment.model]
    for f in dataclasses.fields(Experiment):
        value = getattr(experiment, f.name)
        if f.name in ("model", "seed") or value == f.default:
            continue
        if isinstance(value, bool):
            word = f.metadata["short"] or f.name
            parts.append(word if value else f"no-{word}")
        else:
            parts.append(f"{f.metadata['short']}{value}")
    return "_".join([*parts, f"seed{experiment.seed}"])
