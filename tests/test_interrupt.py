"""Signals: the first is remembered, an echo of it is ignored, a later one stops at once."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from rsnn_fmnist import interrupt
from rsnn_fmnist.interrupt import BROKEN_PIPE, Interrupt, InterruptedRunError


def test_an_echo_does_not_count_as_a_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now)
    with Interrupt() as received:
        received.check()
        signal.raise_signal(signal.SIGINT)
        now += interrupt.ECHO / 2
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(InterruptedRunError, match="SIGINT") as stop:
            received.check()
        assert stop.value.exit_code == 130
        now += interrupt.ECHO
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("shared", [False, True])
def test_a_signal_ends_the_wait_for_a_batch(shared: bool) -> None:
    """At once, unless several processes have to stop after the same batch."""

    def batches() -> Iterator[int]:
        yield 1
        signal.raise_signal(signal.SIGTERM)  # while the second one is awaited
        yield 2

    received = []
    with Interrupt() as interrupt:
        interrupt.shared = shared
        with pytest.raises(InterruptedRunError) if not shared else nullcontext():
            received.extend(interrupt.waiting(batches()))
        assert interrupt.signum == signal.SIGTERM
    assert received == ([1, 2] if shared else [1])


def test_on_a_terminal_a_signal_is_acknowledged_at_once() -> None:
    """While the main thread is busy outside Python's interpreter, as when LLVM compiles."""
    program = """
import hashlib, os, signal, threading
from rsnn_fmnist.interrupt import Interrupt
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
with Interrupt() as interrupt:
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10_000_000)  # some seconds
    print("busy no longer", file=__import__("sys").stderr)
    assert interrupt.signum == signal.SIGINT
    interrupt._when += 1e9
    os.kill(os.getpid(), signal.SIGTERM)  # an echo of the first one
assert signal.set_wakeup_fd(-1) == -1
"""
    reader, terminal = os.openpty()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, stderr=terminal)
    lines = os.read(reader, 1000).decode().splitlines()
    os.close(terminal)
    os.close(reader)
    assert lines == [
        "rsnn_fmnist: stopping after the present batch; a second signal stops at once",
        "busy no longer",
    ]


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(s) for s in interrupt.STOPPING]
    with Interrupt():
        assert [signal.getsignal(s) for s in interrupt.STOPPING] != before
    assert [signal.getsignal(s) for s in interrupt.STOPPING] == before


def test_a_handler_that_is_not_pythons_is_left_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a program in C embeds the interpreter: it could not be restored."""
    installed: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda _: None)
        patch.setattr(signal, "signal", lambda *given: installed.append(given))
        with Interrupt():
            pass
    assert not installed


def test_of_several_processes_all_must_know_of_a_signal() -> None:
    with Interrupt() as received:
        received.shared = True
        signal.raise_signal(signal.SIGTERM)
        received.check()
        assert received.flags() == [0, 1, 0]
        received.agree([0, 0, 0])
        received.check()
        received.agree([0, 2, 1])
        with pytest.raises(InterruptedRunError, match="SIGTERM"):
            received.check()


def test_of_several_processes_all_must_know_of_a_closed_output() -> None:
    received = Interrupt()
    with pytest.raises(InterruptedRunError), received.postponed():
        raise InterruptedRunError(BROKEN_PIPE)
    received.shared = True
    with received.postponed():
        raise InterruptedRunError(BROKEN_PIPE)
    assert received.flags() == [0, 0, 1]
