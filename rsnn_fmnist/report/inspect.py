"""One test picture in the network of a checkpoint: its figure, its class, and what it costs."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from ..config import Machine
from ..data.pictures import CLASS_NAMES
from ..errors import RunError, UsageError, note
from ..models import imported
from ..storage import checkpoint
from ..storage.resume import directory_of, import_kept_models, newest, refuse_other_models
from ..tracking.diagnostics import record_pictures
from .energy import ACCUMULATE, MULTIPLY_ACCUMULATE, Operations, count_operations
from .measurements import open_test

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def inspect_picture(
    path: Path, index: int, machine: Machine, figures: ModuleType
) -> tuple[str, str, "Figure"]:
    """Run test picture `index` through the network of a checkpoint, or of a run's latest one.

    Returns:
        The lines to print, the figure's file name, and the figure.
    Raises:
        UsageError: there is no such file or picture.
        RunError: no readable checkpoint, or its weights do not fit.
    """
    content = read(path)
    directory = directory_of(path)
    import_kept_models(machine, content, directory)
    refuse_other_models(content, directory)
    if file := imported():
        note(f"running {file.path}")
    experiment = checkpoint.experiment_of(content, path)
    session = open_test(experiment, machine)
    if not 0 <= index < len(session.test):
        raise UsageError(f"--index {index}: must be from 0 to {len(session.test) - 1}")
    checkpoint.load_weights(session.model, content["model"], path)
    x, labels, scores, recording = record_pictures(session, torch.tensor([index]))
    label, answer = int(labels[0]), int(scores[0].argmax())
    figure = figures.network_at_work(x[0], label, scores[0], figures.sample(recording, 0))
    try:
        cost = cost_lines(count_operations(session.model, [x]))
    except ValueError as error:  # a layer whose operations are not known
        cost = f"operations are not counted: {error}"
    lines = f"test picture {index}: {CLASS_NAMES[label]}, classified as {CLASS_NAMES[answer]}\n"
    return lines + cost, f"{_stem(path)}_picture{index}.png", figure


def read(path: Path) -> checkpoint.Content:
    """A checkpoint, or a run directory's latest one."""
    if not path.exists():
        raise UsageError(f"--inspect {path}: no such file or directory")
    content = newest(path) if path.is_dir() else checkpoint.load(path)
    if content is None:
        raise RunError(f"--inspect {path}: holds no checkpoint of a run")
    return content


def cost_lines(operations: Operations) -> str:
    """What a picture costs with spikes and without, one line each."""
    accumulate, multiply = ACCUMULATE * 1e12, MULTIPLY_ACCUMULATE * 1e12
    return (
        f"with spikes: {operations.synaptic_operations:,.0f} synaptic operations (spikes times "
        f"fan-out); {operations.accumulates:,.0f} accumulates and "
        f"{operations.multiply_accumulates:,.0f} multiply-accumulates remain, "
        f"{operations.joules * 1e9:,.1f} nJ\n"
        f"without spikes: {operations.dense_multiply_accumulates:,.0f} multiply-accumulates, "
        f"{operations.dense_joules * 1e9:,.1f} nJ ({accumulate:.1f} and {multiply:.1f} pJ each, "
        "45 nm, Horowitz 2014)"
    )


def _stem(path: Path) -> str:
    """The name of a run and, where one is named, of its checkpoint."""
    path = path.resolve()
    return path.name if path.is_dir() else f"{path.parent.name}_{path.stem}"
