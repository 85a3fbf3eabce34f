"""Figures of a network at work, for TensorBoard and the report.

matplotlib's own objects, without pyplot and its global state, and in its default style, whatever
the user's is. Importing this module needs the `report` extra; `diagnostics.import_figures` reports
where it is missing. Measuring is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from ..data.pictures import CLASS_NAMES
from ..spiking.monitor import Recording

Array = NDArray[Any]
Draw = Callable[[Axes], None]  # on axes whose x is the time step

COLORS = (  # of the classes; color-blind readers can tell them apart
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee",
    "#aa3377", "#999999", "#000000", "#dd7711", "#7755cc",
)  # fmt: skip
# Decorates whatever draws or renders.
default_style = rc_context({k: v for k, v in rcParamsDefault.items() if k != "backend"})
FEW = 10  # neurons drawn as a line each; more are drawn as an image


@dataclass(frozen=True)
class Trains:
    """The spikes s and the potentials before the reset h of F neurons on one picture, [T, F]."""

    s: Array
    h: Array
    v_threshold: float | None


@dataclass(frozen=True)
class Sample:
    """The layers' activity on one picture, in the model's order: neurons, or a trace [T, F]."""

    layers: dict[str, Trains | Array]

    def running_rates(self) -> Array | None:
        """The mean spikes up to each step of the last neurons, [T, 10]; None: not one per class."""
        neurons = [layer for layer in self.layers.values() if isinstance(layer, Trains)]
        if not neurons or neurons[-1].s.shape[1] != len(CLASS_NAMES):
            return None
        s = neurons[-1].s
        rates: Array = np.cumsum(s, axis=0) / np.arange(1, len(s) + 1)[:, None]
        return rates


def sample(recording: Recording, n: int) -> Sample:
    """The activity on picture n of a recorded batch."""

    def flat(values: Tensor) -> Array:
        return _array(values[:, n].reshape(len(values), -1))

    layers: dict[str, Trains | Array] = {}
    for name in recording.order:
        if name in recording:
            layer = recording[name]
            layers[name] = Trains(flat(layer.s), flat(layer.h), layer.v_threshold)
        elif name in recording.traces:
            layers[name] = flat(recording.traces[name])
    return Sample(layers)


@default_style
def network_at_work(x: Tensor, label: int, scores: Tensor, sample: Sample) -> Figure:
    """One picture on its way through the network, over time.

    Shows the picture and the scores; the columns as read; each layer's spikes and potentials before
    the reset, each synapse filter's trace; the classes' running rates.

    Args:
        x: the picture as the network's input, [H, W].
        scores: the network's output, [10].
    """
    picture, answer = _array(x), int(scores.argmax())
    panels = _panels(picture, label, sample)
    rows = max(len(panels), 4)
    height = 1.1 + 1.25 * rows
    figure = _figure(10, height)
    grid = figure.add_gridspec(
        rows, 2, width_ratios=(1, 3), left=0.09, right=0.9, top=1 - 0.7 / height,
        bottom=0.45 / height, hspace=0.5, wspace=0.18,
    )  # fmt: skip
    how = "correctly" if answer == label else "wrongly"
    figure.suptitle(f"{CLASS_NAMES[label]}, {how} classified as {CLASS_NAMES[answer]}", fontsize=13)
    _image(figure.add_subplot(grid[:2, 0], title="picture"), picture)
    _scores(figure.add_subplot(grid[2:4, 0], title="scores"), _array(scores), label)
    for row, (title, draw) in enumerate(panels):
        axes = figure.add_subplot(grid[row, 1])
        axes.set_title(title, fontsize=9, loc="left", pad=3)
        draw(axes)
        axes.set_xlim(-0.5, picture.shape[1] - 0.5)
    axes.set_xlabel("time step t = column of the picture", fontsize=8)
    for axes in figure.axes:
        axes.tick_params(labelsize=7)
    return figure


def _panels(picture: Array, label: int, sample: Sample) -> list[tuple[str, Draw]]:
    """The panels over time, from input to output, each with its title."""
    columns = partial(_image, values=picture, aspect="auto")
    panels: list[tuple[str, Draw]] = [("columns as read, pixels from the top", columns)]
    for name, layer in sample.layers.items():
        if isinstance(layer, Trains):
            values = partial(_values, values=layer.h, threshold=layer.v_threshold)
            panels.append((f"{name}: spikes s, by neuron", partial(_raster, s=layer.s)))
            panels.append((f"{name}: potential before the reset, h", values))
        else:
            panels.append((f"{name}: trace y", partial(_values, values=layer)))
    rates = sample.running_rates()
    if rates is not None:
        panels.append(("running rates of the classes", partial(_rates, rates=rates, label=label)))
    return panels


def _image(axes: Axes, values: Array, aspect: Literal["equal", "auto"] = "equal") -> None:
    """Pixels [H, W] in shades of gray."""
    axes.imshow(values, cmap="gray", aspect=aspect, interpolation="nearest")


def _scores(axes: Axes, scores: Array, label: int) -> None:
    """The score of each class as a bar; the label's name is bold.

    A square next to each name is the key to the colors.
    """
    axes.barh(range(len(scores)), scores, color=COLORS)
    beside = axes.get_yaxis_transform()
    places = [-0.05] * len(scores)
    axes.scatter(
        places, range(len(scores)), s=16, c=COLORS, marker="s", transform=beside, clip_on=False
    )
    axes.tick_params(axis="y", length=0, pad=11)
    axes.set_yticks(range(len(scores)), CLASS_NAMES)
    axes.get_yticklabels()[label].set_fontweight("bold")
    axes.invert_yaxis()


def _raster(axes: Axes, s: Array) -> None:
    """A mark for each spike of s [T, F]."""
    t, neuron = np.nonzero(s)
    few = s.shape[1] <= FEW
    axes.scatter(t, neuron, s=25 if few else 9, marker="|", c=_colors(neuron) if few else "black")
    axes.set_ylim(s.shape[1] - 0.5, -0.5)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _values(axes: Axes, values: Array, threshold: float | None = None) -> None:
    """Values [T, F] over time: a line per neuron, or an image where there are many neurons.

    Potentials reach far below the threshold, where they matter little: the scale is linear around
    the threshold and logarithmic further away. In the image, red is above it and blue below.
    """
    if values.shape[1] <= FEW:
        for f, line in enumerate(values.T):
            axes.plot(line, color=COLORS[f], linewidth=1)
        if threshold is not None:
            axes.axhline(threshold, color="black", linewidth=0.7, linestyle=":")
            _beside(axes, len(values), threshold, f"threshold {threshold:.3g}", "black")
            axes.set_yscale("symlog", linthresh=2 * abs(threshold) or 1.0)
        return
    image: dict[str, Any] = {"cmap": "viridis"}
    marks = [("min", float(values.min())), ("max", float(values.max()))]
    if threshold is not None:
        reach = max(float(np.abs(values - threshold).max()), 1e-6)
        marks.insert(1, ("threshold", threshold))
        scale = (lambda h: np.arcsinh(h - threshold), lambda u: np.sinh(u) + threshold)
        image = {"cmap": "coolwarm", "norm": FuncNorm(scale, threshold - reach, threshold + reach)}
    shown = axes.imshow(values.T, aspect="auto", interpolation="nearest", **image)
    beside = axes.inset_axes((1.01, 0.0, 0.012, 1.0))
    bar = axes.figure.colorbar(shown, cax=beside)
    bar.set_ticks([value for _, value in marks], labels=[""] * len(marks))
    bar.minorticks_off()
    places: Any = shown.norm(np.array([value for _, value in marks]))
    heights = _apart(places.tolist(), 0.0, 1.0)
    for (name, value), height in zip(marks, heights, strict=True):
        where: dict[str, Any] = {"transform": beside.transAxes, "va": "center", "fontsize": 6.5}
        beside.text(2.2, height, f"{name} {value:.3g}", **where)


def _colors(classes: Array) -> list[str]:
    return [COLORS[j] for j in classes]


def _rates(axes: Axes, rates: Array, label: int) -> None:
    """Rates [T, 10] over time, the label's as a thick line.

    Classes that fired are named at the ends of their lines; the lines of the others are all at 0.
    """
    for f, line in enumerate(rates.T):
        width = 2.5 if f == label else 1.0
        axes.plot(line, color=COLORS[f], linewidth=width, label=CLASS_NAMES[f])
    axes.set_ylim(-0.03, 1.03)
    fired = [int(f) for f in np.nonzero(rates[-1])[0]]
    heights = _apart([float(rates[-1, f]) for f in fired], 0.0, 1.0)
    for f, height in zip(fired, heights, strict=True):
        name = _beside(axes, len(rates), height, CLASS_NAMES[f], COLORS[f])
        name.set_fontweight("bold" if f == label else "normal")


def _beside(axes: Axes, steps: int, height: float, words: str, color: str) -> Text:
    """Text to the right of a panel, at the end of a line."""
    return axes.text(steps - 0.2, height, words, color=color, fontsize=6.5, va="center")


def _apart(heights: list[float], low: float, high: float) -> list[float]:
    """Move heights apart as far as text needs, within `low` to `high`, in the same order."""
    gap = (high - low) * min(0.14, 1 / max(len(heights) - 1, 1))
    order = sorted(range(len(heights)), key=heights.__getitem__)
    apart = list(heights)
    for n, f in enumerate(order):  # up, away from the one below
        apart[f] = max(apart[f], low if n == 0 else apart[order[n - 1]] + gap)
    for n, f in enumerate(reversed(order)):  # down, where that went beyond the top
        apart[f] = min(apart[f], high - n * gap)
    return apart


@default_style
def confusion_matrix(counts: Tensor) -> Figure:
    """The number of pictures of class i (rows) classified as class j (columns), [10, 10]."""
    table = _array(counts)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    figure = _figure(7.2, 6.6)
    axes = figure.add_axes((0.16, 0.17, 0.81, 0.77))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(CLASS_NAMES)), CLASS_NAMES, rotation=45, ha="right")
    axes.set_yticks(range(len(CLASS_NAMES)), CLASS_NAMES)
    axes.set_xlabel("classified as")
    axes.set_title(
        f"{int(table.trace()):,} of {int(table.sum()):,} test pictures classified correctly"
    )
    for (i, j), count in np.ndenumerate(table):
        shade = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, f"{int(count)}", ha="center", va="center", fontsize=8, color=shade)
    return figure


@default_style
def pixels(figure: Figure) -> Array:
    """Render a figure as RGB, uint8 [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    drawn: Array = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    return drawn


@default_style
def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix; equal figures give equal bytes.

    Raises:
        OSError: it cannot be written.
    """
    undated = {"Date": None} if path.suffix == ".svg" else None
    with rc_context({"svg.hashsalt": "rsnn_fmnist", "svg.fonttype": "none"}):  # text as text: small
        figure.savefig(path, metadata=undated)


def _figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    return Figure(figsize=(width, height), dpi=90)


def _array(values: Tensor) -> Array:
    array: Array = values.detach().float().cpu().numpy()
    return array
