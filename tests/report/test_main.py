"""python -m rsnn_fmnist.report, from its command line."""

import csv
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.made_runs import make_run

from rsnn_fmnist import cli
from rsnn_fmnist.config import Machine
from rsnn_fmnist.data import splits
from rsnn_fmnist.report import __main__ as report
from rsnn_fmnist.report import inspect, measurements
from rsnn_fmnist.report.energy import Operations
from rsnn_fmnist.storage import atomic, checkpoint

pytestmark = pytest.mark.usefixtures("small_synthetic")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a short run."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("runs")
    flags = "--model stateful-synapse --dataset synthetic --device cpu --threads 1 -b 64 --epochs 1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "SYNTHETIC", {"train": (640, 1), "test": (200, 2)})
        arguments = [*flags.split(), "--quiet", "--run-name", "run", "--output-dir", str(folder)]
        assert cli.main(arguments) == 0
    return folder / "run"


def bytes_of(run: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("name", "index", "file"),
    [
        ("", 0, "run_picture0.png"),
        ("latest.pt", 199, "run_latest_picture199.png"),
        ("best.pt", 7, "run_best_picture7.png"),
    ],
)
def test_inspect(
    trained: Path, tmp_path: Path, capsys: Any, name: str, index: int, file: str
) -> None:
    before = bytes_of(trained)
    arguments = ["--inspect", str(trained / name), "--index", str(index), "--out", str(tmp_path)]
    assert report.main(arguments) == 0
    captured = capsys.readouterr()
    first, spiking, dense, last = captured.out.splitlines()
    assert re.fullmatch(rf"test picture {index}: .+, classified as .+", first)
    assert "synaptic operations (spikes times fan-out)" in spiking
    assert "multiply-accumulates remain" in spiking
    assert dense.startswith(
        "without spikes: 34,048 multiply-accumulates, 156.6 nJ (0.9 and 4.6 pJ each"
    )
    assert last == f"wrote {tmp_path / file}"
    assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")
    assert captured.err == ""
    assert bytes_of(trained) == before


def test_the_figure_is_that_of_tensorboard(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One function draws both; its arguments are what an evaluation of the test set gives."""
    figures = importlib.import_module("rsnn_fmnist.tracking.figures")
    seen = []
    draw = figures.network_at_work
    monkeypatch.setattr(
        figures, "network_at_work", lambda *given: seen.append(given) or draw(*given)
    )
    arguments = ["--inspect", str(trained), "--index", "3", "--out", str(tmp_path)]
    assert report.main(arguments) == 0
    ((x, label, scores, sample),) = seen
    assert x.shape == (28, 28)
    content = checkpoint.load(trained / "latest.pt")
    machine = Machine(device="cpu")
    session = measurements.open_test(checkpoint.experiment_of(content, trained), machine)
    session.model.load_state_dict(content["model"])
    session.model.eval()
    ((pictures, labels),) = session.test.batches([torch.arange(200)])
    with torch.no_grad():
        expected = session.model(pictures)[3]
    assert torch.equal(x, pictures[3])
    assert label == labels[3]
    assert torch.equal(scores, expected)
    assert list(sample.layers) == ["sn1", "sy1", "sn2"]


def test_cost_lines() -> None:
    """520 times 0.9 pJ and 25,088 times 4.6 pJ, against 34,048 times 4.6 pJ."""
    assert inspect.cost_lines(Operations(520, 520, 25088, 34048)).splitlines() == [
        "with spikes: 520 synaptic operations (spikes times fan-out); "
        "520 accumulates and 25,088 multiply-accumulates remain, 115.9 nJ",
        "without spikes: 34,048 multiply-accumulates, 156.6 nJ "
        "(0.9 and 4.6 pJ each, 45 nm, Horowitz 2014)",
    ]


MISTAKES = [
    ("", 2, "name runs or folders of runs to compare, or --inspect CHECKPOINT"),
    ("--memory", 2, "--memory: name the runs, or folders of runs, to measure"),
    ("--memory --inspect RUN", 2, "--memory: name the runs"),
    ("none", 2, "none: no such directory"),
    ("EMPTY", 1, "holds no run (a directory with metrics.jsonl)"),
    ("RUN/latest.pt", 2, "latest.pt: a file; name a run directory"),
    ("RUN --out RUN/config.toml", 1, "name another --out"),
    ("RUN --memori", 2, "did you mean --memory?"),
    ("--memory RECORDS", 1, "--memory: none of these runs has usable weights (latest.pt)"),
    ("RECORDS DAMAGED", 1, "config.toml: not valid TOML"),
    ("--inspect none.pt", 2, "--inspect none.pt: no such file or directory"),
    ("--inspect RUN --index 200", 2, "--index 200: must be from 0 to 199"),
    ("--inspect RUN --index -1", 2, "--index -1: must be from 0 to 199"),
    ("RUN --index 3", 2, "--index 3: needs --inspect CHECKPOINT"),
    ("--inspect RUN --index one", 2, "argument --index: invalid int value: 'one'"),
    ("--inspekt RUN", 2, "did you mean --inspect?"),
    ("--inspect RUN/config.toml", 1, "not a checkpoint"),
    ("--inspect EMPTY", 1, "holds no checkpoint of a run"),
    ("RUN --out=", 2, "a path is empty; name a folder or a file"),
    ("--inspect RUN --out RUN/config.toml", 1, "name another --out"),
    ("--inspect RUN --models-file none.py", 2, "--models-file none.py: no such file"),
]


@pytest.mark.parametrize(("line", "code", "words"), MISTAKES)
def test_mistakes(
    trained: Path, tmp_path: Path, capsys: Any, line: str, code: int, words: str
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "records", [60.0])
    (make_run(tmp_path / "damaged", [60.0], seed=1) / "config.toml").write_text("[")
    places = {name.upper(): str(tmp_path / name) for name in ("run", "records", "damaged", "empty")}
    given = [word.split("/") for word in line.split()]
    arguments = ["/".join([places.get(first, first), *rest]) for first, *rest in given]
    assert report.main(arguments) == code
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("rsnn_fmnist: error: ")
    assert words in message


FILES = {"report.md", "results.csv", "differences.csv", "runs.csv"}
DRAWN = ("train_loss", "train_accuracy", "test_accuracy")
REMEMBERED = ("memory_read", "memory_blanked")


def images(names: tuple[str, ...], ending: str) -> set[str]:
    return {f"{name}{ending}{suffix}" for name in names for suffix in (".png", ".svg")}


def test_compare(trained: Path, tmp_path: Path, capsys: Any) -> None:
    """A run with weights and two without."""
    setting = {"dataset": "synthetic", "batch_size": 64}
    for seed, accuracy in ((1, 60.0), (2, 62.0)):
        make_run(tmp_path / "records", [accuracy], seed=seed, **setting)
    before = bytes_of(trained)
    out = tmp_path / "out"
    assert report.main([str(trained), "--out", str(out), str(tmp_path / "records")]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert bytes_of(trained) == before
    ending = "_synthetic_e1_b64"
    assert {file.name for file in out.iterdir()} == FILES | images(DRAWN, ending)
    words = (out / "report.md").read_text()
    printed, last = captured.out.rstrip().rsplit("\n", 1)
    assert words.startswith(printed.rstrip())
    assert last.startswith("wrote report.md, results.csv, differences.csv, runs.csv and, as PNG")
    assert f"![test_accuracy{ending}](test_accuracy{ending}.svg)" in words
    assert "| plain            |     2 | 61.00 ± 1.41 |" in words
    (row,) = [row for row in table(out / "results.csv") if row["model"] == "stateful-synapse"]
    content = checkpoint.load(trained / "latest.pt")
    assert float(row["last_mean"]) == content["rows"][-1]["test_acc1"]
    assert row["parameters"] == "1259"
    assert float(row["dense_multiply_accumulates"]) == 34048
    assert 0 < float(row["synaptic_operations"]) < 32 * 10 * 28
    assert (out / f"test_accuracy{ending}.svg").read_text().startswith("<?xml")


def test_a_folder_that_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another encoding than the machine's; on a terminal that has only ASCII."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    runs = tmp_path / "latin\udce9"
    for seed in (1, 2):
        make_run(runs, [60.0 + seed], seed=seed)
    min(runs.iterdir()).rename(runs / "run\udce9")
    assert report.main([str(runs), "--out", str(runs / "out")]) == 0
    written = (runs / "out" / "report.md").read_text(encoding="utf-8")
    assert "61.50 ± 0.71" in written
    assert r"run\udce9" in (runs / "out" / "runs.csv").read_text(encoding="utf-8")
    assert rb"61.50 \xb1 0.71" in output.buffer.getvalue()  # type: ignore[attr-defined]


def test_the_home_folder_in_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_run(tmp_path / "runs", [60.0])
    (tmp_path / "mine.py").touch()
    assert report.main(["~/runs", "--out=~/out", "--models-file=~/mine.py"]) == 0
    assert (tmp_path / "out" / "report.md").exists()
    for words in (["~nobody-here"], ["~/runs", "--data-path=~nobody-here"], ["--inspect", "a\0"]):
        assert report.main(words) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text())))


def test_memory(trained: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = [str(trained), "--memory", "--out", str(tmp_path), "--inspect", str(trained)]
    assert report.main(arguments) == 0
    names = {file.name for file in tmp_path.iterdir()}
    drawn = images(DRAWN + REMEMBERED, "")  # of a single model, its settings are compared
    assert names == FILES | {"memory.csv", "run_picture0.png"} | drawn
    rows = table(tmp_path / "memory.csv")
    ends = [
        float(row["test_acc1"])
        for row in rows
        if (row["what"], row["columns"]) in (("read", "28"), ("blanked", "0"))
    ]
    accuracy = checkpoint.load(trained / "latest.pt")["rows"][-1]["test_acc1"]
    assert ends == [accuracy, accuracy]
    out = capsys.readouterr().out
    assert "Test accuracy from part of each picture's columns:" in out
    assert "test picture 0: " in out


def test_a_report_made_again_is_the_same(trained: Path, tmp_path: Path) -> None:
    """No file depends on when and where it is written."""
    made = []
    for out in (tmp_path / "a", tmp_path / "b"):
        assert report.main([str(trained), "--memory", "--out", str(out)]) == 0
        made.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert len(made[0]) == 15
    assert made[0] == made[1]


def test_without_usable_weights_the_rest_is_reported(
    trained: Path, tmp_path: Path, capsys: Any
) -> None:
    damaged, other = tmp_path / "runs" / "damaged", tmp_path / "runs" / "other"
    shutil.copytree(trained, damaged)
    (damaged / "latest.pt").write_bytes(b"no zip")
    shutil.copytree(trained, other)
    config = (other / "config.toml").read_text()
    (other / "config.toml").write_text(config.replace("seed = 2020", "seed = 7"))
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"rsnn_fmnist: warning: {other}: its config.toml and its weights have")
    assert first.endswith("its weights are not used")
    assert "damaged/latest.pt: not a checkpoint" in second
    (row,) = table(tmp_path / "out" / "results.csv")
    assert (row["seeds"], row["synaptic_operations"]) == ("2", "")


def test_damaged_weights_cost_their_own_run_only(
    trained: Path, tmp_path: Path, capsys: Any
) -> None:
    """Of two seeds of a model, the first one's are damaged."""
    for name, seed in (("first", 2020), ("second", 2021)):
        shutil.copytree(trained, tmp_path / name)
        content = checkpoint.load(trained / "latest.pt")
        content["experiment"]["seed"] = seed
        atomic.save(tmp_path / name / "latest.pt", content)
        settings = (trained / "config.toml").read_text()
        changed = settings.replace("seed = 2020", f"seed = {seed}")
        (tmp_path / name / "config.toml").write_text(changed)
    (tmp_path / "first" / "latest.pt").write_bytes(b"damaged")
    (tmp_path / "first" / "latest.prev.pt").unlink(missing_ok=True)
    runs = [str(tmp_path / name) for name in ("first", "second")]
    assert report.main([*runs, "--out", str(tmp_path / "out")]) == 0
    (message,) = capsys.readouterr().err.splitlines()
    assert "first/latest.pt: not a checkpoint" in message
    (result,) = table(tmp_path / "out" / "results.csv")
    assert result["parameters"] == "1259"
    assert result["seeds_with_weights"] == "1"


def test_without_pictures_operations_are_not_counted(
    trained: Path, tmp_path: Path, capsys: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    content = checkpoint.load(run / "latest.pt")
    content["experiment"]["dataset"] = "fashion-mnist"
    atomic.save(run / "latest.pt", content)
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace('"synthetic"', '"fashion-mnist"'))
    nowhere = ["--no-download", "--data-path", str(tmp_path), "--out", str(tmp_path / "out")]
    assert report.main([str(run), *nowhere]) == 0
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith(
        "rsnn_fmnist: warning: operations are not counted: no FashionMNIST in"
    )
    assert report.main([str(run), "--memory", *nowhere]) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("rsnn_fmnist: error: no FashionMNIST in")


MINE = """
from rsnn_fmnist.models import plain, register
register("mine")(lambda hidden=32: plain(hidden=hidden))
"""


def test_a_users_model_needs_its_file(tmp_path: Path, capsys: Any) -> None:
    make_run(tmp_path / "runs", [60.0], model="mine", hidden=16)
    out = str(tmp_path / "out")
    assert report.main([str(tmp_path / "runs"), "--out", out]) == 0
    (message,) = capsys.readouterr().err.splitlines()
    assert "mine: not registered" in message
    assert "--models-file" in message
    assert table(tmp_path / "out" / "results.csv")[0]["parameters"] == ""
    (tmp_path / "mine.py").write_text(MINE)
    given = ["--models-file", str(tmp_path / "mine.py"), "--out", out]
    assert report.main([str(tmp_path / "runs"), *given]) == 0
    assert capsys.readouterr().err == ""
    assert table(tmp_path / "out" / "results.csv")[0]["parameters"] == "634"


def test_a_closed_output_is_not_an_error(trained: Path, tmp_path: Path) -> None:
    """As with `| head`: the files are written, and no error is printed."""
    command = [sys.executable, "-m", "rsnn_fmnist.report", str(tmp_path / "runs")]
    make_run(tmp_path / "runs", [60.0])
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [*command, "--out", str(tmp_path / "out")],
            stdout=closed,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(report.__file__).parents[2])},
            timeout=120,
        )
    assert (done.returncode, done.stderr) == (141, b"")
    assert (tmp_path / "out" / "report.md").exists()


def test_without_scipy(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("plain", "feedback"):
        make_run(tmp_path, [60.0], model=model)
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    assert report.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert "statistics need scipy: pip install 'rsnn-fmnist[report]'" in message
    assert not (tmp_path / "out").exists()


def test_without_matplotlib(trained: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_matplotlib(monkeypatch)
    assert report.main([str(trained)]) == 1
    capsys.readouterr()
    assert report.main(["--inspect", str(trained)]) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert "pip install 'rsnn-fmnist[report]'" in message


def forget_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    package = importlib.import_module("rsnn_fmnist.tracking")
    monkeypatch.delitem(sys.modules, "rsnn_fmnist.tracking.figures", raising=False)
    monkeypatch.delattr(package, "figures", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
