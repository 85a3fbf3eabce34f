"""Signals: the first is remembered, its echo is not a second wish, a later one stops at once."""

import signal

import pytest

from rsnn_fmnist import interrupt
from rsnn_fmnist.interrupt import Interrupt, InterruptedRunError


def test_an_echo_is_not_a_second_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now)
    with Interrupt() as asked:
        asked.check()
        signal.raise_signal(signal.SIGINT)
        now += interrupt.ECHO / 2
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(InterruptedRunError, match="SIGINT") as stop:
            asked.check()
        assert stop.value.exit_code == 130
        now += interrupt.ECHO
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(s) for s in interrupt.STOPPING]
    with Interrupt():
        assert [signal.getsignal(s) for s in interrupt.STOPPING] != before
    assert [signal.getsignal(s) for s in interrupt.STOPPING] == before
