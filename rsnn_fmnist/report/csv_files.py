"""The report's numbers, unrounded, as CSV files; what cannot be had is left empty."""

import csv
import io
from collections.abc import Sequence

from .measurements import Entry, Section
from .records import Run
from .statistics import Group, Spread, flags, pairs, spread, welch
from .tables import Cell, Rows, images_per_second, measures

HEADERS = {
    "results.csv": "model settings seeds last_mean last_deviation best_mean best_deviation "
    "best_chosen_on parameters images_per_second synaptic_operations accumulates "
    "multiply_accumulates dense_multiply_accumulates seeds_with_weights",
    "differences.csv": "settings measure model minus difference low high p",
    "runs.csv": "run model settings seed epochs_done epochs last_test_acc1 best_test_acc1 "
    "best_epoch best_chosen_on images_per_second seconds device_name backend threads",
    "memory.csv": "model settings seed what columns test_acc1",
}


def files(sections: Sequence[Section]) -> dict[str, str]:
    """The content of each file, by its name; memory.csv where there are memory curves."""
    entries = [entry for section in sections for entry in section]
    tables = {
        "results.csv": [_result(entry) for entry in entries],
        "differences.csv": [row for section in sections for row in _differences(section)],
        "runs.csv": [_run(entry.group, run) for entry in entries for run in entry.group.runs],
    }
    if any(entry.memories for entry in entries):
        tables["memory.csv"] = [row for entry in entries for row in _memory(entry)]
    return {name: _csv(HEADERS[name], rows) for name, rows in tables.items()}


def _csv(header: str, rows: Rows) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header.split(), *rows])
    return file.getvalue()


def _pictures_chosen_on(group: Group) -> str:
    return "val" if group.setting.val_size else "test"


def _result(entry: Entry) -> list[Cell]:
    group = entry.group
    last, best = spread(group.last()), spread(group.best())
    costs = ("synaptic_operations", "accumulates", "multiply_accumulates")
    return [
        group.model,
        flags(group.setting),
        len(group.begun()),
        *_mean_and_deviation(last),
        *_mean_and_deviation(best),
        _pictures_chosen_on(group),
        entry.parameters,
        images_per_second(group),
        *(entry.energy(name) for name in (*costs, "dense_multiply_accumulates")),
        len(entry.energies),
    ]


def _mean_and_deviation(values: Spread | None) -> tuple[Cell, Cell]:
    return (values.mean, values.deviation) if values else (None, None)


def _differences(section: Section) -> Rows:
    rows: Rows = []
    for name, values in measures(section):
        for a, b in pairs([entry.group for entry in section]):
            found = welch(values(a), values(b))
            who = (flags(a.setting), name, a.model, b.model)
            rows.append([*who, found.mean, found.low, found.high, found.p])
    return rows


def _run(group: Group, run: Run) -> list[Cell]:
    experiment, facts = run.experiment, run.environment
    best = run.best() if run.rows else {}
    return [
        run.path.resolve().name,
        experiment.model,
        flags(group.setting),
        experiment.seed,
        run.epochs_done,
        experiment.epochs,
        run.last() if run.rows else None,
        best.get("test_acc1"),
        best.get("epoch"),
        _pictures_chosen_on(group),
        run.images_per_second() if run.rows else None,
        run.seconds(),
        *(facts.get(name) for name in ("device_name", "backend", "threads")),
    ]


def _memory(entry: Entry) -> Rows:
    rows: Rows = []
    for seed, found in entry.memories.items():
        who = (entry.group.model, flags(entry.group.setting), seed)
        rows += [[*who, "read", t, value] for t, value in enumerate(found.read or [], 1)]
        rows += [[*who, "blanked", k, value] for k, value in enumerate(found.blanked)]
    return rows
