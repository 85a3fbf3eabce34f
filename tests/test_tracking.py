"""TensorBoard events: the contract's tags, no point twice, none lost."""

from pathlib import Path
from typing import Any

import pytest

from rsnn_fmnist.tracking import TensorBoard, clock, rewind

TAGS = {
    "train_loss", "train_acc1", "train_acc5", "test_loss", "test_acc1", "test_acc5", "lr",
    "train_images_per_second",
}  # fmt: skip


def row(epoch: int, value: float = 1.0) -> dict[str, Any]:
    return {"epoch": epoch, "seconds": 1.0, **dict.fromkeys(TAGS, value)}


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), purge_orphaned_data=False)
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def write(folder: Path, rows: list[dict[str, Any]], epoch: int, new: list[dict[str, Any]]) -> None:
    board = TensorBoard(folder, rows, epoch)
    for one in new:
        board.epoch(one)
    board.close()


def test_tags_are_the_contracts(tmp_path: Path) -> None:
    write(tmp_path, [], 0, [row(0), row(1)])
    found = points(tmp_path)
    assert set(found) == TAGS
    assert found["train_loss"] == [(0, 1.0), (1, 1.0)]


def test_a_resumed_run_has_no_point_twice_and_none_of_the_lost_epochs(tmp_path: Path) -> None:
    write(tmp_path, [], 0, [row(e) for e in range(5)])  # died; its checkpoint is of epoch 3
    write(tmp_path, [row(e) for e in range(3)], 3, [row(e, 2.0) for e in (3, 4)])
    expected = [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert all(found == expected for found in points(tmp_path).values())
    assert rewind(tmp_path, 99) == 5 * len(TAGS)  # nothing dropped, nothing doubled
    assert all(found == expected for found in points(tmp_path).values())


def test_events_cut_short_and_doubled_are_mended(tmp_path: Path) -> None:
    write(tmp_path, [], 0, [row(e) for e in range(3)])
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])  # the last event is lost
    (tmp_path / (file.name + ".copy")).write_bytes(whole)  # and every other one is there twice
    assert rewind(tmp_path, 3) == 3 * len(TAGS)
    assert len(list(tmp_path.iterdir())) == 1
    assert all(found == [(0, 1.0), (1, 1.0), (2, 1.0)] for found in points(tmp_path).values())


def test_tensorboard_switched_on_later_gets_the_earlier_epochs(tmp_path: Path) -> None:
    write(tmp_path, [row(0), row(1)], 2, [row(2)])
    assert points(tmp_path)["lr"] == [(0, 1.0), (1, 1.0), (2, 1.0)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
