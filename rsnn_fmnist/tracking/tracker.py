"""Where a run's metrics go: console, metrics.jsonl and TensorBoard."""

from contextlib import AbstractContextManager, nullcontext, suppress

from ..errors import warn, with_type
from ..session import Progress, Row
from ..storage.run_directory import RunDirectory
from .console import Console
from .diagnostics import Diagnostics
from .tensorboard import TensorBoard


class Tracker:
    """All of them in one.

    Args:
        run: writes metrics.jsonl; None: another process does.
        tensorboard: None: no events.
        diagnostics: what TensorBoard shows besides the metrics; None: nothing.
    """

    def __init__(
        self,
        console: Console,
        run: RunDirectory | None,
        tensorboard: TensorBoard | None,
        diagnostics: Diagnostics | None = None,
    ) -> None:
        self.console = console
        self.run = run
        self.tensorboard = tensorboard
        self.diagnostics = diagnostics

    def observing(self) -> AbstractContextManager[None]:
        """Around an epoch's evaluation on the test pictures."""
        return self.diagnostics.observing() if self.diagnostics else nullcontext()

    def batch(self, progress: Progress, batches: int) -> None:
        """A batch of `batches` is done."""
        self.console.batch(progress, batches)

    def epoch(self, row: Row, seconds_left: float) -> None:
        """An epoch is done."""
        if self.run:
            self.run.add_row(row)
        if self.tensorboard:
            try:
                self.tensorboard.epoch(row, self.diagnostics)
            except Exception as error:  # such as a full disk
                folder = self.tensorboard.folder
                self._close_tensorboard()
                warn(
                    f"{folder} not written ({with_type(error)}); training continues without "
                    "TensorBoard, and a resumed run writes the missing points"
                )
        self.console.epoch(row, seconds_left)

    def finish(self) -> None:
        """The run is finished."""
        if self.tensorboard:
            with suppress(Exception):  # reported at the epoch
                self.tensorboard.finish()

    def close(self) -> None:
        """Flush and close everything; may be called twice."""
        self.console.close_bar()
        if self.run:
            self.run.catch_up()
        self._close_tensorboard()

    def _close_tensorboard(self) -> None:
        if self.tensorboard:
            with suppress(Exception):
                self.tensorboard.close()
            self.tensorboard = None
