"""The report as text: Markdown tables, rounded, and CSV files, unrounded.

A value that does not exist is "-" in a table, and empty in a CSV file.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..session import best_metric
from ..tracking.console import clock
from .measurements import ModelResult, Section
from .records import Run
from .statistics import Spread, flags, spread

COLUMNS = (7, 14, 21, 28)  # of the memory table; memory.csv has all
Cell = str | int | float | None
Rows = list[list[Cell]]

NOTES = """\
Accuracies: mean ± standard deviation over the seeds; no seed is left out. Differences:
Welch's t-test with its 95 % confidence interval, not corrected for multiple comparisons.

Images/s: training pictures per second, the median over the epochs of a run, averaged over the runs.
Trained on: {machines}; {time} (h:mm:ss) in total, one run after the other.

Operations are per picture, averaged over the test pictures and over the runs that have weights.
Synaptic operations: spikes times fan-out (Rueckauer et al. 2017, doi:10.3389/fnins.2017.00682).
Multiply-accumulates: those that remain in layers whose inputs are pixels or a filter's trace, not
spikes (as NeuroBench distinguishes them, Yik et al. 2025, doi:10.1038/s41467-025-56739-4). Without
spikes: the multiply-accumulates of the same network without spikes, which uses every weight at
every step.
"""

HEADERS = {
    "results.csv": "model settings seeds last_mean last_deviation best_mean best_deviation "
    "best_chosen_on parameters images_per_second synaptic_operations accumulates "
    "multiply_accumulates dense_multiply_accumulates seeds_with_weights",
    "differences.csv": "settings measure model minus difference low high p",
    "runs.csv": "run model settings seed epochs_done epochs last_test_acc1 best_test_acc1 "
    "best_epoch best_chosen_on images_per_second seconds device_name backend threads",
    "memory.csv": "model settings seed what columns test_acc1",
}


def markdown(sections: Sequence[Section]) -> str:
    """The whole report."""
    runs = [run for section in sections for run in section.runs]
    parts = [part for section in sections for part in section_parts(section)]
    notes = NOTES.format(machines=machines(runs), time=clock(sum(run.seconds() for run in runs)))
    return "\n\n".join(["# Report", *parts, notes])


def section_parts(section: Section) -> list[str]:
    """The paragraphs and tables of one setting."""
    changed, held_out = flags(section.setting), section.setting.val_size
    pictures = "FashionMNIST" if section.setting.dataset == "fashion-mnist" else "synthetic"
    chosen_on = f"{held_out:,} held-out pictures" if held_out else "the test pictures themselves"
    parts = [
        f"## With `{changed}`" if changed else "## Default settings",
        f"Accuracy in percent on the {pictures} test pictures. The best epoch is chosen on "
        f"{chosen_on}{'' if held_out else ', which is optimistic'}.",
        results(section),
        unfinished(section),
        *differences(section),
        "Test accuracy of every seed after its last epoch:",
        seeds(section),
    ]
    if any(model.curves for model in section.models):
        parts += ["Test accuracy from part of each picture's columns:", memory(section)]
    return [part for part in parts if part]


def results(section: Section) -> str:
    best = "best epoch on held-out" if section.setting.val_size else "best epoch (optimistic)"
    header = ["model", "seeds", "last epoch", best, "parameters", "images/s"]
    header += ["synaptic operations", "multiply-accumulates", "without spikes"]
    rows: Rows = [
        [
            model.group.model,
            len(model.group.started()),
            _accuracy(spread(model.group.last_accuracies())),
            _accuracy(spread(model.group.best_accuracies())),
            _count(model.parameters),
            _count(model.group.images_per_second()),
            _count(model.mean_operations("synaptic_operations")),
            _count(model.mean_operations("multiply_accumulates")),
            _count(model.mean_operations("dense_multiply_accumulates")),
        ]
        for model in section.models
    ]
    return table(header, rows)


def unfinished(section: Section) -> str:
    """A paragraph that lists the unfinished runs; "" if there are none."""
    runs = [
        f"{run.experiment.model} seed {run.experiment.seed}: {_epochs(run)}"
        for run in section.runs
        if not run.finished
    ]
    how = "counted with their last epoch; those without a finished epoch are left out"
    return f"**Unfinished runs**, {how}: {'; '.join(runs)}." if runs else ""


def differences(section: Section) -> list[str]:
    """A table for each accuracy by which models are compared."""
    tables: dict[str, Rows] = {}
    for comparison in section.comparisons:
        models, found = f"{comparison.model} minus {comparison.minus}", comparison.difference
        interval = "-" if found.low is None else f"{found.low:+.2f} to {found.high:+.2f}"
        p = "-" if found.p is None else f"{found.p:.2g}"
        row: list[Cell] = [models, f"{found.points:+.2f}", interval, p]
        tables.setdefault(comparison.accuracy, []).append(row)
    return [
        table([f"difference, {accuracy}", "points", "95 % interval", "p"], rows)
        for accuracy, rows in tables.items()
    ]


def seeds(section: Section) -> str:
    """One row per seed, one column per model."""
    runs = {(run.experiment.seed, run.experiment.model): run for run in section.runs}
    models = [model.group.model for model in section.models]
    rows: Rows = [
        [seed, *(_last_accuracy(runs.get((seed, model))) for model in models)]
        for seed in sorted({seed for seed, _ in runs})
    ]
    return table(["seed", *models], rows)


def memory(section: Section) -> str:
    rows: Rows = []
    for model in section.models:
        read = [curves.read for curves in model.curves.values() if curves.read is not None]
        blanked = [curves.blanked for curves in model.curves.values()]
        row: list[Cell] = [model.group.model, len(blanked)]
        row += [_accuracy(spread([curve[t - 1] for curve in read])) for t in COLUMNS]
        row += [_accuracy(spread([curve[k] for curve in blanked])) for k in COLUMNS[:-1]]
        rows.append(row)
    header = [f"{t} read" for t in COLUMNS] + [f"first {k} blank" for k in COLUMNS[:-1]]
    return table(["model", "seeds", *header], rows)


def machines(runs: Iterable[Run]) -> str:
    """The machines that the runs were trained on, each with its number of runs."""
    counts = Counter(_machine(run.environment) for run in runs)
    return "; ".join(f"{words} ({n} run{'s' if n > 1 else ''})" for words, n in counts.items())


def _machine(facts: dict[str, Any]) -> str:
    if not facts:
        return "an unknown machine"
    threads = facts.get("threads", "-")
    plural = "" if threads == 1 else "s"
    device, backend = facts.get("device_name", "-"), facts.get("backend", "-")
    return f"{device}, {threads} CPU thread{plural}, backend {backend}"


def _last_accuracy(run: Run | None) -> str:
    if run is None:
        return "-"
    accuracy = f"{run.last_accuracy():.2f}" if run.rows else "-"
    return accuracy if run.finished else f"{accuracy} ({_epochs(run)})"


def _epochs(run: Run) -> str:
    return f"{run.epochs_done} of {run.experiment.epochs} epochs"


def _accuracy(values: Spread | None) -> str:
    if values is None:
        return "-"
    deviation = "-" if values.deviation is None else f"{values.deviation:.2f}"
    return f"{values.mean:.2f} ± {deviation}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def table(header: Sequence[str], rows: Rows) -> str:
    """A Markdown table, aligned as plain text too; all columns but the first to the right."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in (cells[0], rule, *cells[1:])
    ]
    return "\n".join(f"| {line} |" for line in lines)


def csv_files(sections: Sequence[Section]) -> dict[str, str]:
    """The content of each CSV file, by its name; memory.csv only if curves were measured."""
    models = [model for section in sections for model in section.models]
    files = {
        "results.csv": [_result_row(model) for model in models],
        "differences.csv": [row for section in sections for row in _difference_rows(section)],
        "runs.csv": [_run_row(run, model) for model in models for run in model.group.runs],
    }
    if any(model.curves for model in models):
        files["memory.csv"] = [row for model in models for row in _memory_rows(model)]
    return {name: _csv(HEADERS[name], rows) for name, rows in files.items()}


def _csv(header: str, rows: Rows) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header.split(), *rows])
    return file.getvalue()


def _result_row(model: ModelResult) -> list[Cell]:
    group = model.group
    row: list[Cell] = [group.model, flags(group.setting), len(group.started())]
    for values in (spread(group.last_accuracies()), spread(group.best_accuracies())):
        row += [values.mean, values.deviation] if values else [None, None]
    row += [_chosen_on(model), model.parameters, group.images_per_second()]
    names = ("synaptic_operations", "accumulates", "multiply_accumulates")
    row += [model.mean_operations(name) for name in (*names, "dense_multiply_accumulates")]
    return [*row, len(model.operations)]


def _chosen_on(model: ModelResult) -> str:
    """The pictures on which the best epoch is chosen."""
    return best_metric(model.group.setting).removesuffix("_acc1")


def _difference_rows(section: Section) -> Rows:
    settings = flags(section.setting)
    return [
        [settings, c.accuracy, c.model, c.minus, d.points, d.low, d.high, d.p]
        for c in section.comparisons
        for d in [c.difference]
    ]


def _run_row(run: Run, model: ModelResult) -> list[Cell]:
    experiment, facts = run.experiment, run.environment
    last, best, speed = None, {}, None
    if run.rows:
        last, best, speed = run.last_accuracy(), run.best_row(), run.images_per_second()
    row: list[Cell] = [run.path.resolve().name, experiment.model, flags(model.group.setting)]
    row += [experiment.seed, run.epochs_done, experiment.epochs, last]
    row += [best.get("test_acc1"), best.get("epoch"), _chosen_on(model), speed, run.seconds()]
    return row + [facts.get(name) for name in ("device_name", "backend", "threads")]


def _memory_rows(model: ModelResult) -> Rows:
    rows: Rows = []
    for seed, curves in model.curves.items():
        row: list[Cell] = [model.group.model, flags(model.group.setting), seed]
        rows += [[*row, "read", t, value] for t, value in enumerate(curves.read or [], 1)]
        rows += [[*row, "blanked", k, value] for k, value in enumerate(curves.blanked)]
    return rows
