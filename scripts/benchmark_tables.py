"""What benchmark.py prints and writes: medians, ratios to other people's code, tables."""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmark_contestants import CONTESTANTS


@dataclass(frozen=True)
class Row:
    """A line of the table: every round's images/s and the process's peak memory, in MiB."""

    contestant: str
    model: str
    threads: int | None
    samples: tuple[float, ...]
    peak_mib: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


@dataclass(frozen=True)
class Baseline:
    """What rows are divided by: a contestant, with the row's own threads or its only setting."""

    heading: str
    contestant: str
    same_threads: bool = True
    same_model: bool = True


BASELINES = (
    Baseline("/tutorial", "tutorial", same_threads=False),
    Baseline("/tutorial-omp1", "tutorial-omp1", same_threads=False),
    Baseline("/sj-2.0", "spikingjelly2"),
    Baseline("/LSTM", "lstm", same_model=False),
    Baseline("/sj-triton", "spikingjelly2-triton"),
    Baseline("/sj-native", "spikingjelly2-native"),
    Baseline("/LSTM", "lstm-cuda", same_model=False),
)


def baselines(row: Row) -> list[Baseline]:
    """Those on the row's device."""
    device = CONTESTANTS[row.contestant].device
    return [b for b in BASELINES if CONTESTANTS[b.contestant].device == device]


def ratio(row: Row, rows: Sequence[Row], baseline: Baseline) -> float | None:
    """The row's median over the baseline's; None where that was not measured."""
    for other in rows:
        if (
            other.contestant == baseline.contestant
            and (other.model == row.model or not baseline.same_model)
            and (other.threads == row.threads or not baseline.same_threads)
        ):
            return row.median / other.median
    return None


def table(rows: Sequence[Row]) -> str:
    """A line a row: median, spread, ratios and peak memory."""
    headings = "".join(f"{b.heading:>15}" for b in baselines(rows[0]))
    lines = [
        f"{'model':<17}{'contestant':<26}{'threads':>7}{'images/s':>10}   {'lowest-highest':<17}"
        f"{headings}{'peak MiB':>10}"
    ]
    for row in rows:
        ratios = [ratio(row, rows, baseline) for baseline in baselines(row)]
        cells = "".join(f"{'-' if r is None else f'{r:.2f}x':>15}" for r in ratios)
        spread = f"{min(row.samples):,.0f}-{max(row.samples):,.0f}"
        lines.append(
            f"{row.model:<17}{CONTESTANTS[row.contestant].label:<26}{row.threads or 'own':>7}"
            f"{row.median:>10,.0f}   {spread:<17}{cells}{row.peak_mib:>10,.0f}"
        )
    return "\n".join(lines)


def multiply_adds(model: str, hidden: int = 32, pixels: int = 28, classes: int = 10) -> int:
    """Those of the compiled float32 step for a column of a picture, in products with weights.

    Forward, for the weights' gradients and, behind the first layer, for the inputs' gradients. In
    feedback the first layer is part of the recurrent one.
    """
    first = 2 * pixels * hidden + (3 * hidden * hidden if model == "feedback" else 0)
    return first + 3 * hidden * classes


def peak_lines(rows: Sequence[Row], gflops: float | None) -> list[str]:
    """The share of a core's peak that this project's compiled step reaches with one thread."""
    shares = [
        f"{row.model} {100 * row.median * 2e-9 * 28 * multiply_adds(row.model) / gflops:.0f} %"
        for row in rows
        if gflops and row.contestant == "numba" and row.threads == 1
    ]
    return [f"Of a core's {gflops:,.0f} GFLOP/s: {', '.join(shares)}"] if shares else []


def scaling_table(name: str, points: Sequence[tuple[int, Row]]) -> str:
    """Images/s and microseconds a picture by model, over the values of one setting."""
    values = sorted({value for value, _ in points})
    lines = [f"{name:<17}" + "".join(f"{value:>22,}" for value in values)]
    for model in dict.fromkeys(row.model for _, row in points):
        medians = {value: row.median for value, row in points if row.model == model}
        cells = (f"{medians[v]:,.0f}/s {1e6 / medians[v]:>7.1f} us" for v in values)
        lines.append(f"{model:<17}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def row_record(row: Row, rows: Sequence[Row] = ()) -> dict[str, Any]:
    """A row as JSON keeps it."""
    found = {b.heading.strip("/"): ratio(row, rows, b) for b in baselines(row)}
    return dataclasses.asdict(row) | {
        "median": row.median,
        "lowest": min(row.samples),
        "highest": max(row.samples),
        "ratios": {name: value for name, value in found.items() if value is not None},
    }
