"""The report's text and numbers, as Markdown and CSV, match the runs."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.made_runs import make_run, row

from rsnn_fmnist.report import records, statistics, tables
from rsnn_fmnist.report.energy import Operations
from rsnn_fmnist.report.measurements import ModelResult, Section
from rsnn_fmnist.report.memory_curve import MemoryCurves

pytest.importorskip("scipy")


def sections_in(folder: Path) -> list[Section]:
    settings = statistics.grouped(records.read_all([folder]))
    return [section_of([ModelResult(group) for group in groups]) for groups in settings]


def section_of(models: list[ModelResult]) -> Section:
    return Section(models, statistics.compare([model.group for model in models]))


def read(sections: list[Section], name: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(tables.csv_files(sections)[name])))


@pytest.fixture
def two_models(tmp_path: Path) -> list[Section]:
    """plain 60, 62, 64 and feedback 70, 10 at the end; feedback's second seed has collapsed."""
    for seed, accuracies in enumerate(([50.0, 60.0], [63.0, 62.0], [50.0, 64.0]), 1):
        make_run(tmp_path, accuracies, seed=seed)
    for seed, accuracies in enumerate(([50.0, 70.0], [71.0, 10.0]), 1):
        make_run(tmp_path, accuracies, seed=seed, model="feedback")
    (section,) = sections_in(tmp_path)
    plain, feedback = section.models
    operations = {1: Operations(100, 100, 20, 300), 2: Operations(200, 150, 40, 300)}
    return [section_of([ModelResult(plain.group, 1258, operations), feedback])]


def test_the_table(two_models: list[Section]) -> None:
    lines = tables.results(two_models[0]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header, rule, plain, feedback = cells
    assert header[:4] == ["model", "seeds", "last epoch", "best epoch (optimistic)"]
    assert header[4:] == [
        "parameters", "images/s", "synaptic operations", "multiply-accumulates", "without spikes",
    ]  # fmt: skip
    assert {cell.strip("-") for cell in rule} == {"", ":"}
    assert plain[:4] == ["plain", "3", "62.00 ± 2.00", "62.33 ± 2.08"]
    assert plain[4:] == ["1,258", "1,000", "150", "30", "300"]
    assert feedback[:4] == ["feedback", "2", "40.00 ± 42.43", "70.50 ± 0.71"]
    assert feedback[4:] == ["-", "1,000", "-", "-", "-"]
    assert len({len(line) for line in lines}) == 1  # aligned


def test_every_seed_is_listed_even_if_it_has_collapsed(two_models: list[Section]) -> None:
    assert tables.seeds(two_models[0]).splitlines() == [
        "| seed | plain | feedback |",
        "| ---- | ----: | -------: |",
        "| 1    | 60.00 |    70.00 |",
        "| 2    | 62.00 |    10.00 |",
        "| 3    | 64.00 |        - |",
    ]


def test_differences(two_models: list[Section]) -> None:
    difference = statistics.welch([70.0, 10.0], [60.0, 62.0, 64.0])
    assert difference.p is not None
    assert difference.low is not None
    assert difference.high is not None
    (differences,) = tables.differences(two_models[0])
    (_, _, line) = differences.splitlines()
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "feedback minus plain",
        "-22.00",
        f"{difference.low:+.2f} to {difference.high:+.2f}",
        f"{difference.p:.2g}",
    ]
    (row,) = read(two_models, "differences.csv")
    assert (row["model"], row["minus"], row["measure"]) == ("feedback", "plain", "last epoch")
    numbers = [float(row[name]) for name in ("difference", "low", "high", "p")]
    assert numbers == [-22, difference.low, difference.high, difference.p]


def test_one_seed_has_neither_deviation_nor_interval(tmp_path: Path) -> None:
    make_run(tmp_path, [60.0])
    make_run(tmp_path, [70.0], model="feedback")
    sections = sections_in(tmp_path)
    words = tables.markdown(sections)
    assert "60.00 ± -" in words
    assert "| feedback minus plain   | +10.00 |             - | - |" in words
    (row,) = read(sections, "differences.csv")
    assert (row["difference"], row["low"], row["high"], row["p"]) == ("10.0", "", "", "")
    assert read(sections, "results.csv")[0]["last_deviation"] == ""


def test_unfinished_runs_are_listed(tmp_path: Path) -> None:
    make_run(tmp_path, [60.0, 65.0], epochs=7, seed=1)
    (make_run(tmp_path, [1.0], epochs=7, seed=2) / "metrics.jsonl").write_text("")
    make_run(tmp_path, [60.0] * 7, seed=3)
    sections = sections_in(tmp_path)
    listed = tables.unfinished(sections[0])
    assert "plain seed 1: 2 of 7 epochs; plain seed 2: 0 of 7 epochs." in listed
    assert "seed 3" not in listed
    seeds = tables.seeds(sections[0])
    assert "65.00 (2 of 7 epochs) |" in seeds
    assert "- (0 of 7 epochs) |" in seeds
    assert listed in tables.markdown(sections)
    (result,) = read(sections, "results.csv")
    assert (result["seeds"], result["last_mean"]) == ("2", "62.5")
    done = [(run["seed"], run["epochs_done"], run["epochs"]) for run in read(sections, "runs.csv")]
    assert done == [("1", "2", "7"), ("2", "0", "7"), ("3", "7", "7")]


def test_runs_without_any_epoch(tmp_path: Path) -> None:
    (make_run(tmp_path, [1.0], epochs=7) / "metrics.jsonl").write_text("")
    sections = sections_in(tmp_path)
    assert "| plain |     0 |          - |" in tables.markdown(sections)
    (result,) = read(sections, "results.csv")
    assert (result["seeds"], result["last_mean"], result["images_per_second"]) == ("0", "", "")


def test_held_out_pictures_choose_the_best_epoch(tmp_path: Path) -> None:
    for model, seed in (("plain", 1), ("plain", 2), ("feedback", 1), ("feedback", 2)):
        rows = [row(0, 50 + seed, val_acc1=90), row(1, 70.0, val_acc1=80)]
        make_run(tmp_path, [0, 0], rows=rows, val_size=5000, model=model, seed=seed)
    sections = sections_in(tmp_path)
    words = tables.markdown(sections)
    assert "## With `--val-size 5000 --epochs 2`" in words
    assert "The best epoch is chosen on 5,000 held-out pictures." in words
    assert "best epoch on held-out" in words
    assert "optimistic" not in words
    assert "51.50 ± 0.71" in words
    assert [line["measure"] for line in read(sections, "differences.csv")] == [
        "last epoch",
        "best epoch on held-out",
    ]
    assert {line["best_chosen_on"] for line in read(sections, "results.csv")} == {"val"}


def test_the_text_around_the_tables(two_models: list[Section]) -> None:
    words = tables.markdown(two_models)
    assert "which is optimistic" in words
    assert "Welch's t-test" in words
    assert "doi:10.3389/fnins.2017.00682" in words
    assert "doi:10.1038/s41467-025-56739-4" in words
    assert (
        "Trained on: One, 1 CPU thread, backend numba (5 runs); 0:00:20 (h:mm:ss) in total" in words
    )
    assert "columns" not in words  # memory curves were not asked for


def test_settings_have_sections_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path, [60.0] * 90)
    make_run(tmp_path, [60.0], epochs=1, dataset="synthetic")
    words = tables.markdown(sections_in(tmp_path))
    assert words.index("## Default settings") < words.index("## With `--dataset synthetic")
    assert "on the FashionMNIST test pictures" in words
    assert "on the synthetic test pictures" in words


def test_machines(tmp_path: Path) -> None:
    for seed, text in ((1, None), (2, "{}"), (3, '{"device_name": "GPU", "threads": 2}')):
        file = make_run(tmp_path, [60.0], seed=seed) / "environment.json"
        if text:
            file.write_text(text)
    assert tables.machines(records.read_all([tmp_path])) == (
        "One, 1 CPU thread, backend numba (1 run); an unknown machine (1 run); "
        "GPU, 2 CPU threads, backend - (1 run)"
    )


def test_memory_in_numbers(two_models: list[Section]) -> None:
    plain, feedback = two_models[0].models
    read_after = [float(n) for n in range(1, 29)]
    blanked = [float(90 - k) for k in range(29)]
    curves = {
        1: MemoryCurves(read_after, blanked),
        2: MemoryCurves([v + 2 for v in read_after], blanked),
    }
    only_blanked = ModelResult(feedback.group, curves={1: MemoryCurves(None, blanked)})
    section = section_of([ModelResult(plain.group, curves=curves), only_blanked])
    (_, _, first, second) = tables.memory(section).splitlines()
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[:3] == ["plain", "2", "8.00 ± 1.41"]
    assert cells[5:] == ["29.00 ± 1.41", "83.00 ± 0.00", "76.00 ± 0.00", "69.00 ± 0.00"]
    assert [cell.strip() for cell in second.strip("|").split("|")] == [
        "feedback", "1", "-", "-", "-", "-", "83.00 ± -", "76.00 ± -", "69.00 ± -",
    ]  # fmt: skip
    rows = read([section], "memory.csv")
    assert len(rows) == 2 * (28 + 29) + 29
    assert {row["what"] for row in rows if row["model"] == "feedback"} == {"blanked"}
    chosen = [
        float(row["test_acc1"])
        for row in rows
        if (row["model"], row["seed"], row["what"]) == ("plain", "2", "read")
    ]
    assert chosen == [n + 2 for n in range(1, 29)]
    assert "memory.csv" not in tables.csv_files(two_models)


def test_csv_numbers_are_not_rounded(two_models: list[Section]) -> None:
    plain, feedback = read(two_models, "results.csv")
    assert float(feedback["last_deviation"]) == pytest.approx(math.sqrt(1800), rel=1e-12)
    assert plain["parameters"] == "1258"
    assert feedback["parameters"] == ""
    assert (plain["accumulates"], plain["seeds_with_weights"]) == ("125", "2")
    runs = read(two_models, "runs.csv")
    assert [run["run"] for run in runs if run["model"] == "feedback"] == [
        "feedback_e2_seed1",
        "feedback_e2_seed2",
    ]
    collapsed = runs[-1]
    assert (collapsed["last_test_acc1"], collapsed["best_test_acc1"]) == ("10.0", "71.0")
    assert (collapsed["best_epoch"], collapsed["seconds"]) == ("0", "4.0")


def test_a_name_cannot_break_the_table() -> None:
    table = tables.table(["a|b", "n"], [["x", 1], [None, "long"]])
    assert table.splitlines()[0] == "| a\\|b |    n |"
