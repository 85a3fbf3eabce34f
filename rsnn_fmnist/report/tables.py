"""The report in words and tables, as Markdown; what cannot be had is "-".

Measuring and comparing is done elsewhere; csv_files.py has the numbers in full.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import Any

from ..tracking.tracker import clock
from .measurements import Section
from .records import Run
from .statistics import Group, Spread, flags, pairs, spread, welch

COLUMNS = (7, 14, 21, 28)  # of the memory table; the curves have all
Cell = str | int | float | None
Rows = list[list[Cell]]
Measure = tuple[str, Callable[[Group], list[float]]]

NOTES = """\
Accuracies: mean ± standard deviation over the seeds; every seed counts. Differences: Welch's t-test
with its 95 % confidence interval, not corrected for the number of comparisons.

Images/s: training pictures a second, the median over the epochs of a run, averaged over the runs.
Trained on: {machines}; {time} (h:mm:ss) in all, one run after the other.

Operations are those of one picture, averaged over the test pictures and over the runs that have
weights. Synaptic operations: spikes times fan-out (Rueckauer et al. 2017,
doi:10.3389/fnins.2017.00682). Multiply-accumulates: those that remain where a layer hears pixels or
a trace rather than spikes (as NeuroBench tells them apart, Yik et al. 2025,
doi:10.1038/s41467-025-56739-4), and those of the same network without spikes, which takes every
weight at every step.
"""


def text(sections: Sequence[Section]) -> str:
    """The whole report, as Markdown that can be read as it is."""
    runs = [run for section in sections for entry in section for run in entry.group.runs]
    parts = [part for section in sections for part in section_text(section)]
    notes = NOTES.format(machines=machines(runs), time=clock(sum(run.seconds() for run in runs)))
    return "\n\n".join(["# Report", *parts, notes])


def section_text(section: Section) -> list[str]:
    """The paragraphs and tables of one setting."""
    setting = section[0].group.setting
    named = flags(setting)
    pictures = "FashionMNIST" if setting.dataset == "fashion-mnist" else "drawn (synthetic)"
    parts = [
        f"## With `{named}`" if named else "## Default settings",
        f"Accuracy in percent on the {pictures} test pictures. {chosen_on(section[0].group)}",
        results(section),
        *unfinished(section),
        *[differences(section, measure) for measure in measures(section)],
        "After the last epoch, every seed:",
        seeds(section),
    ]
    if any(entry.memories for entry in section):
        parts += ["From a part of each picture's columns:", memory(section)]
    return [part for part in parts if part]


def chosen_on(group: Group) -> str:
    """How the best epoch was chosen."""
    if group.setting.val_size:
        return f"The best epoch is chosen on {group.setting.val_size:,} held-out pictures."
    return "The best epoch is chosen on the test pictures themselves, which is optimistic."


def results(section: Section) -> str:
    held_out = section[0].group.setting.val_size
    header = [
        "model",
        "seeds",
        "last epoch",
        "best epoch on held-out" if held_out else "best epoch (optimistic)",
        "parameters",
        "images/s",
        "synaptic operations",
        "multiply-accumulates",
        "without spikes",
    ]
    rows: Rows = [
        [
            entry.group.model,
            len(entry.group.begun()),
            _accuracy(spread(entry.group.last())),
            _accuracy(spread(entry.group.best())),
            _count(entry.parameters),
            _count(images_per_second(entry.group)),
            _count(entry.energy("synaptic_operations")),
            _count(entry.energy("multiply_accumulates")),
            _count(entry.energy("dense_multiply_accumulates")),
        ]
        for entry in section
    ]
    return markdown(header, rows)


def unfinished(section: Section) -> list[str]:
    """A paragraph that names the runs that are not finished; none where all are."""
    named = [
        f"{run.experiment.model} seed {run.experiment.seed}: {_how_far(run)}"
        for entry in section
        for run in entry.group.runs
        if not run.finished
    ]
    if not named:
        return []
    how = "counted with the last epoch they have; those without one are left out"
    return [f"**Unfinished**, {how}: {'; '.join(named)}."]


def measures(section: Section) -> list[Measure]:
    """The accuracies by which models are compared: none that is chosen on the test pictures."""
    last: Measure = ("last epoch", Group.last)
    best: Measure = ("best epoch on held-out", Group.best)
    return [last, best] if section[0].group.setting.val_size else [last]


def differences(section: Section, measure: Measure) -> str:
    """Every two models; "" where there is one only."""
    name, values = measure
    rows: Rows = []
    for a, b in pairs([entry.group for entry in section]):
        found = welch(values(a), values(b))
        interval = "-" if found.low is None else f"{found.low:+.2f} to {found.high:+.2f}"
        p = "-" if found.p is None else f"{found.p:.2g}"
        rows.append([f"{a.model} minus {b.model}", f"{found.mean:+.2f}", interval, p])
    if not rows:
        return ""
    return markdown([f"difference, {name}", "points", "95 % interval", "p"], rows)


def seeds(section: Section) -> str:
    """A row a seed, a column a model."""
    by_seed: dict[int, dict[str, Run]] = {}
    for entry in section:
        for run in entry.group.runs:
            by_seed.setdefault(run.experiment.seed, {})[run.experiment.model] = run
    models = [entry.group.model for entry in section]
    rows: Rows = [
        [seed, *(_last(runs[model]) if model in runs else "-" for model in models)]
        for seed, runs in sorted(by_seed.items())
    ]
    return markdown(["seed", *models], rows)


def memory(section: Section) -> str:
    rows: Rows = []
    for entry in section:
        read = [m.read for m in entry.memories.values() if m.read is not None]
        blanked = [m.blanked for m in entry.memories.values()]
        row: list[Cell] = [entry.group.model, len(blanked)]
        row += [_accuracy(spread([curve[t - 1] for curve in read])) for t in COLUMNS]
        row += [_accuracy(spread([curve[k] for curve in blanked])) for k in COLUMNS[:-1]]
        rows.append(row)
    header = [f"{t} read" for t in COLUMNS] + [f"first {k} blank" for k in COLUMNS[:-1]]
    return markdown(["model", "seeds", *header], rows)


def machines(runs: Iterable[Run]) -> str:
    """What the runs were trained on, each with its runs."""
    counts = Counter(_machine(run.environment) for run in runs)
    return "; ".join(f"{words} ({n} run{'s' if n > 1 else ''})" for words, n in counts.items())


def _machine(facts: dict[str, Any]) -> str:
    if not facts:
        return "a machine that is not recorded"
    threads = facts.get("threads", "-")
    plural = "" if threads == 1 else "s"
    device, backend = facts.get("device_name", "-"), facts.get("backend", "-")
    return f"{device}, {threads} CPU thread{plural}, backend {backend}"


def _last(run: Run) -> str:
    accuracy = f"{run.last():.2f}" if run.rows else "-"
    return accuracy if run.finished else f"{accuracy} ({_how_far(run)})"


def _how_far(run: Run) -> str:
    return f"{run.epochs_done} of {run.experiment.epochs} epochs"


def _accuracy(values: Spread | None) -> str:
    if values is None:
        return "-"
    deviation = "-" if values.deviation is None else f"{values.deviation:.2f}"
    return f"{values.mean:.2f} ± {deviation}"


def images_per_second(group: Group) -> float | None:
    values = [run.images_per_second() for run in group.begun()]
    return mean(values) if values else None


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def markdown(header: Sequence[str], rows: Rows) -> str:
    """A table whose columns are aligned also where it is read as text, all but the first to the
    right.
    """
    table: Rows = [[*header], *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(row, widths) for row in (cells[0], rule, *cells[1:]))


def _line(row: list[str], widths: list[int]) -> str:
    others = map(str.rjust, row[1:], widths[1:])
    return f"| {' | '.join([row[0].ljust(widths[0]), *others])} |"
