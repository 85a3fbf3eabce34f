"""Lines on standard output."""

import io
import sys
from typing import Any

import pytest

from rsnn_fmnist.interrupt import BROKEN_PIPE, InterruptedRunError
from rsnn_fmnist.tracking.console import Console, clock

ROW = {
    "epoch": 3, "train_loss": 0.06, "train_acc1": 71.5, "train_acc5": 99.0, "test_loss": 0.07,
    "test_acc1": 70.25, "test_acc5": 98.0, "lr": 0.05, "train_images_per_second": 123456.7,
}  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_an_epochs_line(capsys: Any) -> None:
    Console(12, quiet=False).epoch({**ROW, "val_acc1": 68.0}, 75.0)
    assert capsys.readouterr() == (
        "epoch  3/11  train loss 0.0600 acc 71.50 %  val 68.00 %  test loss 0.0700 acc 70.25 %"
        "  lr 0.05  123,457 images/s  left 0:01:15\n",
        "",
    )


def test_quiet_prints_results_only_and_mute_nothing(capsys: Any) -> None:
    for console in (Console(12, quiet=True), Console(12, quiet=False, mute=True)):
        console.info("info")
        console.epoch(ROW, 1.0)
        console.result("result")
    assert capsys.readouterr().out == "result\n"


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(),
        OSError(28, "No space left on device"),
        UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range(128)"),
    ],
)
def test_a_closed_output_ends_the_run_and_a_full_disk_does_not(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Failing(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    monkeypatch.setattr(sys, "stdout", Failing())
    if not isinstance(error, BrokenPipeError):
        Console(12, quiet=False).result("lost")
        return
    with pytest.raises(InterruptedRunError) as stop:
        Console(12, quiet=False).result("lost")
    assert stop.value.signum == BROKEN_PIPE
