"""Checkpoints: what they hold, how they are read safely, and how a run resumes from one exactly.

A checkpoint is one zip file of torch.save: a dict of plain types and tensors. `latest.pt` holds a
whole run; `best.pt` only the weights of its best epoch. run_directory.Saver writes them.
"""

import dataclasses
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .. import config, random_state
from ..config import Experiment
from ..errors import RunError, UsageError, first_line
from ..metrics import Sums
from ..models import imported
from ..session import Best, Progress, Session, take_schedule
from . import atomic

FORMAT, VERSION = "rsnn_fmnist checkpoint", 1

Content = dict[str, Any]

# What each kind of checkpoint holds besides format, version and kind, and of which type.
KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "run": {
        "experiment": dict,
        "model": dict,
        "optimizer": dict,
        "scheduler": dict,
        "scaler": dict,
        "epoch": int,
        "batch": int,
        "sums": torch.Tensor,
        "train_seconds": float,
        "rows": list,
        "best": (dict, type(None)),
        "random_state": dict,
    },
    "weights": {"experiment": dict, "model": dict, "row": dict},
}


def capture(session: Session, progress: Progress) -> Content:
    """The whole state of a run, between two batches."""
    return {
        **_header("run", session.experiment),
        "model": tree_map(_own, dict(session.model.state_dict())),
        "optimizer": tree_map(_own, session.optimizer.state_dict()),
        "scheduler": session.scheduler.state_dict(),
        "scaler": session.scaler.state_dict(),
        "epoch": progress.epoch,
        "batch": progress.batch,
        "sums": progress.sums.totals,
        "train_seconds": progress.train_seconds,
        "rows": progress.rows,
        "best": dataclasses.asdict(progress.best) if progress.best else None,
        "gradient_norm": progress.gradient_norm,
        "random_state": random_state.capture(session.device),
    }


def _own(value: Any) -> Any:
    """A tensor with memory of its own: torch.save would write all that a view is a part of."""
    return value.clone() if isinstance(value, Tensor) else value


def capture_best(session: Session, progress: Progress) -> Content | None:
    """The weights and the row of metrics of the best epoch so far; None before the first."""
    if progress.best is None:
        return None
    row = next(row for row in progress.rows if row["epoch"] == progress.best.epoch)
    return {
        **_header("weights", session.experiment),
        "model": progress.best.model,
        "row": row,
    }


def _header(kind: str, experiment: Experiment) -> Content:
    file = imported()
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "experiment": dataclasses.asdict(experiment),
        "models_file": file.digest if file else None,
    }


def restore(session: Session, content: Content, path: Path) -> Progress:
    """Load a checkpoint into a session of its experiment; return the progress to resume from.

    Where the run is extended, its schedule becomes that of a run of the new length.

    Raises:
        RunError: the state does not fit the session.
    """
    try:
        _check_state(session, content)
        session.model.load_state_dict(content["model"])
        session.optimizer.load_state_dict(content["optimizer"])
        session.scaler.load_state_dict(content["scaler"])
        if content["experiment"]["epochs"] == session.experiment.epochs:
            session.scheduler.load_state_dict(content["scheduler"])
        else:
            take_schedule(session, content["epoch"])
        random_state.restore(content["random_state"], session.device)
        sums = Sums(session.device)
        sums.totals.copy_(content["sums"])
        best = Best(**content["best"]) if content["best"] else None
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise RunError(f"{path}: does not fit this run ({first_line(error)})") from None
    return Progress(
        content["epoch"],
        sums,
        content["batch"],
        content["train_seconds"],
        list(content["rows"]),
        best,
        content.get("gradient_norm"),
    )


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load the weights of the checkpoint at `path` into a model.

    Raises:
        RunError: they do not fit.
    """
    try:
        _check_weights(model, weights)
    except (ValueError, AttributeError) as error:
        raise RunError(f"{path}: does not fit the model ({first_line(error)})") from None
    model.load_state_dict(weights)


def _check_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raise ValueError where the names, a shape or a dtype differ from the model's."""
    own = model.state_dict()
    if weights.keys() != own.keys():
        raise ValueError("the weights have other names")
    for name, value in own.items():
        tensor = weights[name]
        if isinstance(value, Tensor) and (tensor.shape, tensor.dtype) != (value.shape, value.dtype):
            raise ValueError(f"{name} is {list(tensor.shape)} {tensor.dtype}")


def _check_state(session: Session, content: Content) -> None:
    """Raise ValueError where a part does not have the shape and type of what it replaces.

    torch checks the model's shapes only; an optimizer's fused loop relies on the rest.
    """
    _check_weights(session.model, content["model"])
    if content["best"]:
        _check_weights(session.model, content["best"]["model"])
    parameters = [p for group in session.optimizer.param_groups for p in group["params"]]
    for index, state in content["optimizer"]["state"].items():
        for name, value in state.items():
            if value is not None and value.shape not in (parameters[index].shape, torch.Size()):
                raise ValueError(f"the optimizer's {name} is {list(value.shape)}")
    if bool(content["scaler"]) != session.scaler.is_enabled():
        raise ValueError(
            "--amp-dtype auto is float16 on CUDA and bfloat16 elsewhere; to resume on the other "
            "kind of device, a run must name its --amp-dtype from the start"
        )
    batches = len(session.train) // session.experiment.batch_size
    if content["epoch"] < 0 or not 0 <= content["batch"] <= batches:
        raise ValueError(f"there is no epoch {content['epoch']}, batch {content['batch']}")
    if content["sums"].shape != (4,):
        raise ValueError(f"the sums are {list(content['sums'].shape)}")
    if not isinstance(content.get("gradient_norm"), float | None):
        raise ValueError("the gradient norm is not a number")


def load(path: Path) -> Content:
    """Read a checkpoint of either kind onto the CPU, checked.

    Raises:
        RunError: not a checkpoint, damaged, of another version, or with code in it.
    """
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RunError(f"{path}: refused, since it would run code ({first_line(error)})") from None
    except RunError:
        raise
    except Exception as error:  # zipfile and torch fail in many ways on a damaged file
        raise RunError(f"{path}: cannot be read as a checkpoint ({first_line(error)})") from None
    _check_content(content, path)
    return dict(content)


def _check_archive(path: Path) -> None:
    """Check a zip file as torch writes it: stored, no larger unpacked than packed, sums correct."""
    if not zipfile.is_zipfile(path):
        raise RunError(f"{path}: not a checkpoint of rsnn_fmnist (or cut short)")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise RunError(f"{path}: not a checkpoint of rsnn_fmnist (its entries are packed)")
    try:
        atomic.check_sums(path)
    except ValueError as error:
        raise RunError(f"{path}: damaged: {error}") from None


def _check_content(content: object, path: Path) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunError(f"{path}: not a checkpoint of rsnn_fmnist")
    if content.get("version") != VERSION:
        raise RunError(
            f"{path}: has format version {content.get('version')}; this program reads version "
            f"{VERSION}"
        )
    keys = KEYS.get(content.get("kind", ""))
    if keys is None:
        raise RunError(f"{path}: a checkpoint of unknown kind {content.get('kind')!r}")
    for key, kind in keys.items():
        if not isinstance(content.get(key, ...), kind):
            raise RunError(f"{path}: damaged: {key!r} is missing or of another type")
    rows = content.get("rows", [])
    if not all(
        isinstance(row, dict) and {"epoch", "seconds", "test_acc1"} <= row.keys() for row in rows
    ):
        raise RunError(f"{path}: damaged: its rows of metrics are incomplete")


def experiment_of(content: Content, path: Path) -> Experiment:
    """The experiment of a checkpoint; a setting that is newer than the checkpoint has its default.

    Raises:
        RunError: settings that this program does not know.
    """
    settings = content["experiment"]
    unknown = settings.keys() - {field.name for field in dataclasses.fields(Experiment)}
    if unknown or "model" not in settings:
        differing = ", ".join(sorted(map(str, unknown))) or "no model"
        raise RunError(f"{path}: damaged or of a newer version (settings: {differing})")
    try:
        return Experiment(**{n: config.check(n, v, f"{n} =") for n, v in settings.items()})  # type: ignore[arg-type]
    except UsageError as error:
        raise RunError(f"{path}: damaged: {error}") from None
