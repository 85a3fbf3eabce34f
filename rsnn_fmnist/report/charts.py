"""The report's figures: several models beside each other, over their seeds.

The line is the mean over the seeds, the band one standard deviation to each side of it, and each
thin line a seed. Colours are those of Okabe and Ito, which colour-blind readers can tell apart;
line styles tell them apart in grey. What is drawn is measured elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from ..data.fashion_mnist import SIDE

Array = NDArray[Any]

# Source: Okabe and Ito 2002, "Color Universal Design"; their yellow, too pale for lines, left out.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLES = ("-", "--", "-.", ":")
READING = "line: mean over the seeds; band: ± one standard deviation; thin: each seed"
UNREAD = "#c9d6e4"  # columns of the picture that the network has not seen
CHANCE = 10  # percent, of ten classes
STEP = 4  # columns from one small picture to the next
AT = range(0, SIDE + 1, STEP)
DPI = 150


@dataclass(frozen=True)
class Line:
    """What is drawn for one model: for each seed its values by x; some may end early."""

    label: str
    style: int  # which colour and line style
    seeds: list[dict[int, float]]

    def over_seeds(self) -> tuple[list[int], Array, Array]:
        """x, and the mean and standard deviation over the seeds that have come so far."""
        xs = sorted(set().union(*self.seeds))
        at = [[seed[x] for seed in self.seeds if x in seed] for x in xs]
        deviations = [stdev(values) if len(values) > 1 else 0.0 for values in at]
        return xs, np.array([mean(values) for values in at]), np.array(deviations)


def over_epochs(lines: Sequence[Line], quantity: str, title: str) -> Figure:
    """A quantity over the epochs."""
    figure = Figure(figsize=(6.4, 4.2), dpi=DPI)
    axes = figure.add_axes((0.11, 0.15, 0.86, 0.75))
    _draw(axes, lines)
    axes.set_xlabel("epoch")
    axes.set_ylabel(quantity)
    axes.set_title(title, fontsize=10)
    _explain(figure)
    return figure


def memory_read(lines: Sequence[Line], picture: Tensor, title: str) -> Figure:
    """Accuracy after each column, and above it what has been read of a picture by then.

    Args:
        picture: uint8 [T, H], columns of pixels.
    """
    pixels = picture.numpy().T.astype(float)  # [H, T]
    return _over_columns(lines, "columns read, t", [_read(pixels, t) for t in AT], title)


def memory_blanked(lines: Sequence[Line], picture: Tensor, title: str) -> Figure:
    """Accuracy without the first columns, and above it what that leaves of a picture.

    Args:
        picture: as of memory_read.
    """
    pixels = picture.numpy().T.astype(float)  # [H, T]
    words = "columns blanked from the left, k"
    return _over_columns(lines, words, [_blanked(pixels, k) for k in AT], title)


def _over_columns(
    lines: Sequence[Line], words: str, pictures: Sequence[Array], title: str
) -> Figure:
    figure = Figure(figsize=(6.4, 4.8), dpi=DPI)
    figure.suptitle(title, fontsize=10, y=0.96)
    axes = figure.add_axes((0.11, 0.13, 0.86, 0.62))
    axes.axhline(CHANCE, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
    axes.text(AT[-1] + STEP / 2, CHANCE + 1, "chance", fontsize=7, color="0.4", ha="right")
    _draw(axes, lines)
    axes.set_xlim(-STEP / 2, AT[-1] + STEP / 2)
    axes.set_xticks(AT)
    axes.set_ylim(0, 100)
    axes.set_xlabel(words)
    axes.set_ylabel("test accuracy, %")
    for x, seen in zip(AT, pictures, strict=True):
        _small_picture(axes, x, seen)
    _explain(figure)
    return figure


def _draw(axes: Axes, lines: Sequence[Line]) -> None:
    for line in lines:
        colour, style = COLOURS[line.style % len(COLOURS)], STYLES[line.style % len(STYLES)]
        x, middle, deviation = line.over_seeds()
        if len(line.seeds) > 1:
            for seed in line.seeds:
                axes.plot(list(seed), list(seed.values()), color=colour, linewidth=0.6, alpha=0.7)
            low, high = middle - deviation, middle + deviation
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        seeds = f"{len(line.seeds)} seed{'s' if len(line.seeds) > 1 else ''}"
        look: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": 1.8}
        look["marker"] = "o" if len(x) == 1 else None  # a single epoch makes no line
        axes.plot(x, middle, label=f"{line.label} ({seeds})", **look)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, handlelength=3.2)


def _explain(figure: Figure) -> None:
    figure.text(0.97, 0.012, READING, fontsize=7, color="0.35", ha="right")


def _read(pixels: Array, t: int) -> Array:
    """The picture of which t columns have been read; the others are not known."""
    seen = pixels.copy()
    seen[:, t:] = np.nan
    return seen


def _blanked(pixels: Array, k: int) -> Array:
    """The picture without its first k columns."""
    seen = pixels.copy()
    seen[:, :k] = 0
    return seen


def _small_picture(axes: Axes, x: float, seen: Array) -> None:
    """A picture above the axis at x, dark on white, NaN as unread."""
    width = STEP * 0.86
    place = (x - width / 2, 1.02, width, 0.21)
    beside = axes.inset_axes(place, transform=axes.get_xaxis_transform())
    beside.set_facecolor(UNREAD)
    beside.imshow(seen, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    beside.set_xticks([])
    beside.set_yticks([])
    for spine in beside.spines.values():
        spine.set(linewidth=0.5, color="0.5")
