"""Which figures a report has, and what stands in each: the models of one setting side by side.

Importing this module needs the `report` extra, as charts.py does, which draws them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import fill

from matplotlib.figure import Figure
from torch import Tensor

from . import charts
from .charts import Line
from .measurements import Entry, Section
from .statistics import flags, short_name

OVER_EPOCHS = (  # file, row of metrics, label of the axis
    ("train_loss", "train_loss", "training loss"),
    ("train_accuracy", "train_acc1", "training accuracy, %"),
    ("test_accuracy", "test_acc1", "test accuracy, %"),
)
Values = Callable[[Entry], list[dict[int, float]]]  # a seed each, by epoch or column


@dataclass(frozen=True)
class Panel:
    """Entries that are drawn together, each with its label and its style's number.

    suffix: ends the names of its files, as the settings end a run's.
    """

    suffix: str
    title: str
    entries: list[tuple[str, int, Entry]]

    def lines(self, values: Values) -> list[Line]:
        """A line for each entry that has values."""
        return [
            Line(label, style, seeds)
            for label, style, entry in self.entries
            if (seeds := values(entry))
        ]


def panels(sections: Sequence[Section]) -> list[Panel]:
    """The models of each setting; of a single model, its settings."""
    models = list(dict.fromkeys(entry.group.model for section in sections for entry in section))
    if len(models) == 1:
        several = [entry for section in sections for entry in section]
        named = [(_name(entry), style, entry) for style, entry in enumerate(several)]
        return [Panel("", models[0], named)]
    return [
        Panel(
            f"_{short_name(section[0].group.setting)}".removesuffix("_"),
            fill(_name(section[0]), 80),
            [(e.group.model, models.index(e.group.model), e) for e in section],
        )
        for section in sections
    ]


def _name(entry: Entry) -> str:
    return flags(entry.group.setting) or "default settings"


def draw(
    sections: Sequence[Section], picture: Callable[[str], Tensor]
) -> Iterator[tuple[str, Figure]]:
    """Every figure, with the name of its files.

    Args:
        picture: a picture of a dataset, uint8 [T, H], columns of pixels.
    """
    for panel in panels(sections):
        for name, key, quantity in OVER_EPOCHS:
            lines = panel.lines(partial(_over_epochs, key))
            if lines:
                yield name + panel.suffix, charts.over_epochs(lines, quantity, panel.title)
        for name, values, chart in OVER_COLUMNS:
            lines = panel.lines(values)
            if lines:
                example = picture(panel.entries[0][2].group.setting.dataset)
                yield name + panel.suffix, chart(lines, example, panel.title)


def _over_epochs(key: str, entry: Entry) -> list[dict[int, float]]:
    return [{row["epoch"]: row[key] for row in run.rows} for run in entry.group.begun()]


def _read(entry: Entry) -> list[dict[int, float]]:
    return [dict(enumerate(m.read, 1)) for m in entry.memories.values() if m.read is not None]


def _blanked(entry: Entry) -> list[dict[int, float]]:
    return [dict(enumerate(m.blanked)) for m in entry.memories.values()]


OVER_COLUMNS = (
    ("memory_read", _read, charts.memory_read),
    ("memory_blanked", _blanked, charts.memory_blanked),
)
