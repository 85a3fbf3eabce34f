"""TensorBoard events: the tags of the contract, no point twice, none lost."""

import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.event_files import hparams, points

from rsnn_fmnist.config import Experiment
from rsnn_fmnist.errors import RunError
from rsnn_fmnist.tracking.tensorboard import TensorBoard

METRICS = {
    "train_loss", "train_acc1", "train_acc5", "test_loss", "test_acc1", "test_acc5", "lr",
    "train_images_per_second",
}  # fmt: skip
FIRST_PAGE = {"accuracy/train", "accuracy/test", "loss/train", "loss/test"}
TAGS = METRICS | FIRST_PAGE
PLAIN = Experiment(model="plain")


def row(epoch: int, value: float = 1.0) -> dict[str, Any]:
    return {"epoch": epoch, "seconds": 1.0, **dict.fromkeys(METRICS, value)}


def write(folder: Path, rows: list[dict[str, Any]], epoch: int, new: list[dict[str, Any]]) -> None:
    """Resume at `epoch` after the rows, and write the new ones."""
    board = TensorBoard(folder, rows, epoch, PLAIN)
    for one in new:
        board.epoch(one)
    board.close()


def check(folder: Path, values: list[float]) -> None:
    """Assert that every tag has these values at the epochs 0, 1, ..., and no other point."""
    found = points(folder)
    assert set(found) == TAGS
    assert all(drawn == list(enumerate(values)) for drawn in found.values()), found


def test_tags(tmp_path: Path) -> None:
    write(tmp_path, [], 0, [row(0), row(1)])
    check(tmp_path, [1.0, 1.0])


def test_the_first_page_shows_accuracy_and_loss(tmp_path: Path) -> None:
    """Groups of tags are sorted by name; the same numbers are under the contract's tags."""
    values = {name: float(n) for n, name in enumerate(sorted(METRICS))}
    write(tmp_path, [], 0, [row(0) | values | {"val_acc1": 50.0, "val_loss": 60.0}])
    found = {tag: value for tag, ((_, value),) in points(tmp_path).items()}
    pages = [("accuracy", "acc1"), ("loss", "loss")]
    for group, metric in pages:
        for part in ("train", "val", "test"):
            assert found[f"{group}/{part}"] == found[f"{part}_{metric}"]
    groups = sorted({tag.split("/")[0] for tag in found})
    assert groups[:2] == ["accuracy", "loss"]
    assert all(found[name] == value for name, value in values.items())


def test_a_resumed_run_has_no_point_twice_and_none_of_the_lost_epochs(tmp_path: Path) -> None:
    write(tmp_path, [], 0, [row(e) for e in range(5)])  # killed; its checkpoint is of epoch 3
    write(tmp_path, [row(e) for e in range(3)], 3, [row(3, 2.0)])
    check(tmp_path, [1.0, 1.0, 1.0, 2.0])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write(tmp_path, [*(row(e) for e in range(3)), row(3, 2.0)], 4, [row(4, 3.0)])
    check(tmp_path, [1.0, 1.0, 1.0, 2.0, 3.0])
    assert all(path.read_bytes() == content for path, content in before.items())
    write(tmp_path, [], 0, [row(0, 4.0)])  # killed again before its first checkpoint
    check(tmp_path, [4.0])


def test_a_resumed_run_writes_what_a_cut_file_has_lost(tmp_path: Path) -> None:
    write(tmp_path, [], 0, [row(e) for e in range(3)])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])  # within the last event
    assert any(len(drawn) == 2 for drawn in points(tmp_path).values())
    write(tmp_path, [row(e) for e in range(3)], 3, [row(3)])
    check(tmp_path, [1.0] * 4)


def test_tensorboard_switched_on_later_gets_the_earlier_epochs(tmp_path: Path) -> None:
    write(tmp_path, [row(0), row(1)], 2, [row(2)])
    check(tmp_path, [1.0, 1.0, 1.0])


def test_a_folder_of_an_older_version_is_continued(tmp_path: Path) -> None:
    """It has rewritten its events to a file of this name, and had no tags for the first page."""
    old = tmp_path / "events.out.tfevents.0000000000.rewound"
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import scalar

    with old.open("wb") as file:
        records = RecordWriter(file)
        records.write(Event(file_version="brain.Event:2").SerializeToString())
        for epoch in range(3):
            for tag in METRICS:
                event = Event(step=epoch, summary=scalar(tag, 1.0))
                records.write(event.SerializeToString())
    before = old.read_bytes()
    write(tmp_path, [row(0), row(1)], 2, [row(2, 2.0)])
    check(tmp_path, [1.0, 1.0, 2.0])
    assert old.read_bytes() == before


def test_the_hparams_tab(tmp_path: Path) -> None:
    experiment = Experiment(model="plain", epochs=2, amp=True, lr=0.5)
    for done in (0, 1):
        board = TensorBoard(tmp_path, [row(e) for e in range(done)], done, experiment)
        board.epoch(row(done))
        if done:
            board.finish()
        board.close()
        shown = hparams(tmp_path)
        tags = {metric.name.tag for metric in shown["experiment"].experiment.metric_infos}
        assert tags == {"test_acc1", "test_loss", "train_acc1", "train_loss"}
        settings = shown["session_start_info"].session_start_info.hparams
        assert settings["model"].string_value == "plain"
        assert settings["epochs"].number_value == 2
        assert settings["lr"].number_value == 0.5
        assert settings["amp"].string_value == "true"
        assert "cosa_tmax" not in settings
        assert ("session_end_info" in shown) == (done == 1)
    assert shown["session_end_info"].session_end_info.status == 1  # success
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    check(tmp_path, [1.0, 1.0])


def test_a_run_that_died_in_its_first_epoch_has_settings_but_no_points(tmp_path: Path) -> None:
    experiment = Experiment(model="plain", val_size=10)
    TensorBoard(tmp_path, [], 0, experiment).close()
    assert points(tmp_path) == {}
    TensorBoard(tmp_path, [row(0), row(1)], 2, experiment).close()
    check(tmp_path, [1.0, 1.0])
    metrics = hparams(tmp_path)["experiment"].experiment.metric_infos
    assert "val_acc1" in {metric.name.tag for metric in metrics}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "tb").write_text("a file in its place")
    with pytest.raises(RunError, match=r"tb: cannot be written \(.+\); make room for it, or leave"):
        TensorBoard(tmp_path / "tb", [], 0, PLAIN)


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tb").symlink_to(tmp_path)
    with pytest.raises(RunError, match="tb is a link"):
        TensorBoard(tmp_path / "tb", [], 0, PLAIN)


def test_other_threads_report_their_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the writer's own thread is silent; `epoch` raises its error."""
    reported: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    board = TensorBoard(tmp_path / "tb", [], 0, PLAIN)
    other = threading.Thread(target=(tmp_path / "none").read_text)
    other.start()
    other.join()
    board.close()
    assert [type(failure.exc_value) for failure in reported] == [FileNotFoundError]
    assert threading.excepthook == reported.append
