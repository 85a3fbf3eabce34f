"""The registry of models, the three networks of the experiment, and building the one of a run.

A model is any module from pictures [N, H, W] or [N, 1, H, W] to scores [N, 10]. The three here
read a picture's columns from left to right as time steps; their scores are firing rates. A user's
own model is registered in the same way, from the user's own file (--models-file).
"""

import hashlib
import inspect
import io
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from . import config, random_state
from .arguments import closest
from .config import Experiment
from .data.pictures import CLASSES, SIDE
from .errors import RunError, UsageError, first_line, with_type
from .spiking import IF, SURROGATES, LinearRecurrentContainer, SynapseFilter
from .spiking.sequence import State, sequential_step

MODELS: dict[str, Callable[..., nn.Module]] = {}


def register(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Register a function that builds a model, under `name` for --model.

    Raises:
        ValueError: the name is taken.
    """

    def enter(factory: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if name in MODELS:
            raise ValueError(f"a model named {name!r} is registered already")
        MODELS[name] = factory
        return factory

    return enter


def options(name: str) -> set[str]:
    """The names of the options that a model takes: its factory's parameters."""
    return set(inspect.signature(_factory(name)).parameters)


def build(name: str, **chosen: Any) -> nn.Module:
    """Build a registered model.

    Raises:
        KeyError: no such model.
        TypeError: an option that the model does not take.
    """
    return _factory(name)(**chosen)


def _factory(name: str) -> Callable[..., nn.Module]:
    if name not in MODELS:
        raise KeyError(f"unknown model {name!r}; registered: {', '.join(MODELS)}")
    return MODELS[name]


class ColumnReader(nn.Sequential):
    """A Sequential over time that reads a picture column by column.

    x [N, H, W] or [N, 1, H, W] -> rates [N, classes]: the width is time, one column of H pixels a
    step, and the spikes of the last layer are averaged over it.

    A compiled training step (training/compiled_step.py) does not call `forward`, here or in the
    layers: spiking/kernels/cpu/chain.py computes the same from the weights. Evaluation does.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = x.squeeze(1)
        x_seq = x.permute(2, 0, 1)  # [N, H, W] -> [T = W, N, F = H]
        s_seq: Tensor = super().forward(x_seq)  # type: ignore[no-untyped-call]
        at_least_float32 = torch.promote_types(s_seq.dtype, torch.float32)
        return s_seq.mean(0, dtype=at_least_float32)

    def step(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Advance by one column, x [N, H] -> the last layer's spikes [N, classes], the state."""
        return sequential_step(self, x, state)


def neurons(surrogate: str, detach: bool) -> IF:
    """IF neurons of the experiment: threshold 1, hard reset to 0."""
    return IF(surrogate=SURROGATES[surrogate](), detach_reset=detach)


@register("plain")
def plain(hidden: int = 32, surrogate: str = "atan", detach_reset: str = "all") -> nn.Module:
    """No memory but the membrane: the baseline. 1,258 parameters at hidden = 32.

    Args:
        hidden: neurons of the hidden layer.
        surrogate: a name of SURROGATES.
        detach_reset: neurons without a gradient through the reset: "all", "recurrent" (only those
            inside a recurrent container) or "none".
    """
    detach = detach_reset == "all"
    return ColumnReader(
        OrderedDict(
            fc1=nn.Linear(SIDE, hidden),
            sn1=neurons(surrogate, detach),
            fc2=nn.Linear(hidden, CLASSES),
            sn2=neurons(surrogate, detach),
        )
    )


@register("feedback")
def feedback(hidden: int = 32, surrogate: str = "atan", detach_reset: str = "all") -> nn.Module:
    """A linear layer feeds the hidden spikes back one step later. 3,338 parameters at hidden = 32;
    arguments as `plain`.
    """
    recurrent = neurons(surrogate, detach_reset != "none")
    return ColumnReader(
        OrderedDict(
            fc1=nn.Linear(SIDE, hidden),
            sn1=LinearRecurrentContainer(recurrent, hidden, hidden),
            fc2=nn.Linear(hidden, CLASSES),
            sn2=neurons(surrogate, detach_reset == "all"),
        )
    )


@register("stateful-synapse")
def stateful_synapse(
    hidden: int = 32, surrogate: str = "atan", detach_reset: str = "all"
) -> nn.Module:
    """A low-pass filter follows the hidden spikes. 1,259 parameters at hidden = 32; arguments as
    `plain`.
    """
    detach = detach_reset == "all"
    return ColumnReader(
        OrderedDict(
            fc1=nn.Linear(SIDE, hidden),
            sn1=neurons(surrogate, detach),
            sy1=SynapseFilter(tau=2.0, learnable=True),
            fc2=nn.Linear(hidden, CLASSES),
            sn2=neurons(surrogate, detach),
        )
    )


@dataclass(frozen=True)
class ModelsFile:
    """A user's file, the names of its models, and those of the modules imported from its folder."""

    path: Path
    content: bytes
    names: frozenset[str]
    modules: frozenset[str]

    @property
    def digest(self) -> str:
        """What it is known by; see `digest_of`."""
        return digest_of(self.content)


def digest_of(content: bytes) -> str:
    """The SHA-256 of a models file."""
    return hashlib.sha256(content).hexdigest()


_imported: list[ModelsFile] = []  # one, or none


def imported() -> ModelsFile | None:
    """The user's file whose models are registered."""
    return _imported[0] if _imported else None


@contextmanager
def temporary_models() -> Iterator[None]:
    """Forget at the end the models of a file that is imported inside."""
    try:
        yield
    finally:
        forget_models()


def forget_models() -> None:
    """Forget the models of a user's file, and the modules from its folder."""
    for file in _imported:
        for name in file.names:
            MODELS.pop(name, None)
        for name in file.modules:
            sys.modules.pop(name, None)
    _imported.clear()


def import_models(path: Path) -> None:
    """Run a user's file, which registers models; those of the file before are forgotten.

    Raises:
        UsageError: it cannot be read.
        RunError: it fails.
    """
    forget_models()
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"--models-file {path}: no such file") from None
    except OSError as error:
        raise UsageError(f"--models-file {path}: cannot be read ({first_line(error)})") from None
    before, modules = set(MODELS), set(sys.modules)
    try:
        _execute(path, content)
    except (Exception, SystemExit) as error:  # the user's file may raise anything
        raise RunError(f"--models-file {path}: {with_type(error)}") from error
    finally:
        folder = path.resolve().parent
        new = (name for name in set(sys.modules) - modules)
        own = frozenset(name for name in new if _lies_in(folder, sys.modules[name]))
        _imported.append(ModelsFile(path, content, frozenset(MODELS) - before, own))


def _lies_in(folder: Path, module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and folder in Path(file).resolve().parents


def _execute(path: Path, content: bytes) -> None:
    """Run a file as a module that may import others from its folder, after the standard library."""
    module = ModuleType(f"models_file_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        installed = (n for n, entry in enumerate(sys.path) if entry.endswith("-packages"))
        sys.path.insert(next(installed, len(sys.path)), folder)
    exec(compile(content, str(path), "exec"), vars(module))  # not its .pyc, which may be outdated


ABBREVIATIONS = {"fb": "feedback", "ss": "stateful-synapse"}  # of the tutorial's second edition


def check_registered(name: str) -> None:
    """Raise UsageError for no model, or one that is not registered."""
    names = ", ".join(MODELS)
    if not name:
        raise UsageError(f"--model is required: {names}")
    if name not in MODELS:
        near = closest(ABBREVIATIONS.get(name, name), MODELS)
        raise UsageError(
            f"--model {name}: not registered (a model of your own takes --models-file); "
            f"registered: {names}{near}"
        )


def build_model(experiment: Experiment) -> nn.Module:
    """The experiment's model, with those of its options that the model takes.

    Raises:
        UsageError: an option differs from its default, but the model does not take it.
        RunError: the model's own code fails.
    """
    takes = options(experiment.model)
    chosen = {}
    for name in ("hidden", "surrogate", "detach_reset"):
        value = getattr(experiment, name)
        if name in takes:
            chosen[name] = value
        elif value != config.FIELDS[name].default:
            raise UsageError(
                f"{config.flag(name)} {value}: the model {experiment.model} has no such option"
            )
    try:
        model = build(experiment.model, **chosen)
    except (Exception, SystemExit) as error:  # a user's model may raise anything
        raise RunError(
            f"the model {experiment.model} cannot be built: {with_type(error)}"
        ) from error
    if not isinstance(model, nn.Module) or not list(model.parameters()):
        raise RunError(
            f"the model {experiment.model} is a {type(model).__name__}; it should be a "
            "torch.nn.Module with parameters to learn"
        )
    return model


def check_model(
    name: str, model: nn.Module, device: torch.device, autocast: AbstractContextManager[object]
) -> None:
    """Run the model on two blank pictures; leaves the model and all random states unchanged.

    Raises:
        RunError: it fails, or does not return scores [N, 10]; a checkpoint cannot hold its state.
    """
    model.eval()
    with random_state.unchanged(device), autocast:
        try:
            scores = model(torch.zeros(2, SIDE, SIDE, device=device))
        except (Exception, SystemExit) as error:  # a user's model may raise anything
            raise RunError(
                f"the model {name} fails on pictures [2, 28, 28]: {with_type(error)}"
            ) from error
    shape = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
    if shape != [2, CLASSES]:
        raise RunError(
            f"the model {name} returns {shape} for pictures [2, 28, 28]; it should return scores "
            f"[2, {CLASSES}]"
        )
    if not (scores.is_floating_point() and scores.requires_grad):
        raise RunError(f"the model {name} returns {scores.dtype} scores that carry no gradient")
    file = io.BytesIO()
    try:
        torch.save(model.state_dict(), file)
        file.seek(0)
        model.load_state_dict(torch.load(file, weights_only=True))
    except Exception as error:  # of pickle, or of the user's get_extra_state
        raise RunError(
            f"the model {name} has a state that a checkpoint cannot hold ({with_type(error)}); its "
            "get_extra_state should return tensors and plain types, for set_extra_state"
        ) from error
