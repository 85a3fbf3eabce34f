"""SIGINT and SIGTERM as a flag that the training loop reads between two batches.

A second signal stops the process at once, unless it comes within a second of the first: a terminal,
a scheduler and a launcher may each send one for the same reason. Python installs handlers in the
main thread only; in another thread (a notebook's, a test's) nothing is installed.
"""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TypeVar

from .errors import note, on_terminal

T = TypeVar("T")

BROKEN_PIPE = getattr(signal, "SIGPIPE", 13)  # standard output was closed by its reader
STOPPING = tuple(s for s in (signal.SIGINT, getattr(signal, "SIGTERM", None)) if s is not None)
REASONS = (*STOPPING, BROKEN_PIPE)  # to stop a run
ECHO = 1.0  # seconds after the first signal in which another one counts as the same

Handlers = dict[int, Callable[[int, FrameType | None], Any] | int]


class InterruptedRunError(Exception):
    """A signal stopped the run; where there was something to save, it is saved by now."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name if signum != BROKEN_PIPE else "SIGPIPE")
        self.signum = signum
        self.exit_code = 128 + signum


def install(handlers: Handlers) -> Handlers:
    """Install signal handlers; return those that they replace, to be installed again later.

    In another thread than the main one nothing is installed, nor in place of a handler that is not
    Python's and could not be restored.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {s: handler for s in handlers if (handler := signal.getsignal(s)) is not None}
    for s in before:
        signal.signal(s, handlers[s])
    return before


class Interrupt:
    """Remembers the first signal while entered.

    On a terminal, a signal is acknowledged at once, even while the main thread cannot run its
    handler, as during the compilation of a kernel.

    Attributes:
        signum: the signal; None: none yet.
        shared: several processes train the run and stop after the same batch: a signal counts
            once it has reached all of them, by `agree`.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.shared = False
        self._agreed: int | None = None
        self._mouth: socket.socket | None = None
        self._wakeup = -1
        self._waiting = False
        self._when = 0.0
        self._before: Handlers = {}

    def __enter__(self) -> "Interrupt":
        self._before = install(dict.fromkeys(STOPPING, self._remember))
        if self._before and on_terminal():
            self._listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _listen(self) -> None:
        ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._acknowledge, args=(ear,), daemon=True).start()

    def _acknowledge(self, ear: socket.socket) -> None:
        """Print a line on the first signal, of which Python writes the number to the socket."""
        said = False
        with ear:
            while number := ear.recv(1):  # until the run ends
                if number[0] in STOPPING and not said:
                    note("stopping after the present batch; a second signal stops at once")
                    said = True

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._when = signum, time.monotonic()
            if self._waiting:
                raise InterruptedRunError(signum)
        elif time.monotonic() - self._when >= ECHO:
            self._restore()
            signal.raise_signal(signum)

    def _restore(self) -> None:
        install(self._before)
        if self._mouth is not None:
            signal.set_wakeup_fd(self._wakeup)
            self._mouth.close()
            self._mouth = None

    def check(self) -> None:
        """Raise InterruptedRunError where a signal has been received."""
        signum = self._agreed if self.shared else self.signum
        if signum is not None:
            raise InterruptedRunError(signum)

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The items; a signal during the wait for one of them raises InterruptedRunError at once.

        With several processes it does not: they stop after the same batch.
        """
        iterator = iter(items)
        while True:
            self._waiting = not self.shared
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._waiting = False
            yield item

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """With several processes, a stop raised inside is kept until all of them know of it."""
        try:
            yield
        except InterruptedRunError as stop:
            if not self.shared:
                raise
            if self.signum is None:
                self.signum, self._when = stop.signum, time.monotonic()

    def flags(self) -> list[int]:
        """For each of REASONS, 1 where it has occurred here, else 0."""
        return [int(self.signum == s) for s in REASONS]

    def agree(self, counts: Iterable[float]) -> None:
        """Take in, for each of REASONS, in how many processes it has occurred."""
        for s, count in zip(REASONS, counts, strict=True):
            if count and self._agreed is None:
                self._agreed = s
