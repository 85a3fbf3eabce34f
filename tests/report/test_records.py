"""Records read back: where runs are found, and how damaged ones are reported."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.made_runs import MACHINE, make_run, row

from rsnn_fmnist.errors import RunError, UsageError
from rsnn_fmnist.report import records


def test_what_a_run_recorded(tmp_path: Path) -> None:
    speeds = [
        row(n, a, train_images_per_second=s) for n, a, s in ((0, 70, 9), (1, 80, 5), (2, 80, 7))
    ]
    run = records.read(make_run(tmp_path, [0, 0, 0], rows=speeds, seed=3, lr=0.5))
    assert (run.experiment.model, run.experiment.seed, run.experiment.lr) == ("plain", 3, 0.5)
    assert (run.epochs_done, run.finished) == (3, True)
    assert run.last_accuracy() == 80
    assert run.best_row()["epoch"] == 1  # the first of equals
    assert run.images_per_second() == 7
    assert run.seconds() == 6
    assert run.environment == MACHINE


def test_the_best_epoch_is_chosen_on_held_out_pictures(tmp_path: Path) -> None:
    chosen = [row(n, a, val_acc1=v) for n, a, v in ((0, 60, 10), (1, 50, 30), (2, 70, 20))]
    run = records.read(make_run(tmp_path, [0, 0, 0], rows=chosen, val_size=100))
    assert run.best_row()["test_acc1"] == 50
    assert run.last_accuracy() == 70


def test_unfinished_runs(tmp_path: Path) -> None:
    run = records.read(make_run(tmp_path, [60.0, 70.0], epochs=5))
    assert (run.epochs_done, run.finished) == (2, False)
    path = make_run(tmp_path, [1.0], epochs=5, seed=2)
    (path / "metrics.jsonl").write_text("")
    none = records.read(path)
    assert (none.epochs_done, none.finished, none.rows) == (0, False, [])
    late = records.read(make_run(tmp_path, [60.0], epochs=5, seed=3, start_epoch=4))
    assert (late.epochs_done, late.finished) == (5, True)


def test_a_last_line_that_is_cut_short_is_not_read(tmp_path: Path, capsys: Any) -> None:
    path = make_run(tmp_path, [60.0, 70.0])
    metrics = path / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-9])
    assert records.read(path).epochs_done == 1
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.endswith(
        "metrics.jsonl: its last line is cut short; the epochs before it are used"
    )


def test_runs_are_found_at_any_depth_each_once(tmp_path: Path) -> None:
    a = make_run(tmp_path / "runs", [60.0], seed=1)
    b = make_run(tmp_path / "runs" / "sweep" / "deep", [60.0], seed=2)
    (tmp_path / "runs" / "logs").mkdir()
    assert records.find([tmp_path / "runs"]) == [a, b]
    assert records.find([b, tmp_path / "runs", a]) == [b, a]
    assert len(records.read_all([tmp_path / "runs", a])) == 2


def test_of_a_run_and_its_copy_the_longer_one_counts(tmp_path: Path, capsys: Any) -> None:
    """Timings may differ."""
    a = make_run(tmp_path / "a", [60.0, 70.0], epochs=3)
    rows = [row(n, x, seconds=9.0) for n, x in enumerate((60.0, 70.0, 80.0))]
    b = make_run(tmp_path / "b", [], rows=rows, epochs=3)
    (run,) = records.read_all([a, b])
    assert run.path == b
    assert capsys.readouterr().err == (
        f"rsnn_fmnist: warning: {b}: the same run as {a}, counted once\n"
    )
    (run,) = records.read_all([b, a])
    assert run.path == b


def test_one_seed_with_two_results_is_refused(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", [60.0]), make_run(tmp_path / "b", [60.5])
    with pytest.raises(RunError, match="the same settings and seed, but other results") as raised:
        records.read_all([a, b])
    assert str(a) in str(raised.value)
    assert str(b) in str(raised.value)


def test_places_without_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "config.toml").write_text('model = "plain"')  # without metrics: not a run
    with pytest.raises(UsageError, match="none: no such directory"):
        records.find([tmp_path / "none"])
    with pytest.raises(UsageError, match="file: a file; name a run directory"):
        records.find([tmp_path / "file"])
    with pytest.raises(RunError, match=r"holds no run \(a directory with metrics.jsonl\)"):
        records.find([tmp_path])


GOOD = json.dumps(row(0, 60))

DAMAGE = [
    ("metrics.jsonl", "{\n", "line 1 is not JSON"),
    ("metrics.jsonl", f"{GOOD}\n\n", "line 2 is not JSON"),
    ("metrics.jsonl", "[1]\n", "line 1 is not a row of metrics"),
    ("metrics.jsonl", '{"epoch": 0}\n', "line 1 has no number 'train_loss'"),
    ("metrics.jsonl", GOOD.replace("60", "true") + "\n", "line 1 has no number 'test_acc1'"),
    ("metrics.jsonl", GOOD.replace("60", "NaN") + "\n", "line 1 has no number 'test_acc1'"),
    ("metrics.jsonl", GOOD.replace("60", "101") + "\n", "test_acc1 101, which is not a percentage"),
    ("metrics.jsonl", f"{GOOD}\n{GOOD}\n", "line 2 is epoch 0, not 1 of 0 to 1"),
    ("metrics.jsonl", json.dumps(row(1, 60)) + "\n", "line 1 is epoch 1, not 0 of 0 to 1"),
    ("metrics.jsonl", b"\xff\n", "not UTF-8 text"),
    ("config.toml", "model = ", "not valid TOML"),
    ("config.toml", 'model = "plain"\nsaed = 1\n', "unknown setting 'saed'; did you mean seed?"),
    ("config.toml", 'model = "plain"\nlr = "x"\n', "lr ="),
    ("config.toml", 'model = "plain"\nlr = 0.1\n', "'seed' is missing"),
    ("config.toml", None, "no such file"),
    ("environment.json", "{", "not a JSON object"),
    ("environment.json", "[]", "not a JSON object"),
]


@pytest.mark.parametrize(("name", "content", "words"), DAMAGE)
def test_damaged_records_are_refused(
    tmp_path: Path, name: str, content: str | bytes | None, words: str
) -> None:
    path = make_run(tmp_path, [60.0, 70.0])
    file = path / name
    file.unlink()
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError) as raised:
        records.read(path)
    assert raised.value.exit_code == 1
    assert str(raised.value).startswith(str(file))
    assert words in str(raised.value)


def test_more_epochs_than_the_experiment_has_are_damage(tmp_path: Path) -> None:
    path = make_run(tmp_path, [60.0, 70.0], epochs=1)
    with pytest.raises(RunError, match="line 2 is epoch 1, not 1 of 0 to 0"):
        records.read(path)


def test_without_held_out_accuracy_there_is_no_best_epoch(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="line 1 has no number 'val_acc1'"):
        records.read(make_run(tmp_path, [60.0], val_size=10))


def test_records_alone_are_enough(tmp_path: Path) -> None:
    path = make_run(tmp_path, [60.0])
    (path / "environment.json").unlink()
    (run,) = records.read_all([path])
    assert run.environment == {}
    assert sorted(file.name for file in path.iterdir()) == ["config.toml", "metrics.jsonl"]
