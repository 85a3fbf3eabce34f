"""TensorBoard events: the contract's tags, no point twice, none lost."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from rsnn_fmnist import cli
from rsnn_fmnist.config import Experiment, Machine
from rsnn_fmnist.errors import RunError
from rsnn_fmnist.tracking.tracker import HPARAMS, REWOUND, TensorBoard, clock, rewind

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
    assert sorted(p.name for p in tmp_path.iterdir())[0] == REWOUND  # read before the new file
    assert len(rewind(tmp_path, 99)) == 5 * len(TAGS)  # nothing dropped, nothing doubled
    assert all(found == expected for found in points(tmp_path).values())


def test_events_cut_short_and_doubled_are_mended(tmp_path: Path) -> None:
    write(tmp_path, [], 0, [row(e) for e in range(3)])
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])  # the last event is lost
    (tmp_path / (file.name + ".copy")).write_bytes(whole)  # and every other one is there twice
    assert len(rewind(tmp_path, 3)) == 3 * len(TAGS)
    assert len(list(tmp_path.iterdir())) == 1
    assert all(found == [(0, 1.0), (1, 1.0), (2, 1.0)] for found in points(tmp_path).values())


def test_tensorboard_switched_on_later_gets_the_earlier_epochs(tmp_path: Path) -> None:
    write(tmp_path, [row(0), row(1)], 2, [row(2)])
    assert points(tmp_path)["lr"] == [(0, 1.0), (1, 1.0), (2, 1.0)]


def events(folder: Path) -> list[Any]:
    """Every event of a folder, in order."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    files = sorted(folder.glob("events.out.tfevents.*"))
    return [event for file in files for event in EventFileLoader(str(file)).Load()]


def hparams(folder: Path) -> list[Any]:
    """The content of every HParams event: an experiment, a session's start or its end."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    values = [value for event in events(folder) for value in event.summary.value]
    contents = [v.metadata.plugin_data.content for v in values if v.tag.startswith(HPARAMS)]
    return [HParamsPluginData.FromString(content) for content in contents]


def test_hparams_are_there_once_however_often_a_run_resumes(tmp_path: Path) -> None:
    """One experiment and one start, of the settings that are true now; an end when it is done."""
    for epochs in (2, 4, 6):
        experiment = Experiment(model="plain", epochs=epochs, amp=True, lr=0.5)
        done = epochs - 2
        board = TensorBoard(tmp_path, [row(e) for e in range(done)], done, experiment)
        board.epoch(row(done))
        board.epoch(row(done + 1))
        board.finish()
        board.close()
        first, start, end = hparams(tmp_path)
        tags = {metric.name.tag for metric in first.experiment.metric_infos}
        assert tags == {"test_acc1", "test_loss", "train_acc1", "train_loss"}
        settings = start.session_start_info.hparams
        assert settings["model"].string_value == "plain"
        assert settings["epochs"].number_value == epochs
        assert settings["lr"].number_value == 0.5
        assert settings["amp"].string_value == "true"
        assert "cosa_tmax" not in settings
        assert end.session_end_info.status == 1  # success
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert points(tmp_path)["test_acc1"] == [(e, 1.0) for e in range(6)]


def test_hparams_alone_are_not_taken_for_points(tmp_path: Path) -> None:
    """A run that died in its first epoch, and goes on from a checkpoint of two."""
    experiment = Experiment(model="plain", val_size=10)
    TensorBoard(tmp_path, [], 0, experiment).close()
    TensorBoard(tmp_path, [row(0), row(1)], 2, experiment).close()
    assert points(tmp_path)["lr"] == [(0, 1.0), (1, 1.0)]
    first, _ = hparams(tmp_path)
    assert "val_acc1" in {metric.name.tag for metric in first.experiment.metric_infos}


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "tb").write_text("a file in its place")
    with pytest.raises(RunError, match=r"tb: cannot be written \(.+\); make room for it, or leave"):
        TensorBoard(tmp_path / "tb", [], 0)


def test_a_thread_of_somebody_else_tells_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    board = TensorBoard(tmp_path / "tb", [], 0)
    other = threading.Thread(target=(tmp_path / "none").read_text)
    other.start()
    other.join()
    board.close()
    assert [type(failure.exc_value) for failure in told] == [FileNotFoundError]
    assert threading.excepthook == told.append


INSIDE = {f"{tag}/{name}" for tag in ("firing_rate", "never_fire", "always_fire")
          for name in ("sn1", "sn2")} | {"gradient_norm"}  # fmt: skip


@pytest.mark.usefixtures("small_synthetic")
@pytest.mark.parametrize(
    ("flags", "inside"),
    [
        ("--model plain", INSIDE),
        ("--model feedback --val-size 20", INSIDE | {"val_loss", "val_acc1", "val_acc5"}),
        ("--model stateful-synapse", INSIDE | {"tau/sy1"}),
    ],
)
def test_what_a_run_tells_of_its_inside(tmp_path: Path, flags: str, inside: set[str]) -> None:
    arguments = "--dataset synthetic --device cpu --threads 1 -b 64 --epochs 2 --tb --run-name run"
    command = [*flags.split(), *arguments.split(), "--output-dir", str(tmp_path)]
    assert cli.main(command) == 0
    found = points(tmp_path / "run" / "tb")
    assert set(found) == TAGS | inside
    for tag in inside:
        assert [step for step, _ in found[tag]] == [0, 1]
    for name in ("sn1", "sn2"):
        assert all(0 < rate < 1 for _, rate in found[f"firing_rate/{name}"])
        assert all(0 <= share <= 1 for _, share in found[f"never_fire/{name}"])
    assert all(norm > 0 for _, norm in found["gradient_norm"])
    assert len(hparams(tmp_path / "run" / "tb")) == 3


@pytest.mark.usefixtures("small_synthetic")
def test_numbers_of_the_inside_are_those_of_the_test_pictures(tmp_path: Path) -> None:
    """Measured anew, on the checkpoint that the run leaves."""
    from rsnn_fmnist.report import inspect
    from rsnn_fmnist.spiking import record
    from rsnn_fmnist.storage import checkpoint

    arguments = "--model stateful-synapse --dataset synthetic --device cpu --threads 1 -b 64"
    flags = [*arguments.split(), "--epochs", "1", "--tb", "--run-name", "run"]
    assert cli.main([*flags, "--output-dir", str(tmp_path)]) == 0
    content = checkpoint.load(tmp_path / "run" / "latest.pt")
    session = inspect.open_test(Experiment(**content["experiment"]), Machine(device="cpu"))
    session.model.load_state_dict(content["model"])
    ((x, _),) = session.test.batches([torch.arange(200)])
    with torch.no_grad(), record(session.model) as rec:
        session.model(x)
    found = points(tmp_path / "run" / "tb")
    for name, layer in rec.items():
        counts = layer.s.sum((0, 1))
        assert found[f"firing_rate/{name}"][0][1] == pytest.approx(layer.s.mean().item())
        assert found[f"never_fire/{name}"][0][1] == pytest.approx((counts == 0).float().mean())
        everywhere = counts == layer.s[..., 0].numel()
        assert found[f"always_fire/{name}"][0][1] == pytest.approx(everywhere.float().mean())
    tau = 1 + torch.exp(-content["model"]["sy1.w"]).item()
    assert found["tau/sy1"][0][1] == pytest.approx(tau)
    assert found["gradient_norm"][0][1] == pytest.approx(content["gradient_norm"])


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
