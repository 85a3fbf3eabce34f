"""Figures show the numbers that they are given."""

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.program import ENVIRONMENT
from torch import Tensor, nn

from rsnn_fmnist import models
from rsnn_fmnist.data.pictures import CLASS_NAMES
from rsnn_fmnist.spiking import IF, record

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex  # noqa: E402

from rsnn_fmnist.tracking import figures  # noqa: E402


def test_the_style_of_the_user_is_ignored(tmp_path: Path) -> None:
    """One that needs LaTeX, and a backend of a notebook that is not installed here."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nlines.linewidth: 9\n")
    program = """
import os, torch
from pathlib import Path
from rsnn_fmnist.tracking.diagnostics import import_figures
figures = import_figures("this test")
import matplotlib
figure = figures.confusion_matrix(torch.eye(10))
figures.save(figure, Path("figure.png"))
figures.pixels(figure)
assert matplotlib.rcParams["text.usetex"] and os.environ["MPLBACKEND"] == "module://nowhere"
"""
    environment = {**ENVIRONMENT, "MPLBACKEND": "module://nowhere", "MATPLOTLIBRC": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    ours = figures.confusion_matrix(torch.eye(10))
    figures.save(ours, tmp_path / "ours.png")
    assert (tmp_path / "figure.png").read_bytes() == (tmp_path / "ours.png").read_bytes()


def recorded(model: nn.Module, x: Tensor, n: int) -> tuple[Tensor, figures.Sample]:
    with torch.no_grad(), record(model) as rec:
        scores = model(x)
    return scores[n], figures.sample(rec, n)


def active(name: str) -> tuple[Tensor, Tensor, figures.Sample]:
    """Three pictures, and what an untrained network that fires does with the second."""
    torch.manual_seed(3)
    x = torch.rand(3, 28, 28) * 4
    return (x, *recorded(models.build(name), x, 1))


@pytest.mark.parametrize("name", ["plain", "feedback", "stateful-synapse"])
def test_a_network_at_work(name: str) -> None:
    x, scores, sample = active(name)
    figure = figures.network_at_work(x[1], 3, scores, sample)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes[2:]}
    traces = ["sy1: trace y"] if name == "stateful-synapse" else []
    assert list(panels) == [
        "columns as read, pixels from the top",
        "sn1: spikes s, by neuron",
        "sn1: potential before the reset, h",
        *traces,
        "sn2: spikes s, by neuron",
        "sn2: potential before the reset, h",
        "running rates of the classes",
    ]
    for axes in panels.values():
        assert axes.get_xlim() == (-0.5, 27.5)
    assert np.array_equal(figure.axes[0].images[0].get_array(), x[1])
    for layer in ("sn1", "sn2"):
        trains = sample.layers[layer]
        assert isinstance(trains, figures.Trains)
        assert 0 < trains.s.sum() < trains.s.size
        (marks,) = panels[f"{layer}: spikes s, by neuron"].collections
        t, neuron = np.nonzero(trains.s)
        assert np.array_equal(marks.get_offsets(), np.stack((t, neuron), 1))
    hidden, output = sample.layers["sn1"], sample.layers["sn2"]
    image = panels["sn1: potential before the reset, h"].images[0]
    assert np.array_equal(image.get_array(), hidden.h.T)
    assert image.norm(1.0) == pytest.approx(0.5)  # the threshold is the middle of the colors
    lines = panels["sn2: potential before the reset, h"].lines
    assert np.array_equal([line.get_ydata() for line in lines[:10]], output.h.T)
    rates = [line.get_ydata()[-1] for line in panels["running rates of the classes"].lines]
    assert rates == pytest.approx(scores.tolist())
    bars = [bar.get_width() for bar in figure.axes[1].patches]
    assert bars == pytest.approx(scores.tolist())
    how = "correctly" if int(scores.argmax()) == 3 else "wrongly"
    assert figure.get_suptitle().startswith(f"dress, {how} classified as ")


def test_lines_and_colors_are_named() -> None:
    x, scores, sample = active("plain")
    figure = figures.network_at_work(x[1], 3, scores, sample)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes[2:]}
    names = [text.get_text() for text in panels["running rates of the classes"].texts]
    assert names == [CLASS_NAMES[f] for f in range(10) if scores[f] > 0]
    assert 0 < len(names) < 10
    (key,) = figure.axes[1].collections  # of every class, also of those without a bar
    assert [to_hex(color) for color in key.get_facecolors()] == list(figures.COLORS)
    (threshold,) = panels["sn2: potential before the reset, h"].texts
    assert threshold.get_text() == "threshold 1"
    (bar,) = panels["sn1: potential before the reset, h"].child_axes
    h = sample.layers["sn1"].h  # type: ignore[union-attr]
    words = [text.get_text() for text in bar.texts]
    assert words == [f"min {h.min():.3g}", "threshold 1", f"max {h.max():.3g}"]


def test_labels_are_moved_apart_in_order() -> None:
    heights = figures._apart([0.9, 0.1, 1.0, 0.11], 0.0, 1.0)
    assert heights == pytest.approx([0.86, 0.1, 1.0, 0.24])
    crowd = figures._apart([0.5] * 10, 0.0, 1.0)
    assert crowd == pytest.approx([n / 9 for n in range(10)])


def test_models_with_other_or_no_spiking_layers_are_drawn_too() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 28, 28)
    for model in (
        nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
        models.build("plain", hidden=1),
        nn.Sequential(
            models.ColumnReader(OrderedDict(fc=nn.Linear(28, 3), sn=IF())), nn.Linear(3, 10)
        ),
    ):
        scores, sample = recorded(model, x, 0)
        assert figures.pixels(figures.network_at_work(x[0], 0, scores, sample)).std() > 10


def test_running_rates() -> None:
    s = np.zeros((4, 10))
    s[1:, 2] = 1
    trains = figures.Trains(s, s, 1.0)
    rates = figures.Sample({"sn": trains}).running_rates()
    assert rates is not None
    assert rates[:, 2].tolist() == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4])
    few = figures.Trains(s[:, :3], s[:, :3], 1.0)
    assert figures.Sample({"sn": few}).running_rates() is None
    assert figures.Sample({"sy": s}).running_rates() is None


def test_confusion_matrix() -> None:
    counts = torch.arange(100).reshape(10, 10)
    counts[4] = 0  # a class without pictures
    figure = figures.confusion_matrix(counts)
    (axes,) = figure.axes
    texts = [int(text.get_text()) for text in axes.texts]
    assert texts == counts.flatten().tolist()
    shown = axes.images[0].get_array()
    assert shown[9].sum() == pytest.approx(1)
    assert shown[4].sum() == 0
    total, right = int(counts.sum()), int(counts.trace())
    assert axes.get_title() == f"{right:,} of {total:,} test pictures classified correctly"


def test_pixels_of_a_figure() -> None:
    x, scores, sample = active("plain")
    drawn = figures.pixels(figures.network_at_work(x[1], 3, scores, sample))
    assert drawn.dtype == np.uint8
    assert drawn.shape[2] == 3
    assert 100 < drawn.mean() < 255


def test_pyplot_is_never_imported() -> None:
    """Its state is global, and it may need a display."""
    program = (
        "import sys, torch; from rsnn_fmnist.tracking import figures;"
        "figures.pixels(figures.confusion_matrix(torch.eye(10)));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
