"""Write the tables of docs/flags.md from the declarations in rsnn_fmnist/config.py.

    python scripts/document_flags.py

The text between the tables is the page's own. DETAILS adds to a help text what --help is too short
for.
"""

import dataclasses
import re
from argparse import Action
from collections.abc import Iterable
from pathlib import Path

from rsnn_fmnist.cli import build_parser
from rsnn_fmnist.config import FIELDS, Experiment, Machine, flag, value_type

PAGE = Path(__file__).parents[1] / "docs" / "flags.md"

DETAILS = {
    "normalize": "FashionMNIST's mean is 0.2860, its standard deviation 0.3530",
    "epochs": "the last, partial batch of an epoch is dropped",
    "amp": "linear layers in half precision, potentials in float32",
    "amp_dtype": "float16 comes with gradient scaling",
    "device": "under `torchrun` each process takes a GPU of its own",
    "backend": "`torch` is the reference; `numba` has kernels for the CPU, `cupy` for CUDA",
    "resume": "see [README](../README.md#stop-and-resume)",
    "tb": "see [inside.md](inside.md)",
    "tb_pictures": "needs matplotlib: `pip install -e '.[report]'`",
    "graph": "see [speed.md](speed.md) and [gpu.md](gpu.md)",
    "prepare_only": "prints where the run directory would be",
    "models_file": "see [README](../README.md#a-model-of-your-own)",
    "info": "also whether the CUDA kernels compile, and where pictures are looked for",
}


def page(text: str) -> str:
    """The text of docs/flags.md, with its tables replaced by fresh ones.

    Raises:
        ValueError: the marks around a table are missing.
    """
    actions = {action.dest: action for action in build_parser()._actions}
    others = [action for name, action in actions.items() if name not in FIELDS]
    tables = {
        "experiment": settings_table(Experiment, actions),
        "machine": settings_table(Machine, actions),
        "others": table(("flag", "meaning"), ((spelling(a), meaning(a)) for a in others)),
    }
    for name, lines in tables.items():
        start, end = f"<!-- table: {name} -->", "<!-- end of table -->"
        before, found, rest = text.partition(start)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise ValueError(f"docs/flags.md has no lines {start!r} and {end!r}")
        text = f"{before}{start}\n\n{lines}\n\n{end}{after}"
    return text


def settings_table(settings: type[Experiment | Machine], actions: dict[str, Action]) -> str:
    """One row for each setting."""
    names = [field.name for field in dataclasses.fields(settings)]
    rows = [(spelling(actions[n]), default(n), values(n), meaning(actions[n])) for n in names]
    return table(("flag", "default", "values", "meaning"), rows)


def spelling(action: Action) -> str:
    """A flag as it is typed: `-b N`, `--batch-size N`."""
    value = "" if action.nargs == 0 else str(action.metavar)
    if value.startswith("{"):  # choices, which have a column of their own
        value = "NAME"
    elif action.nargs == "?":
        value = f"[{value}]"
    words = [word for word in action.option_strings if not _is_redundant(word, action.dest)]
    return ", ".join(f"`{f'{word} {value}'.strip()}`" for word in words)


def _is_redundant(word: str, name: str) -> bool:
    """Whether `word` switches off what is off by default."""
    return word.startswith("--no-") and FIELDS[name].default is False


def default(name: str) -> str:
    """The default of a setting: its value, or what its help names after "default:"."""
    value = FIELDS[name].default
    if value_type(name) is bool:
        return f"`{flag(name)}`" if value else "off"
    if value in ("", None):
        return marked(_split(FIELDS[name].metadata["help"])[1])
    return f"`{value}`" if isinstance(value, str) else f"{value:g}"


def values(name: str) -> str:
    """The choices or the range of a setting; empty if its type is all there is to say."""
    extras = FIELDS[name].metadata
    choices = ", ".join(f"`{choice}`" for choice in extras["choices"])
    return choices or (extras["rule"].words if extras["rule"] else "")


def meaning(action: Action) -> str:
    """The help of a flag in Markdown, with its details."""
    setting = FIELDS.get(action.dest)
    text = marked(_split(setting.metadata["help"] if setting else str(action.help))[0])
    if action.dest not in DETAILS:
        return text
    start = f"{text[:-1]}; " if text.endswith(")") else f"{text} ("
    return f"{start}{DETAILS[action.dest]})"


def _split(text: str) -> tuple[str, str]:
    """A help text, and the default that it ends with in brackets."""
    text, _, named = text.partition(" (default: ")
    return text, named.removesuffix(")")


def marked(text: str) -> str:
    """A help text with flags (and a choice of theirs) and environment variables as code."""
    choices = "|".join(c for setting in FIELDS.values() for c in setting.metadata["choices"])
    return re.sub(rf"--[a-z][a-z-]*(?: (?:{choices}|[A-Z]+)\b)?|\$[A-Z_]+", r"`\g<0>`", text)


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [heads, ["---"] * len(heads), *escaped]
    written = ["".join(f"| {c} " if c else "| " for c in cells) + "|" for cells in lines]
    return "\n".join(written)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
