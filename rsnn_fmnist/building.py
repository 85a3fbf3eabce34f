"""Build the model that a run names, which may be a user's own, and try it before it is trained."""

import importlib.util
import sys
from pathlib import Path

import torch
from torch import nn

from . import config, models
from .config import Experiment
from .data.fashion_mnist import CLASSES, SIDE
from .errors import RunError, UsageError
from .session import Session


def import_models(path: Path) -> None:
    """Run the user's file, which registers models.

    Raises:
        UsageError: no such file.
        RunError: it fails.
    """
    if not path.is_file():
        raise UsageError(f"--models-file {path}: no such file")
    try:
        spec = importlib.util.spec_from_file_location(f"models_file_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ImportError("not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        sys.path.insert(0, str(path.resolve().parent))  # for what lies beside it
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise RunError(f"--models-file {path}: {type(error).__name__}: {error}") from error


def build_model(experiment: Experiment) -> nn.Module:
    """The model with those of the experiment's options that it takes.

    Raises:
        UsageError: an option away from its default that the model does not take.
        RunError: the model's own code fails.
    """
    takes = models.options(experiment.model)
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
        model = models.build(experiment.model, **chosen)
    except (Exception, SystemExit) as error:  # a user's model may raise anything
        raise RunError(f"the model {experiment.model} cannot be built: {error}") from error
    if not isinstance(model, nn.Module) or not list(model.parameters()):
        raise RunError(
            f"the model {experiment.model} is no torch.nn.Module with parameters to learn, but "
            f"{type(model).__name__}"
        )
    return model


def check_model(session: Session) -> None:
    """Try the model on two pictures, leaving no trace in it or in the random state.

    Raises:
        RunError: it fails, or does not return scores [N, 10].
    """
    name = session.experiment.model
    devices = [session.device] if session.device.type == "cuda" else []
    session.model.eval()
    with torch.random.fork_rng(devices), session.precision.autocast():
        try:
            scores = session.model(torch.zeros(2, SIDE, SIDE, device=session.device))
        except (Exception, SystemExit) as error:  # a user's model may raise anything
            raise RunError(f"the model {name} fails on pictures [2, 28, 28]: {error}") from error
    shape = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
    if shape != [2, CLASSES]:
        raise RunError(
            f"the model {name} returns {shape} for pictures [2, 28, 28]; it should return scores "
            f"[2, {CLASSES}]"
        )
    if not (scores.is_floating_point() and scores.requires_grad):
        raise RunError(f"the model {name} returns {scores.dtype} scores that carry no gradient")
