"""Lines on standard output, and a progress bar on standard error while that is a terminal."""

import sys

from tqdm import tqdm

from ..interrupt import BROKEN_PIPE, InterruptedRunError
from ..session import Progress, Row


class Console:
    """Prints what a run chose, a line an epoch, and the summary.

    Args:
        epochs: of the run.
        quiet: print the summary only.
        mute: print nothing; another process of the run prints.
    """

    def __init__(self, epochs: int, *, quiet: bool, mute: bool = False) -> None:
        self.epochs = epochs
        self.quiet = quiet
        self.mute = mute
        self._bar: tqdm | None = None  # type: ignore[type-arg]
        self._bars = sys.stderr is not None and sys.stderr.isatty() and not (quiet or mute)

    def info(self, line: str) -> None:
        """Print a line, unless quiet; see `result`."""
        if not self.quiet:
            self.result(line)

    def result(self, line: str) -> None:
        """Print a line, quiet or not.

        Raises:
            InterruptedRunError: the reader has closed standard output, as `| head` does. Any other
                failure, such as a full disk under a log file or a character that an unusual stream
                does not take, costs the line only.
        """
        if self.mute:
            return
        try:
            print(line, flush=True)
        except BrokenPipeError:
            raise InterruptedRunError(BROKEN_PIPE) from None
        except (OSError, UnicodeError):
            pass

    def batch(self, progress: Progress, batches: int) -> None:
        """Advance the bar, which is created at the first batch of an epoch."""
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
        """Print an epoch's line."""
        self.close_bar()
        val = f"  val {row['val_acc1']:5.2f} %" if "val_acc1" in row else ""
        self.info(
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
