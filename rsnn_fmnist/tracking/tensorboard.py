"""TensorBoard events: one point an epoch, none twice, also over a resume.

The tags of metrics are here, those of what happens inside the network in diagnostics.py.
"""

import dataclasses
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import Experiment
from ..errors import RunError, first_line, warn, with_type
from ..session import Row
from .diagnostics import Diagnostics, import_figures

FIRST_PAGE = {  # TensorBoard sorts groups of tags by name: these two are what it shows first
    f"{group}/{part}": f"{part}_{metric}"
    for group, metric in (("accuracy", "acc1"), ("loss", "loss"))
    for part in ("train", "val", "test")
}
SCALARS = (  # metrics that are tags under their own names; other tags sort behind them
    "train_loss",
    "train_acc1",
    "train_acc5",
    "val_loss",
    "val_acc1",
    "val_acc5",
    "test_loss",
    "test_acc1",
    "test_acc5",
    "lr",
    "train_images_per_second",
)
HPARAMS_METRICS = ("test_acc1", "test_loss", "val_acc1", "val_loss", "train_acc1", "train_loss")


class TensorBoard:
    """The events of a run.

    Points of epochs from `epoch` on, left by a run that was killed after its last checkpoint, are
    purged; points of earlier rows that are missing are written.

    Args:
        folder: the run's tb/.
        rows: the finished epochs.
        epoch: the next epoch.
        experiment: what the HParams tab shows with the last metrics.
    Raises:
        RunError: the folder is a link, whose target may belong to something else, or it cannot be
            written.
    """

    def __init__(self, folder: Path, rows: list[Row], epoch: int, experiment: Experiment) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if folder.is_symlink():
            raise RunError(f"{folder} is a link; TensorBoard events are written to a folder only")
        self.folder = folder
        others = set(threading.enumerate())
        try:
            written = _written(folder)
            purge = epoch if written else None
            self._writer: Any = SummaryWriter(str(folder), purge_step=purge)  # partly typed
        except (OSError, UnicodeError) as error:
            raise RunError(
                f"{folder}: cannot be written ({first_line(error)}); make room for it, or leave "
                "out --tb"
            ) from None
        self._threads = set(threading.enumerate()) - others
        self._hook, threading.excepthook = threading.excepthook, self._thread_failed
        self._hparams(experiment)
        for row in rows:
            epoch, points = row["epoch"], _points(row)
            missing = {t: v for t, v in points.items() if (t, epoch) not in written}
            self._scalars(missing, epoch)

    def epoch(self, row: Row, diagnostics: Diagnostics | None = None) -> None:
        """Write the points of an epoch."""
        epoch = row["epoch"]
        self._scalars(_points(row), epoch)
        if diagnostics:
            self._scalars(diagnostics.scalars(), epoch)
        if diagnostics and diagnostics.due(epoch):
            try:
                self._figures(diagnostics, epoch)
            except OSError:
                raise
            except Exception as error:  # of matplotlib or of a user's layer
                diagnostics.every = None
                warn(f"figures cannot be drawn ({with_type(error)}); training continues without")
        self._writer.flush()

    def _scalars(self, values: Mapping[str, float], epoch: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, epoch)

    def _figures(self, diagnostics: Diagnostics, epoch: int) -> None:
        pixels = import_figures("--tb-pictures").pixels
        for tag, figure in diagnostics.figures():
            self._writer.add_image(tag, pixels(figure), epoch, dataformats="HWC")
        for tag, values in diagnostics.histograms():
            self._writer.add_histogram(tag, values.float(), epoch)

    def _hparams(self, experiment: Experiment) -> None:
        """Write the settings, and the tags of the metrics whose last points are shown with them.

        SummaryWriter.add_hparams would create a second run in a folder of its own.
        """
        from torch.utils.tensorboard.summary import hparams

        metrics = {tag: 0.0 for tag in HPARAMS_METRICS if experiment.val_size or "val" not in tag}
        settings = {
            name: str(value).lower() if isinstance(value, bool) else value  # else shown as 0, 1
            for name, value in dataclasses.asdict(experiment).items()
        }
        start = hparams(settings, metrics)[:2]  # type: ignore[no-untyped-call]
        for summary in start:
            self._writer.file_writer.add_summary(summary)

    def finish(self) -> None:
        """Mark the run as finished in the HParams tab."""
        from torch.utils.tensorboard.summary import hparams

        end = hparams({}, {})[2]  # type: ignore[no-untyped-call]
        self._writer.file_writer.add_summary(end)

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """No traceback where the writer's thread cannot write: `epoch` raises that error too."""
        if failure.thread not in self._threads or not issubclass(failure.exc_type, OSError):
            self._hook(failure)


def _points(row: Row) -> dict[str, float]:
    """A row's metrics by tag."""
    tags = FIRST_PAGE | {name: name for name in SCALARS}
    return {tag: row[name] for tag, name in tags.items() if name in row}


def _written(folder: Path) -> set[tuple[str, int]]:
    """The (tag, epoch) of every scalar in the folder's events that is not purged."""
    if not any(folder.glob("events.out.tfevents.*")):
        return set()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every purge
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {(tag, p.step) for tag in events.Tags()["scalars"] for p in events.Scalars(tag)}
