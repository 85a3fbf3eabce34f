"""SIGINT and SIGTERM become a flag that the loop reads between two batches.

A second signal stops at once, unless it comes within a second of the first: a terminal, a scheduler
and a launcher may each pass on the same wish. Signals reach only the main thread; elsewhere (a
notebook's worker, a test) nothing is installed.
"""

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

BROKEN_PIPE = getattr(signal, "SIGPIPE", 13)  # nobody reads standard output any more
STOPPING = tuple(s for s in (signal.SIGINT, getattr(signal, "SIGTERM", None)) if s is not None)
WISHES = (*STOPPING, BROKEN_PIPE)
ECHO = 1.0  # seconds after the first signal in which another one is the same wish


class InterruptedRunError(Exception):
    """The run was asked to stop; its checkpoint is saved by the time this reaches cli.py."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name if signum != BROKEN_PIPE else "SIGPIPE")
        self.signum = signum
        self.exit_code = 128 + signum


class Interrupt:
    """While entered, remembers the first signal in `signum`.

    Attributes:
        shared: other processes take part in the run, and all stop at the same place; a signal
            counts when all have heard of it.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.shared = False
        self._agreed: int | None = None
        self._when = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._remember) for s in STOPPING}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._when = signum, time.monotonic()
        elif time.monotonic() - self._when >= ECHO:
            self._give_back()
            signal.raise_signal(signum)

    def _give_back(self) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raises InterruptedRunError when a signal has come."""
        signum = self._agreed if self.shared else self.signum
        if signum is not None:
            raise InterruptedRunError(signum)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Where others take part, a stop asked for inside waits until all have heard of it."""
        try:
            yield
        except InterruptedRunError as stop:
            if not self.shared:
                raise
            if self.signum is None:
                self.signum, self._when = stop.signum, time.monotonic()

    def flags(self) -> list[int]:
        """What has come, for each of WISHES: 1 or 0."""
        return [int(self.signum == s) for s in WISHES]

    def hear(self, counts: Iterable[float]) -> None:
        """Take in how many processes each of WISHES has come to."""
        for s, count in zip(WISHES, counts, strict=True):
            if count and self._agreed is None:
                self._agreed = s
