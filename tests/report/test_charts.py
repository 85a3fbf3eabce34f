"""The report's figures: every seed, the mean and the band, and the columns that were read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.made_runs import make_run

from rsnn_fmnist.report import records, statistics
from rsnn_fmnist.report.measurements import ModelResult, Section
from rsnn_fmnist.report.memory_curve import MemoryCurves

pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from rsnn_fmnist.report import charts
from rsnn_fmnist.report.charts import Line
from rsnn_fmnist.tracking import figures

TWO = [
    Line("plain", 0, [{0: 60.0, 1: 64.0, 2: 70.0}, {0: 62.0, 1: 60.0}]),
    Line("feedback", 1, [{0: 71.0, 1: 72.0, 2: 73.0}]),
]
PICTURE = torch.arange(784, dtype=torch.uint8).reshape(28, 28)  # [T, H]


def sections_in(folder: Path, curves: dict[int, MemoryCurves] | None = None) -> list[Section]:
    settings = statistics.grouped(records.read_all([folder]))
    results = [[ModelResult(group, curves=curves or {}) for group in groups] for groups in settings]
    return [Section(models, [], PICTURE if curves else None) for models in results]


def drawn(sections: list[Section]) -> dict[str, Figure]:
    return dict(charts.draw(sections))


def legend(figure: Figure) -> list[str]:
    shown = figure.axes[0].get_legend()
    assert shown is not None
    return [text.get_text() for text in shown.get_texts()]


def test_mean_and_deviation_are_over_the_seeds_that_have_come_so_far() -> None:
    x, middle, deviation = TWO[0].over_seeds()
    assert x == [0, 1, 2]
    assert middle.tolist() == [61, 62, 70]
    assert deviation.tolist() == pytest.approx([2**0.5, 8**0.5, 0])


def test_over_epochs() -> None:
    figure = charts.over_epochs(TWO, "test accuracy, %", "default settings")
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "test accuracy, %")
    assert axes.get_title() == "default settings"
    curves = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines]
    assert curves == [
        ([0, 1, 2], [60, 64, 70]),
        ([0, 1], [62, 60]),
        ([0, 1, 2], [61, 62, 70]),
        ([0, 1, 2], [71, 72, 73]),  # a single seed is its own mean
    ]
    first, second, mean, other = axes.lines
    assert first.get_linewidth() < mean.get_linewidth()
    assert {to_hex(line.get_color()) for line in (first, second, mean)} == {charts.COLORS[0]}
    assert to_hex(other.get_color()) == charts.COLORS[1]
    assert (mean.get_linestyle(), other.get_linestyle()) == ("-", "--")
    (band,) = axes.collections
    corners = {tuple(np.round(corner, 6)) for corner in band.get_paths()[0].vertices}
    assert {(0, round(61 - 2**0.5, 6)), (0, round(61 + 2**0.5, 6))} <= corners
    assert legend(figure) == ["plain (2 seeds)", "feedback (1 seed)"]
    assert "standard deviation" in figure.texts[0].get_text()


def test_a_single_epoch_is_seen() -> None:
    figure = charts.over_epochs([Line("plain", 0, [{0: 60.0}])], "loss", "")
    assert figure.axes[0].lines[0].get_marker() == "o"


def test_styles_do_not_run_out() -> None:
    lines = [Line(str(n), n, [{0: 1.0 * n, 1: 2.0 * n}]) for n in range(12)]
    figure = charts.over_epochs(lines, "loss", "")
    looks = {(to_hex(line.get_color()), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(figure.axes[0].lines) == 12
    assert len(looks) == 12


def test_the_columns_read_are_above_the_axis() -> None:
    lines = [Line("plain", 0, [{1: 10.0, 28: 70.0}])]
    figure = charts.over_columns(lines, PICTURE, "title", read=True)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "columns read, t"
    pixels = PICTURE.numpy().T
    assert len(axes.child_axes) == 8
    for t, beside in zip(range(0, 29, 4), axes.child_axes, strict=True):
        (shown,) = beside.images
        seen = np.ma.filled(shown.get_array(), np.nan)
        assert np.array_equal(seen[:, :t], pixels[:, :t])
        assert np.isnan(seen[:, t:]).all()
    assert centers(figure) == pytest.approx(list(range(0, 29, 4)))


def test_the_blanked_picture_is_above_the_axis() -> None:
    lines = [Line("plain", 0, [{0: 70.0, 28: 10.0}])]
    figure = charts.over_columns(lines, PICTURE, "title", read=False)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "columns blanked from the left, k"
    pixels = PICTURE.numpy().T
    for k, beside in zip(range(0, 29, 4), axes.child_axes, strict=True):
        (shown,) = beside.images
        assert np.array_equal(shown.get_array()[:, k:], pixels[:, k:])
        assert not shown.get_array()[:, :k].any()
    assert centers(figure) == pytest.approx(list(range(0, 29, 4)))


def centers(figure: Figure) -> list[float]:
    """The centers of the small pictures on the axis, once the figure is drawn."""
    figures.pixels(figure)
    (axes,) = figure.axes
    middles = [beside.get_window_extent() for beside in axes.child_axes]
    return [
        axes.transData.inverted().transform(((box.x0 + box.x1) / 2, box.y0))[0] for box in middles
    ]


def test_the_figures_of_a_report(tmp_path: Path) -> None:
    for model in ("plain", "feedback"):
        for seed in (1, 2):
            make_run(tmp_path, [60.0 + seed] * 90, model=model, seed=seed)
            make_run(tmp_path, [70.0, 80.0], model=model, seed=seed)
    curves = MemoryCurves([1.0] * 28, [2.0] * 29)
    found = drawn(sections_in(tmp_path, {1: curves, 2: curves}))
    names = ["train_loss", "train_accuracy", "test_accuracy", "memory_read", "memory_blanked"]
    assert list(found) == names + [f"{name}_e2" for name in names]
    for name, figure in found.items():
        assert legend(figure) == ["plain (2 seeds)", "feedback (2 seeds)"]
        assert figures.pixels(figure).std() > 10, name
    curves = {name: list(found[name].axes[0].lines[0].get_ydata()) for name in found}
    assert curves["train_loss_e2"] == pytest.approx([0.3, 0.2])
    assert curves["train_accuracy_e2"] == [75, 85]
    assert curves["test_accuracy_e2"] == [70, 80]
    assert found["test_accuracy_e2"].axes[0].get_title() == "--epochs 2"
    assert found["test_accuracy"].axes[0].get_title() == "default settings"


def test_a_model_keeps_its_look_if_another_is_missing(tmp_path: Path) -> None:
    make_run(tmp_path, [60.0] * 90)
    make_run(tmp_path, [60.0] * 90, model="feedback")
    make_run(tmp_path, [60.0], model="feedback")
    looks = [
        {label: style for label, style, _ in selection.results}
        for selection in charts.selections(sections_in(tmp_path))
    ]
    assert looks == [{"plain": 0, "feedback": 1}, {"feedback": 1}]


def test_the_settings_of_a_single_model_share_a_figure(tmp_path: Path) -> None:
    for settings in ({}, {"lr": 0.5}, {"lr": 0.2}):
        make_run(tmp_path, [60.0] * 90, **settings)
    found = drawn(sections_in(tmp_path))
    assert list(found) == ["train_loss", "train_accuracy", "test_accuracy"]
    labels = ["default settings (1 seed)", "--lr 0.2 (1 seed)", "--lr 0.5 (1 seed)"]
    assert legend(found["test_accuracy"]) == labels


def test_runs_without_an_epoch_are_not_drawn(tmp_path: Path) -> None:
    (make_run(tmp_path, [60.0]) / "metrics.jsonl").write_text("")
    assert drawn(sections_in(tmp_path)) == {}
    make_run(tmp_path, [60.0], model="feedback")
    assert legend(drawn(sections_in(tmp_path))["train_loss_e1"]) == ["feedback (1 seed)"]


def test_models_with_other_scores_are_in_the_second_figure_only(tmp_path: Path) -> None:
    make_run(tmp_path, [60.0] * 90)
    found = drawn(sections_in(tmp_path, {2020: MemoryCurves(None, [2.0] * 29)}))
    assert [name for name in found if "memory" in name] == ["memory_blanked"]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_figure_gives_the_same_file_again(tmp_path: Path, suffix: str) -> None:
    """Remaking a report changes nothing that is under version control."""
    files = []
    for n in range(2):
        file = tmp_path / f"{n}{suffix}"
        figures.save(charts.over_epochs(TWO, "loss", "default"), file)
        files.append(file.read_bytes())
    assert files[0] == files[1]


def test_a_vector_figure_of_a_whole_reproduction_is_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [Line(str(n), n, [dict(enumerate(rng.random(90))) for _ in range(5)]) for n in range(3)]
    figures.save(charts.over_epochs(lines, "loss", "default"), tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size < 100_000
    assert ">loss</text>" in (tmp_path / "figure.svg").read_text()


def test_the_module_needs_no_screen(monkeypatch: Any) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    figures.pixels(charts.over_epochs(TWO, "loss", "default"))
    assert "matplotlib.pyplot" not in sys.modules
