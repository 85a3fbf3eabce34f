"""python -m rsnn_fmnist.report, as a person meets it."""

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rsnn_fmnist import checkpoint, cli, report
from rsnn_fmnist.energy import Energy

pytestmark = pytest.mark.usefixtures("small_synthetic")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a short run."""
    pytest.importorskip("matplotlib")
    data = importlib.import_module("rsnn_fmnist.data")
    folder = tmp_path_factory.mktemp("runs")
    flags = "--model stateful-synapse --dataset synthetic --device cpu --threads 1 -b 64 --epochs 1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SYNTHETIC", {"train": (640, 1), "test": (200, 2)})
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
    assert first.startswith(f"test picture {index}: ")
    assert "synaptic operations (spikes times fan-out)" in spiking
    assert "multiply-accumulates remain" in spiking
    assert dense.startswith("without: 34,048 multiply-accumulates, 156.6 nJ (0.9 and 4.6 pJ each")
    assert last == f"wrote {tmp_path / file}"
    assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")
    assert captured.err == ""
    assert bytes_of(trained) == before


def test_the_figure_is_tensorboards(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One function draws both; here it is given the whole test set's answer to that picture."""
    figures = importlib.import_module("rsnn_fmnist.figures")
    seen = []
    drawn = figures.passage
    monkeypatch.setattr(figures, "passage", lambda *given: seen.append(given) or drawn(*given))
    arguments = ["--inspect", str(trained), "--index", "3", "--out", str(tmp_path)]
    assert report.main(arguments) == 0
    ((x, label, scores, sample),) = seen
    assert x.shape == (28, 28)
    content = checkpoint.load(trained / "latest.pt")
    machine = report.Machine(device="cpu")
    session = report.open_test(checkpoint.experiment_of(content, trained), machine)
    session.model.load_state_dict(content["model"])
    session.model.eval()
    ((pictures, labels),) = session.test.batches([torch.arange(200)])
    with torch.no_grad():
        expected = session.model(pictures)[3]
    assert torch.equal(x, pictures[3])
    assert label == labels[3]
    assert torch.equal(scores, expected)
    assert list(sample.layers) == ["sn1", "sy1", "sn2"]


def test_energy_lines() -> None:
    """520 times 0.9 pJ and 25,088 times 4.6 pJ, against 34,048 times 4.6 pJ."""
    assert report.energy_lines(Energy(520, 520, 25088, 34048)).splitlines() == [
        "with spikes: 520 synaptic operations (spikes times fan-out); "
        "520 accumulates and 25,088 multiply-accumulates remain, 115.9 nJ",
        "without: 34,048 multiply-accumulates, 156.6 nJ "
        "(0.9 and 4.6 pJ each, 45 nm, Horowitz 2014)",
    ]


MISTAKES = [
    ("", 2, "--inspect CHECKPOINT: name what to look at"),
    ("--inspect none.pt", 2, "--inspect none.pt: no such file or directory"),
    ("--inspect RUN --index 200", 2, "--index 200: must be from 0 to 199"),
    ("--inspect RUN --index -1", 2, "--index -1: must be from 0 to 199"),
    ("--inspect RUN --index one", 2, "argument --index: invalid int value: 'one'"),
    ("--inspekt RUN", 2, "did you mean --inspect?"),
    ("--inspect RUN/config.toml", 1, "not a checkpoint"),
    ("--inspect EMPTY", 1, "holds no checkpoint of a run"),
    ("--inspect RUN --out RUN/config.toml", 1, "name another --out"),
    ("--inspect RUN --models-file none.py", 2, "--models-file none.py: no such file"),
]


@pytest.mark.parametrize(("line", "code", "words"), MISTAKES)
def test_mistakes(
    trained: Path, tmp_path: Path, capsys: Any, line: str, code: int, words: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    (tmp_path / "empty").mkdir()
    line = line.replace("RUN", str(copy)).replace("EMPTY", str(tmp_path / "empty"))
    assert report.main(line.split()) == code
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("rsnn_fmnist: error: ")
    assert words in told


def test_without_matplotlib_it_says_what_to_install(
    trained: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_matplotlib(monkeypatch)
    assert report.main(["--inspect", str(trained)]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert "pip install 'rsnn-fmnist[report]'" in told


def forget_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    package = importlib.import_module("rsnn_fmnist")
    monkeypatch.delitem(sys.modules, "rsnn_fmnist.figures", raising=False)
    monkeypatch.delattr(package, "figures", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
