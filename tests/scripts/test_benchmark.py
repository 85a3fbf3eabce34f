"""scripts/benchmark.py: its statistics, its tables, its plan, and that it runs."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """The script as a module; it imports its neighbor as a script does."""
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPTS / "benchmark.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        patch.setitem(sys.modules, "benchmark", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def rows(benchmark: ModuleType) -> list[Any]:
    row = benchmark.Row
    return [
        row("numba", "plain", 1, (90.0, 100.0, 300.0), 500.0),
        row("numba", "plain", 2, (200.0, 160.0), 510.0),
        row("tutorial", "plain", None, (5.0, 4.0, 9.0), 700.0),
        row("tutorial", "feedback", None, (1.0,), 700.0),
        row("spikingjelly2", "plain", 1, (20.0,), 600.0),
        row("lstm", "lstm", 1, (50.0,), 400.0),
    ]


def test_ratios_are_of_medians_and_thread_for_thread(
    benchmark: ModuleType, rows: list[Any]
) -> None:
    tables = sys.modules["benchmark_tables"]
    ratios = [[tables.ratio(row, rows, b) for b in tables.baselines(row)] for row in rows[:3]]
    assert ratios[0] == [100 / 5, None, 100 / 20, 100 / 50]
    assert ratios[1] == [180 / 5, None, None, None]
    assert ratios[2] == [1, None, None, None]


def test_the_table_has_a_line_a_row(benchmark: ModuleType, rows: list[Any]) -> None:
    heading, first, *others = benchmark.table(rows).splitlines()
    assert len(others) == len(rows) - 1
    assert {len(line) for line in (first, *others)} == {len(heading)}
    assert first.split()[-8:] == ["1", "100", "90-300", "20.00x", "-", "5.00x", "2.00x", "500"]
    assert "own" in others[1]


def test_the_share_of_the_peak(benchmark: ModuleType, rows: list[Any]) -> None:
    """Of plain: 28 x 32 forward and for weights; 32 x 10 three times; 28 columns, 2 operations."""
    flops = 28 * 2 * (2 * 28 * 32 + 3 * 32 * 10)
    (line,) = benchmark.peak_lines(rows, 4 * 100 * flops / 1e9)
    assert line.endswith(" GFLOP/s: plain 25 %")
    assert benchmark.peak_lines(rows, None) == []


def test_growth_is_told_by_value_and_model(benchmark: ModuleType) -> None:
    points = [
        (value, benchmark.Row("numba", model, 2, (rate,)))
        for model, rate in (("plain", 1000.0), ("feedback", 500.0))
        for value in (128, 2048)
    ]
    heading, plain, feedback = benchmark.scaling_table("batch", points).splitlines()
    assert heading.split() == ["batch", "128", "2,048"]
    assert plain.split() == ["plain", *["1,000/s", "1000.0", "us"] * 2]
    assert feedback.split() == ["feedback", *["500/s", "2000.0", "us"] * 2]


def test_a_record_is_json_and_holds_every_sample(benchmark: ModuleType, rows: list[Any]) -> None:
    record = json.loads(json.dumps(benchmark.row_record(rows[0], rows)))
    assert record["samples"] == [90, 100, 300]
    assert (record["lowest"], record["median"], record["highest"]) == (90, 100, 300)
    assert record["ratios"] == {"tutorial": 20, "sj-2.0": 5, "LSTM": 2}


def test_a_throughput_counts_what_follows_the_warm_up(benchmark: ModuleType) -> None:
    contestants = benchmark.benchmark_contestants
    now = 0.0

    def steps() -> Iterator[int]:
        nonlocal now
        for seconds in (50.0, *[1.0] * 4, *[0.5] * 8):  # the first one compiles
            now += seconds
            yield 10

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contestants.time, "perf_counter", lambda: now)
        assert contestants.throughput(steps(), 2.0) == 20


def test_a_peer_that_is_absent_is_named_with_its_command(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    pythons, versions = benchmark.find_peers()
    assert pythons == versions == {}
    tutorial, other, native = benchmark.missing(tuple(benchmark.CONTESTANTS), pythons)
    assert tutorial == (
        "tutorial: not installed; python3 -m venv .peers/tutorial && .peers/tutorial/bin/python -m "
        "pip install torch torchvision tensorboard spikingjelly==0.0.0.0.12"
    )
    assert other.startswith("spikingjelly2: not installed; python3 -m venv .peers/spikingjelly2 ")
    assert native == (
        "spikingjelly2-native: not installed; python3 -m venv .peers/spikingjelly2-native && "
        ".peers/spikingjelly2-native/bin/python -m pip install torch torchvision setuptools && "
        "SJ_BUILD_NATIVE_CUDA=1 .peers/spikingjelly2-native/bin/python -m pip install "
        "--no-build-isolation --no-binary spikingjelly spikingjelly==2.0.0"
    )
    cases = benchmark.plan(benchmark.parse([]), pythons, "root")
    assert {case.contestant for case in cases} == {"numba", "numba-amp", "torch", "lstm"}
    assert len(cases) == 3 * 3 * 2 + 2
    assert {case.model for case in benchmark.scaling_base(cases)} == set(benchmark.MODELS)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--rounds 0", "--rounds: 0 must be at least 1"),
        ("--seconds nan", "--seconds nan"),
        ("--models plane", "plane"),
        ("--contestants cuda", "--contestants cuda: not on cpu; there, numba, "),
        ("--device cuda --contestants lstm", "there, cuda, cuda-amp, cuda-eager, "),
        ("--json nowhere/figures.json", "no such folder"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], flags: str, says: str
) -> None:
    assert benchmark.main(flags.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("rsnn_fmnist: error: ")
    assert says in printed.err
    assert printed.err.count("\n") == 1


def test_on_cuda_this_project_meets_its_peers_there(benchmark: ModuleType) -> None:
    pythons = {"spikingjelly2": "python"}
    cases = benchmark.plan(benchmark.parse(["--device", "cuda"]), pythons, "root")
    ours = ["cuda", "cuda-amp", "cuda-eager", "cuda-eager-amp"]
    peers = ["spikingjelly2-triton"]
    assert [case.contestant for case in cases] == [*3 * [*ours, *peers], "lstm-cuda"]
    assert {case.threads for case in cases} == {1}
    growing = benchmark.scaling_base(cases)
    assert [(c.contestant, c.model) for c in growing] == [("cuda", m) for m in benchmark.MODELS]
    row = benchmark.Row
    rows = [
        row("cuda", "plain", 1, (100.0,)),
        row("cuda-eager", "plain", 1, (20.0,)),
        row("spikingjelly2-triton", "plain", 1, (10.0,)),
        row("lstm-cuda", "lstm", 1, (50.0,)),
    ]
    heading, first, *_ = benchmark.table(rows).splitlines()
    assert heading.split()[-4:] == ["/sj-native", "/LSTM", "peak", "MiB"]
    assert first.split()[-4:] == ["10.00x", "-", "2.00x", "0"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--device", "cuda", "--quick"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("rsnn_fmnist: error: --device cuda: ")
    assert line.endswith("use --device cpu, or leave it out")


@pytest.mark.slow
def test_a_quick_run_measures_and_records(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    flags = ["--quick", "--contestants", "torch", "--threads", "1", "--json", str(file)]
    assert benchmark.main(flags) == 0
    record = json.loads(file.read_text())
    (row,) = record["training"]
    assert (row["contestant"], row["model"], row["threads"]) == ("torch", "plain", 1)
    assert row["median"] > 0
    assert row["peak_mib"] > 50
    assert record["settings"]["quick"] is True
    assert str(tmp_path.anchor + "tmp") not in json.dumps(record)
    assert "rsnn_fmnist, torch" in capsys.readouterr().out
