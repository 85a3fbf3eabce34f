"""The report's figures: several models, or several settings of one model, over their seeds.

A thick line is the mean over the seeds, a band one standard deviation to each side of it, a thin
line one seed. Colors are those of Okabe and Ito, which color-blind readers can distinguish; line
styles distinguish them in gray. Importing this module needs the `report` extra.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from ..data.pictures import CLASSES, SIDE
from ..tracking.figures import default_style
from .measurements import ModelResult, Section
from .statistics import flags, short_name

Array = NDArray[Any]
SeedValues = list[dict[int, float]]  # for each seed its values, by epoch or by column

# Source: Okabe and Ito 2002, "Color Universal Design"; without their yellow, too pale for lines.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLES = ("-", "--", "-.", ":")
LEGEND = "line: mean over the seeds; band: ± one standard deviation; thin: each seed"
UNREAD = "#c9d6e4"  # columns of the picture that the network has not read
CHANCE = 100 / CLASSES  # percent
STEP = 4  # columns from one small picture to the next
AT = range(0, SIDE + 1, STEP)
DPI = 150

OVER_EPOCHS = (  # file, metric, label of the axis
    ("train_loss", "train_loss", "training loss"),
    ("train_accuracy", "train_acc1", "training accuracy, %"),
    ("test_accuracy", "test_acc1", "test accuracy, %"),
)


@dataclass(frozen=True)
class Line:
    """One model in a figure."""

    label: str
    style: int  # the number of its color and line style
    seeds: SeedValues  # some may end early

    def over_seeds(self) -> tuple[list[int], Array, Array]:
        """x, and the mean and standard deviation over the seeds that have a value there."""
        xs = sorted(set().union(*self.seeds))
        at = [[seed[x] for seed in self.seeds if x in seed] for x in xs]
        deviations = [stdev(values) if len(values) > 1 else 0.0 for values in at]
        return xs, np.array([mean(values) for values in at]), np.array(deviations)


@dataclass(frozen=True)
class Selection:
    """Results that are drawn in the same figures, each with its label and the number of its style.

    Attributes:
        suffix: end of the names of the figures, by the settings.
        example: a test picture, uint8 [T, H]; None where there are no memory curves.
    """

    suffix: str
    title: str
    results: list[tuple[str, int, ModelResult]]
    example: Tensor | None

    def lines(self, values: Callable[[ModelResult], SeedValues]) -> list[Line]:
        """A line for each result that has values."""
        return [
            Line(label, style, seeds)
            for label, style, result in self.results
            if (seeds := values(result))
        ]


def selections(sections: Sequence[Section]) -> list[Selection]:
    """The models of each setting or, if there is a single model, all its settings."""
    results = [result for section in sections for result in section.models]
    models = list(dict.fromkeys(result.group.model for result in results))
    if len(models) == 1:
        labeled = [(_settings(r), style, r) for style, r in enumerate(results)]
        examples = [section.example for section in sections if section.example is not None]
        return [Selection("", models[0], labeled, examples[0] if examples else None)]
    return [
        Selection(
            f"_{short_name(section.setting)}".removesuffix("_"),
            fill(_settings(section.models[0]), 80),
            [(r.group.model, models.index(r.group.model), r) for r in section.models],
            section.example,
        )
        for section in sections
    ]


def _settings(result: ModelResult) -> str:
    return flags(result.group.setting) or "default settings"


def draw(sections: Sequence[Section]) -> Iterator[tuple[str, Figure]]:
    """Every figure of the report, with the name of its files."""
    for selection in selections(sections):
        suffix, title, example = selection.suffix, selection.title, selection.example
        for name, metric, label in OVER_EPOCHS:
            lines = selection.lines(partial(_by_epoch, metric))
            if lines:
                yield name + suffix, over_epochs(lines, label, title)
        for name, values in (("memory_read", _read), ("memory_blanked", _blanked)):
            lines = selection.lines(values)
            if lines and example is not None:
                read = values is _read
                yield name + suffix, over_columns(lines, example, title, read=read)


def _by_epoch(metric: str, result: ModelResult) -> SeedValues:
    return [{row["epoch"]: row[metric] for row in run.rows} for run in result.group.started()]


def _read(result: ModelResult) -> SeedValues:
    return [dict(enumerate(c.read, 1)) for c in result.curves.values() if c.read is not None]


def _blanked(result: ModelResult) -> SeedValues:
    return [dict(enumerate(c.blanked)) for c in result.curves.values()]


@default_style
def over_epochs(lines: Sequence[Line], label: str, title: str) -> Figure:
    """A metric over the epochs."""
    figure = Figure(figsize=(6.4, 4.2), dpi=DPI)
    axes = figure.add_axes((0.11, 0.15, 0.86, 0.75))
    _draw_lines(axes, lines)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=10)
    _add_legend(figure)
    return figure


@default_style
def over_columns(lines: Sequence[Line], picture: Tensor, title: str, *, read: bool) -> Figure:
    """Accuracy over the number of columns; above the axis, those columns of a picture.

    Args:
        picture: uint8 [T, H], columns of pixels.
        read: the first columns are the only ones read; else they are blank.
    """
    figure = Figure(figsize=(6.4, 4.8), dpi=DPI)
    figure.suptitle(title, fontsize=10, y=0.96)
    axes = figure.add_axes((0.11, 0.13, 0.86, 0.62))
    axes.axhline(CHANCE, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
    axes.text(AT[-1] + STEP / 2, CHANCE + 1, "chance", fontsize=7, color="0.4", ha="right")
    _draw_lines(axes, lines)
    axes.set_xlim(-STEP / 2, AT[-1] + STEP / 2)
    axes.set_xticks(AT)
    axes.set_ylim(0, 100)
    axes.set_xlabel("columns read, t" if read else "columns blanked from the left, k")
    axes.set_ylabel("test accuracy, %")
    for columns in AT:
        pixels = picture.numpy().T.astype(float)  # [H, T]
        if read:
            pixels[:, columns:] = np.nan
        else:
            pixels[:, :columns] = 0
        _small_picture(axes, columns, pixels)
    _add_legend(figure)
    return figure


def _draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    for line in lines:
        color, style = COLORS[line.style % len(COLORS)], STYLES[line.style % len(STYLES)]
        x, middle, deviation = line.over_seeds()
        if len(line.seeds) > 1:
            for seed in line.seeds:
                axes.plot(list(seed), list(seed.values()), color=color, linewidth=0.6, alpha=0.7)
            low, high = middle - deviation, middle + deviation
            axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        seeds = f"{len(line.seeds)} seed{'s' if len(line.seeds) > 1 else ''}"
        look: dict[str, Any] = {"color": color, "linestyle": style, "linewidth": 1.8}
        look["marker"] = "o" if len(x) == 1 else None  # a line through one point is invisible
        axes.plot(x, middle, label=f"{line.label} ({seeds})", **look)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, handlelength=3.2)


def _add_legend(figure: Figure) -> None:
    figure.text(0.97, 0.012, LEGEND, fontsize=7, color="0.35", ha="right")


def _small_picture(axes: Axes, x: float, pixels: Array) -> None:
    """A picture [H, T] above the axis at x, dark on white, NaN in the color UNREAD."""
    width = STEP * 0.86
    place = (x - width / 2, 1.02, width, 0.21)
    inset = axes.inset_axes(place, transform=axes.get_xaxis_transform())
    inset.set_facecolor(UNREAD)
    inset.imshow(pixels, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    inset.set_xticks([])
    inset.set_yticks([])
    for spine in inset.spines.values():
        spine.set(linewidth=0.5, color="0.5")
