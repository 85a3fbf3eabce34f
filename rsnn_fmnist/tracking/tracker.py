"""What a run tells: lines on standard output, a progress bar on a terminal, TensorBoard events.

Nothing here decides anything about the run.
"""

import dataclasses
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..config import Experiment
from ..errors import RunError, warn
from ..interrupt import BROKEN_PIPE, InterruptedRunError
from ..session import Progress, Row
from ..storage.run_directory import RunDirectory
from .diagnostics import Insight, drawing

EVENTS = "events.out.tfevents.*"
REWOUND = "events.out.tfevents.0000000000.rewound"  # files are read in the order of their names
SCALARS = (
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
HPARAMS = "_hparams_/"  # begins the tags that TensorBoard's HParams tab reads
METRICS = ("test_acc1", "test_loss", "val_acc1", "val_loss", "train_acc1", "train_loss")


class Console:
    """Lines on standard output, and a bar on standard error while that is a terminal.

    Args:
        quiet: only what `tell` is given.
        mute: nothing at all; another process speaks.
    """

    def __init__(self, epochs: int, *, quiet: bool, mute: bool = False) -> None:
        self.epochs = epochs
        self.quiet = quiet
        self.mute = mute
        self._bar: tqdm | None = None  # type: ignore[type-arg]
        self._bars = sys.stderr is not None and sys.stderr.isatty() and not (quiet or mute)

    def say(self, line: str) -> None:
        """Print a line, unless quiet.

        Raises:
            InterruptedRunError: the reader has gone (`| head`). Any other failure, such as a full
                disk under a log file, costs the line and not the run.
        """
        if not self.quiet:
            self.tell(line)

    def tell(self, line: str) -> None:
        """As `say`, quiet or not."""
        if self.mute:
            return
        try:
            print(line, flush=True)
        except BrokenPipeError:
            raise InterruptedRunError(BROKEN_PIPE) from None
        except OSError:
            pass

    def batch(self, progress: Progress, batches: int) -> None:
        """Move the bar on; it is made at the first batch of an epoch."""
        if not self._bars:
            return
        if self._bar is None:
            text = f"epoch {progress.epoch}"
            self._bar = tqdm(desc=text, total=batches, unit="batch", leave=False)
        self._bar.update(progress.batch - self._bar.n)

    def close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def epoch(self, row: Row, seconds_left: float) -> None:
        self.close_bar()
        val = f"  val {row['val_acc1']:5.2f} %" if "val_acc1" in row else ""
        self.say(
            f"epoch {row['epoch']:>{len(str(self.epochs - 1))}}/{self.epochs - 1}"
            f"  train loss {row['train_loss']:.4f} acc {row['train_acc1']:5.2f} %{val}"
            f"  test loss {row['test_loss']:.4f} acc {row['test_acc1']:5.2f} %"
            f"  lr {row['lr']:.3g}  {row['train_images_per_second']:,.0f} images/s"
            f"  left {clock(seconds_left)}"
        )


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class TensorBoard:
    """The run's events in `folder`, one point an epoch, none twice.

    Args:
        folder: the run's tb/.
        rows: the epochs that are done. Points of later ones, left by a run that died after its
            last checkpoint, are dropped; points of the rows that are not there are written.
        epoch: the epoch that comes next.
        experiment: what the HParams tab shows beside the last metrics; None: nothing.
    Raises:
        RunError: the folder is a link, whose target may be somebody else's, or cannot be written.
    """

    def __init__(
        self, folder: Path, rows: list[Row], epoch: int, experiment: Experiment | None = None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if folder.is_symlink():
            raise RunError(f"{folder} is a link; TensorBoard's events are written to a folder only")
        self.folder = folder
        others = set(threading.enumerate())
        try:
            kept = rewind(folder, epoch)
            self._writer: Any = SummaryWriter(str(folder))  # its types are incomplete
        except OSError as error:
            raise RunError(
                f"{folder}: cannot be written ({error.strerror or error}); make room for it, or "
                "leave out --tb"
            ) from None
        self._threads = set(threading.enumerate()) - others
        self._hook, threading.excepthook = threading.excepthook, self._failed
        if experiment:
            self._hparams(experiment)
        for row in rows:
            tags = [tag for tag in SCALARS if tag in row and (tag, row["epoch"]) not in kept]
            self._scalars({tag: row[tag] for tag in tags}, row["epoch"])

    def epoch(self, row: Row, insight: Insight | None = None) -> None:
        """Write an epoch's points, and what its insight has to tell."""
        epoch = row["epoch"]
        self._scalars({tag: row[tag] for tag in SCALARS if tag in row}, epoch)
        if insight:
            self._scalars(insight.scalars(), epoch)
        if insight and insight.due(epoch):
            self._figures(insight, epoch)
        self._writer.flush()

    def _scalars(self, values: Mapping[str, float], epoch: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, epoch)

    def _figures(self, insight: Insight, epoch: int) -> None:
        pixels = drawing("--tb-pictures").pixels
        for tag, figure in insight.figures():
            self._writer.add_image(tag, pixels(figure), epoch, dataformats="HWC")
        for tag, values in insight.histograms():
            self._writer.add_histogram(tag, values.float(), epoch)

    def _hparams(self, experiment: Experiment) -> None:
        """Enter the settings, and the tags of the metrics, whose last points are shown with them.

        SummaryWriter.add_hparams would make a second run of it, in a folder of its own.
        """
        from torch.utils.tensorboard.summary import hparams

        metrics = {tag: 0.0 for tag in METRICS if experiment.val_size or "val" not in tag}
        settings = {
            name: str(value).lower() if isinstance(value, bool) else value  # TensorBoard: 0.0, 1.0
            for name, value in dataclasses.asdict(experiment).items()
        }
        start = hparams(settings, metrics)[:2]  # type: ignore[no-untyped-call]
        for summary in start:
            self._writer.file_writer.add_summary(summary)

    def finish(self) -> None:
        """Mark the run as done in the HParams tab."""
        from torch.utils.tensorboard.summary import hparams

        end = hparams({}, {})[2]  # type: ignore[no-untyped-call]
        self._writer.file_writer.add_summary(end)

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _failed(self, failure: threading.ExceptHookArgs) -> None:
        """Where the writer's thread cannot write, `epoch` raises it; a traceback adds nothing."""
        if failure.thread not in self._threads or not issubclass(failure.exc_type, OSError):
            self._hook(failure)


class Tracker:
    """Everything that a run tells, in one: console, metrics.jsonl and TensorBoard (None: off).

    Of several processes all but the first have no records (None) and no TensorBoard.
    What TensorBoard tells beyond the metrics is `insight`'s (None: nothing).
    """

    def __init__(
        self,
        console: Console,
        run: RunDirectory | None,
        tensorboard: TensorBoard | None,
        insight: Insight | None = None,
    ) -> None:
        self.console = console
        self.run = run
        self.tensorboard = tensorboard
        self.insight = insight

    def looking_inside(self) -> AbstractContextManager[None]:
        """Where the epoch's evaluation on the test pictures takes place."""
        return self.insight.looking() if self.insight else nullcontext()

    def batch(self, progress: Progress, batches: int) -> None:
        self.console.batch(progress, batches)

    def epoch(self, row: Row, seconds_left: float) -> None:
        if self.run:
            self.run.add_row(row)
        if self.tensorboard:
            try:
                self.tensorboard.epoch(row, self.insight)
            except OSError as error:
                folder = self.tensorboard.folder
                self._close_tensorboard()
                warn(
                    f"{folder} not written ({error.strerror or error}); a resumed run will mend "
                    "it; training goes on"
                )
        self.console.epoch(row, seconds_left)

    def finish(self) -> None:
        """The run has come to its end."""
        if self.tensorboard:
            with suppress(OSError):  # told at the epoch
                self.tensorboard.finish()

    def close(self) -> None:
        """Leave nothing half said; a second time nothing happens."""
        self.console.close_bar()
        if self.run:
            self.run.catch_up()
        self._close_tensorboard()

    def _close_tensorboard(self) -> None:
        if self.tensorboard:
            with suppress(OSError):
                self.tensorboard.close()
            self.tensorboard = None


def rewind(folder: Path, epoch: int) -> set[tuple[str, int]]:
    """Drop from the event files every point at `epoch` or later, or twice there, and the HParams.

    TensorBoard itself would show both the points of a run that died and those of its resumption.
    HParams belong to no epoch; whoever goes on with the run enters them anew.

    Returns:
        The (tag, epoch) of the points that are left.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    files = sorted(folder.glob(EVENTS))
    if not files:
        return set()
    seen: set[tuple[str, int]] = set()
    kept: list[bytes] = []
    for record in _records(files):
        event = Event.FromString(record)
        values = [v for v in event.summary.value if not v.tag.startswith(HPARAMS)]
        points = {(value.tag, event.step) for value in values}
        if points and event.step < epoch and not points & seen:
            seen |= points
            kept.append(record)
    fresh = folder / "rewound.tmp"
    with fresh.open("wb") as stream:
        writer = RecordWriter(stream)
        writer.write(Event(file_version="brain.Event:2").SerializeToString())
        for record in kept:
            writer.write(record)
    fresh.replace(folder / REWOUND)
    for file in files:
        if file.name != REWOUND:
            file.unlink()
    return seen


def _records(files: list[Path]) -> Iterator[bytes]:
    """The serialised events of event files, up to where a file is cut short."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    for file in files:
        yield from RawEventFileLoader(str(file)).Load()
