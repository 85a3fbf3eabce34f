"""python -m rsnn_fmnist.report: look at what was trained.

    RUN_OR_DIR... [--memory]           runs compared over their seeds, in tables and figures
    --inspect CHECKPOINT [--index I]   one test picture on its way through the network, as a figure

Nothing is trained, and no run is changed.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from .. import cli
from ..building import import_models
from ..config import Machine
from ..errors import UsageError
from ..tracking.diagnostics import drawing
from . import csv_files, records, statistics, tables
from .inspect import cannot_write, inspect
from .measurements import Measurer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROG = "rsnn_fmnist.report.__main__"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's own) and return the exit code."""
    return cli.answer(_dispatch, argv)


def build_parser() -> cli.Parser:
    parser = cli.Parser(prog=f"python -m {PROG}", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "places", metavar="RUN_OR_DIR", nargs="*", help="run directories, or folders that hold some"
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="test accuracy after each column read, and without the first columns, of runs with "
        "weights",
    )
    parser.add_argument(
        "--inspect", metavar="CHECKPOINT", help="a run directory, latest.pt or best.pt"
    )
    parser.add_argument(
        "--index", metavar="I", type=int, help="which test picture it shows (default: 0)"
    )
    parser.add_argument(
        "--out", metavar="DIR", default="report", help="where files are written (default: report)"
    )
    parser.add_argument("--data-path", metavar="DIR", default="", help="as in training")
    parser.add_argument(
        "--download", action=argparse.BooleanOptionalAction, default=True, help="as in training"
    )
    parser.add_argument("--models-file", metavar="FILE.py", default="", help="as in training")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return parser


def _dispatch(arguments: list[str]) -> int:
    flags = build_parser().parse_all(arguments)
    if flags.memory and not flags.places:
        raise UsageError("--memory: name the runs, or folders of runs, that it is of")
    if not flags.places and flags.inspect is None:
        raise UsageError("name runs or folders of runs to compare, or --inspect CHECKPOINT")
    if flags.index is not None and flags.inspect is None:
        raise UsageError(f"--index {flags.index}: is of --inspect CHECKPOINT; name that too")
    figures = drawing("the report")
    if flags.models_file:
        import_models(Path(flags.models_file))
    machine = Machine(data_path=flags.data_path, download=flags.download, device="cpu")
    out = Path(flags.out)
    if flags.places:
        places = [Path(place) for place in flags.places]
        compare(places, out, Measurer(machine, with_memory=flags.memory), figures)
    if flags.inspect is not None:
        inspect(Path(flags.inspect), flags.index or 0, out, machine, figures)
    return 0


def compare(places: list[Path], out: Path, measurer: Measurer, figures: ModuleType) -> None:
    """Write what the runs in `places` come to into `out`, and print it.

    Raises:
        RunError, UsageError: no runs, damaged ones, none with weights for a memory that is asked
            for; nothing is written then.
    """
    from .panels import draw

    sections = measurer.sections(statistics.grouped(records.read_all(places)))
    words = tables.text(sections)
    drawn = dict(draw(sections, measurer.example))
    images = "".join(f"\n![{name}]({name}.svg)\n" for name in drawn)
    files = {"report.md": words + images, **csv_files.files(sections)}
    write(out, files, drawn, figures.save)
    print(words)
    print(f"wrote {', '.join(files)} and, as PNG and SVG, {', '.join(drawn)} to {out}")


def write(
    out: Path,
    files: Mapping[str, str],
    drawn: Mapping[str, "Figure"],
    save: Callable[["Figure", Path], None],
) -> None:
    """Write texts by their file's name, and figures by theirs without its suffix."""
    path = out
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = out / name
            path.write_text(content, encoding="utf-8")
        for name, figure in drawn.items():
            for suffix in (".png", ".svg"):
                path = out / f"{name}{suffix}"
                save(figure, path)
    except OSError as error:
        raise cannot_write(path, error) from None


if __name__ == "__main__":
    raise SystemExit(main())
