"""What a run tells: lines on standard output, a progress bar on a terminal, TensorBoard events.

Nothing here decides anything about the run.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from .run_directory import RunDirectory
from .session import Progress, Row

EVENTS = "events.out.tfevents.*"
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


class Console:
    """Lines on standard output, and a bar on standard error while that is a terminal."""

    def __init__(self, epochs: int, *, quiet: bool) -> None:
        self.epochs = epochs
        self.quiet = quiet
        self._bar: tqdm | None = None  # type: ignore[type-arg]
        self._bars = sys.stderr.isatty() and not quiet

    def say(self, line: str) -> None:
        if not self.quiet:
            print(line, flush=True)

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
    """The run's scalars in `folder`, one point an epoch, none twice.

    Args:
        folder: the run's tb/.
        rows: the epochs that are done. Points of later ones, left by a run that died after its
            last checkpoint, are dropped; where there are no events at all, the rows are written.
        epoch: the epoch that comes next.
    """

    def __init__(self, folder: Path, rows: list[Row], epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        kept = rewind(folder, epoch)
        self._writer = SummaryWriter(str(folder))
        if not kept:
            for row in rows:
                self.epoch(row)

    def epoch(self, row: Row) -> None:
        for tag in SCALARS:
            if tag in row:
                self._writer.add_scalar(tag, row[tag], row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Tracker:
    """Everything that a run tells, in one: console, metrics.jsonl and TensorBoard (None: off)."""

    def __init__(
        self, console: Console, run: RunDirectory, tensorboard: TensorBoard | None
    ) -> None:
        self.console = console
        self.run = run
        self.tensorboard = tensorboard

    def batch(self, progress: Progress, batches: int) -> None:
        self.console.batch(progress, batches)

    def epoch(self, row: Row, seconds_left: float) -> None:
        self.run.add_row(row)
        if self.tensorboard:
            self.tensorboard.epoch(row)
        self.console.epoch(row, seconds_left)


def rewind(folder: Path, epoch: int) -> int:
    """Drop from the event files every point at `epoch` or later, or twice there.

    TensorBoard itself would show both the points of a run that died and those of its resumption.

    Returns:
        How many events are left.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    files = sorted(folder.glob(EVENTS))
    if not files:
        return 0
    seen: set[tuple[str, int]] = set()
    kept: list[bytes] = []
    for record in _records(files):
        event = Event.FromString(record)
        points = {(value.tag, event.step) for value in event.summary.value}
        if points and event.step < epoch and not points & seen:
            seen |= points
            kept.append(record)
    fresh = folder / "rewound.tmp"
    with fresh.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(file_version="brain.Event:2").SerializeToString())
        for record in kept:
            writer.write(record)
    fresh.replace(files[0])
    for other in files[1:]:
        other.unlink()
    return len(kept)


def _records(files: list[Path]) -> Iterator[bytes]:
    """The serialised events of event files, up to where a file is cut short."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    for file in files:
        yield from RawEventFileLoader(str(file)).Load()
