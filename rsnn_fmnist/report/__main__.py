"""python -m rsnn_fmnist.report: compare trained runs, or inspect one picture in a network.

    RUN_OR_DIR... [--memory]           compare runs over their seeds, in tables and figures
    --inspect CHECKPOINT [--index I]   draw one test picture in the network of a checkpoint

Nothing is trained, and no run is changed.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..arguments import Parser, run_command
from ..config import Machine
from ..device import process_as_found
from ..errors import RunError, UsageError, first_line, note
from ..models import import_models, temporary_models
from ..storage.run_directory import MODELS_FILE
from ..tracking.diagnostics import import_figures
from . import records, statistics, tables
from .inspect import inspect_picture
from .measurements import Measurer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (None: sys.argv) and return the exit code."""
    return run_command(_report, argv)


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m rsnn_fmnist.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, add_path = parser.add_argument, parser.add_path

    switch = argparse.BooleanOptionalAction
    memory = "add test accuracy after each column and without the first columns; needs weights"
    add_path("places", "RUN_OR_DIR", nargs="*", help="run directories, or folders that hold runs")
    add("--memory", action="store_true", help=memory)
    add_path("--inspect", "CHECKPOINT", help="a run directory, latest.pt or best.pt")
    add("--index", metavar="I", type=int, help="test picture of --inspect (default: 0)")
    add_path("--out", "DIR", default="report", help="output folder (default: report)")
    add_path("--data-path", "DIR", default="", help="as in training")
    add("--download", action=switch, default=True, help="as in training")
    add_path("--models-file", "FILE.py", default="", help="as in training")
    parser.add_common()
    return parser


@process_as_found()
def _report(arguments: list[str]) -> int:
    flags = build_parser().parse_all(arguments)
    if "" in (*flags.places, flags.inspect, flags.out):
        raise UsageError("a path is empty; name a folder or a file")
    if flags.memory and not flags.places:
        raise UsageError("--memory: name the runs, or folders of runs, to measure")
    if not flags.places and flags.inspect is None:
        raise UsageError("name runs or folders of runs to compare, or --inspect CHECKPOINT")
    if flags.index is not None and flags.inspect is None:
        raise UsageError(f"--index {flags.index}: needs --inspect CHECKPOINT")
    figures = import_figures("the report")
    machine = Machine(
        data_path=flags.data_path,
        download=flags.download,
        models_file=flags.models_file,
        device="cpu",
    )
    out = Path(flags.out)
    with temporary_models():
        if flags.models_file:
            import_models(Path(flags.models_file))
        if flags.places:
            places = [Path(place) for place in flags.places]
            compare(places, out, Measurer(machine, with_curves=flags.memory), figures)
        if flags.inspect is not None:
            lines, name, figure = inspect_picture(
                Path(flags.inspect), flags.index or 0, machine, figures
            )
            write(out, {name: figure}, figures.save)
            print(f"{lines}\nwrote {out / name}")
    return 0


def compare(places: list[Path], out: Path, measurer: Measurer, figures: ModuleType) -> None:
    """Write a report on the runs in `places` into `out`, and print it.

    Raises:
        RunError, UsageError: no runs, damaged ones, or none with the weights that memory curves
            need; then nothing is written.
    """
    from .charts import draw  # needs matplotlib

    runs = records.read_all(places)
    kept = sorted({run.path.parent for run in runs if (run.path / MODELS_FILE).is_file()})
    if kept and not measurer.machine.models_file:
        note(f"running the runs' own models files, {kept[0]}/*/{MODELS_FILE}")
    sections = measurer.sections(statistics.grouped(runs))
    text, drawn = tables.markdown(sections), dict(draw(sections))
    images = "".join(f"\n![{name}]({name}.svg)\n" for name in drawn)
    texts = {"report.md": text + images, **tables.csv_files(sections)}
    pictures = {f"{name}{end}": drawn[name] for name in drawn for end in (".png", ".svg")}
    write(out, {**texts, **pictures}, figures.save)
    also = f" and, as PNG and SVG, {', '.join(drawn)}" if drawn else ""
    print(f"{text}\nwrote {', '.join(texts)}{also} to {out}")


def write(
    out: Path, files: Mapping[str, "str | Figure"], save: Callable[["Figure", Path], None]
) -> None:
    """Write texts and figures into the folder `out`, by the names of their files."""
    path = out
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = out / name
            if isinstance(content, str):
                path.write_text(content, encoding="utf-8", errors="backslashreplace")
            else:
                save(content, path)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({first_line(error)}); name another --out"
        ) from None


if __name__ == "__main__":
    raise SystemExit(main())
