"""Checkpoints: written so that none is ever lost, read so that none can do harm, resumed exactly.

A checkpoint is one zip file of torch.save: a dict of plain types and tensors. `latest.pt` holds a
whole run; `best.pt` only the weights of its best epoch.
"""

import dataclasses
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from .. import config
from ..config import Experiment
from ..errors import RunError, UsageError
from ..session import Best, Progress, Session, take_schedule
from ..training.step import Sums
from . import atomic

FORMAT, VERSION = "rsnn_fmnist checkpoint", 1

Content = dict[str, Any]

# What each kind of checkpoint holds beside format, version and kind, and of which type.
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
    """The whole state of a run between two batches."""
    random_state = {"cpu": torch.get_rng_state()}
    if session.device.type == "cuda":
        random_state["cuda"] = torch.cuda.get_rng_state(session.device)
    return {
        **_header("run", session.experiment),
        "model": session.model.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "scheduler": session.scheduler.state_dict(),
        "scaler": session.scaler.state_dict(),
        "epoch": progress.epoch,
        "batch": progress.batch,
        "sums": progress.sums.totals,
        "train_seconds": progress.train_seconds,
        "rows": progress.rows,
        "best": dataclasses.asdict(progress.best) if progress.best else None,
        "gradient_norm": progress.gradient_norm,
        "random_state": random_state,
    }


def capture_best(session: Session, progress: Progress) -> Content | None:
    """The weights of the best epoch so far with its row of metrics; None before there is one."""
    if progress.best is None:
        return None
    row = next(row for row in progress.rows if row["epoch"] == progress.best.epoch)
    return {
        **_header("weights", session.experiment),
        "model": progress.best.model,
        "row": row,
    }


def _header(kind: str, experiment: Experiment) -> Content:
    settings = dataclasses.asdict(experiment)
    return {"format": FORMAT, "version": VERSION, "kind": kind, "experiment": settings}


def restore(session: Session, content: Content, path: Path) -> Progress:
    """Put a captured state back into a session of its experiment -> the progress to go on from.

    Where the run is extended, its schedule is from here on that of a run of the new length.

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
        torch.set_rng_state(content["random_state"]["cpu"])
        if session.device.type == "cuda" and "cuda" in content["random_state"]:
            torch.cuda.set_rng_state(content["random_state"]["cuda"], session.device)
        sums = Sums(session.device)
        sums.totals.copy_(content["sums"])
        best = Best(**content["best"]) if content["best"] else None
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise RunError(f"{path}: does not fit this run ({_first_line(error)})") from None
    return Progress(
        content["epoch"],
        sums,
        content["batch"],
        content["train_seconds"],
        list(content["rows"]),
        best,
        content.get("gradient_norm"),
    )


def _check_state(session: Session, content: Content) -> None:
    """Raises ValueError where a tensor has not the shape and dtype of the one it is copied to.

    torch checks the model's shapes only; an optimizer's fused loop would trust the rest.
    """
    model = session.model.state_dict()
    best = content["best"]["model"] if content["best"] else content["model"]
    for weights in (content["model"], best):
        if weights.keys() != model.keys():
            raise ValueError("the weights have other names")
        for name, tensor in weights.items():
            if (tensor.shape, tensor.dtype) != (model[name].shape, model[name].dtype):
                raise ValueError(f"{name} is {list(tensor.shape)} {tensor.dtype}")
    parameters = [p for group in session.optimizer.param_groups for p in group["params"]]
    for index, state in content["optimizer"]["state"].items():
        for name, value in state.items():
            if value is not None and value.shape not in (parameters[index].shape, torch.Size()):
                raise ValueError(f"the optimizer's {name} is {list(value.shape)}")
    if bool(content["scaler"]) != session.scaler.is_enabled():
        raise ValueError(
            "by itself --amp is float16 on CUDA and bfloat16 elsewhere; a run that is to move "
            "between them names its --amp-dtype from the start"
        )
    batches = len(session.train) // session.experiment.batch_size
    if content["epoch"] < 0 or not 0 <= content["batch"] <= batches:
        raise ValueError(f"it stands at epoch {content['epoch']}, batch {content['batch']}")
    if content["sums"].shape != (4,):
        raise ValueError(f"the sums are {list(content['sums'].shape)}")
    if not isinstance(content.get("gradient_norm"), float | None):
        raise ValueError("the gradient's norm is no number")


def save(path: Path, content: Content, *, keep_previous: bool = False) -> None:
    """Write a checkpoint; see `atomic.write`.

    Raises:
        OSError: it could not be written; what stood at `path` still does.
    """
    try:
        atomic.write(path, lambda file: torch.save(content, file), keep_previous=keep_previous)
    except RuntimeError as error:  # torch wraps some failures to write
        raise OSError(_first_line(error)) from error


def load(path: Path) -> Content:
    """Read a checkpoint of either kind, checked, onto the CPU.

    Raises:
        RunError: not a checkpoint, damaged, of another version, or one that would run code.
    """
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RunError(f"{path}: refused, it would run code ({_first_line(error)})") from None
    except RunError:
        raise
    except Exception as error:  # zipfile and torch fail in many ways on a damaged file
        raise RunError(f"{path}: cannot be read as a checkpoint ({_first_line(error)})") from None
    _check_content(content, path)
    return dict(content)


def _check_archive(path: Path) -> None:
    """The zip file as torch writes it: stored, no larger unpacked than packed, sums right."""
    if not zipfile.is_zipfile(path):
        raise RunError(f"{path}: not a checkpoint of rsnn_fmnist (or cut short)")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise RunError(f"{path}: not a checkpoint of rsnn_fmnist (its entries are packed)")
        damaged = archive.testzip()
    if damaged:
        raise RunError(f"{path}: damaged: the check sum of {damaged} is wrong")


def _check_content(content: object, path: Path) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunError(f"{path}: not a checkpoint of rsnn_fmnist")
    if content.get("version") != VERSION:
        raise RunError(
            f"{path}: written in format version {content.get('version')}; this program reads "
            f"version {VERSION}"
        )
    keys = KEYS.get(content.get("kind", ""))
    if keys is None:
        raise RunError(f"{path}: a checkpoint of unknown kind {content.get('kind')!r}")
    for key, kind in keys.items():
        if not isinstance(content.get(key, ...), kind):
            raise RunError(f"{path}: damaged: {key!r} is missing or not what it should be")
    rows = content.get("rows", [])
    if not all(
        isinstance(row, dict) and {"epoch", "seconds", "test_acc1"} <= row.keys() for row in rows
    ):
        raise RunError(f"{path}: damaged: its rows of metrics are not what they should be")


def experiment_of(content: Content, path: Path) -> Experiment:
    """The experiment that a checkpoint belongs to.

    Raises:
        RunError: settings that this program does not know.
    """
    settings = content["experiment"]
    names = {field.name for field in dataclasses.fields(Experiment)}
    if settings.keys() != names:
        differing = ", ".join(sorted(map(str, settings.keys() ^ names)))
        raise RunError(f"{path}: damaged or of another version (settings: {differing})")
    try:
        return Experiment(**{n: config.check(n, v, f"{n} =") for n, v in settings.items()})  # type: ignore[arg-type]
    except UsageError as error:
        raise RunError(f"{path}: damaged: {error}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
