"""Write docs/flags.md: every flag, from the declarations in rsnn_fmnist/config.py.

    python scripts/document_flags.py           write the page
    python scripts/document_flags.py --check   exit with 1 if the page differs from the declarations

The tables of flags are generated. The rest of the page is the text in this file: `page`, what a
flag's help is too short for (`DETAILS`), and what differs from the tutorial (`TUTORIAL`).
"""

import argparse
import dataclasses
import re
import sys
from argparse import Action
from collections.abc import Iterable
from pathlib import Path

from rsnn_fmnist.cli import build_parser
from rsnn_fmnist.config import FIELDS, Experiment, Machine, value_type

PAGE = Path(__file__).parents[1] / "docs" / "flags.md"

DETAILS = {
    "val_size": "the same number from every class",
    "normalize": "FashionMNIST's mean is 0.2860, its standard deviation 0.3530",
    "epochs": "the last, partial batch of an epoch is dropped",
    "amp": "linear layers in half precision, potentials in float32",
    "amp_dtype": "float16 comes with gradient scaling",
    "device": "under `torchrun` each process takes a GPU of its own",
    "backend": "`torch` is the reference; `numba` has kernels for the CPU, `cupy` for CUDA",
    "threads": "see [speed.md](speed.md)",
    "workers": "which is faster",
    "cache_dataset": "named `rsnn_fmnist_columns_v1.pt`",
    "resume": "see [README](../README.md#stop-and-resume)",
    "tb": "see [inside.md](inside.md)",
    "tb_pictures": "needs matplotlib: `pip install -e '.[report]'`",
    "deterministic": "on the CPU all are",
    "graph": "see [speed.md](speed.md) and [gpu.md](gpu.md)",
    "prepare_only": "prints where the run directory would be",
    "models_file": "see [README](../README.md#a-model-of-your-own)",
    "info": "also whether the CUDA kernels compile, and where pictures are looked for",
}

TUTORIAL = {  # flag: the tutorial's default, the setting, and why they differ
    "--device": ("`cuda:0`", "device", "works on any machine"),
    "--data-path": ("a folder of its author", "data_path", "works on any machine"),
    "-j": ("4", "workers", "gathering a batch on the device costs less than any worker"),
    "--output-dir": ("`./logs`", "output_dir", "no run overwrites another's directory"),
    "--amp-dtype": ("float16", "amp_dtype", "`auto` is bfloat16 on the CPU: float16 is slow there"),
}


def page() -> str:
    """The text of docs/flags.md."""
    actions = {action.dest: action for action in build_parser()._actions}
    others = [action for name, action in actions.items() if name not in FIELDS]
    differences = [(f"`{f}`", there, default(s), why) for f, (there, s, why) in TUTORIAL.items()]
    return f"""\
<!-- scripts/document_flags.py writes this page: edit it or rsnn_fmnist/config.py, then run it. -->

# Flags

`python -m rsnn_fmnist` takes the flags on this page; `--help` prints a shorter list.

## How settings are combined

Settings come from the defaults, then from `--config FILE.toml`, then from flags; later ones take
precedence. In a TOML file, a setting has the flag's long name with underscores, at the top level:

```toml
model = "feedback"
batch_size = 256
amp = true
```

- A setting that a flag such as `--amp` switches on is switched off by `--no-amp`, also when a TOML
  file has switched it on.
- Flags cannot be abbreviated. An unknown flag or TOML key is refused with the closest match.
- Choices are not case-sensitive (`--lrs None`). Numbers must be finite and in the range given.
- [`configs/`](../configs) holds the settings of the tutorial's two editions, a file for each model:
  `plain.toml`, `feedback.toml` and `stateful-synapse.toml` for 2021, and the same names after
  `2022-` for 2022 (batch 256, 64 epochs, pixels in [0, 1], reset detached only in the recurrent
  container).
- A run writes its experiment settings to `config.toml`; `--config` with that file repeats the run.

## Experiment

What is computed. These settings make up the run's name. They cannot change when a run resumes,
except that `--epochs` may grow.

{settings_table(Experiment, actions)}

## Machine

Where and how it is computed. These settings may change when a run resumes. A resumed run ends with
the same bits as one that was never stopped only with the same device, backend, number of threads
and kind of training step.

{settings_table(Machine, actions)}

## Other flags

These are not settings: a TOML file cannot contain them.

{table(("flag", "meaning"), ((spelling(action), meaning(action)) for action in others))}

## Exit codes

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | any other failure: something that this machine, the data or a file lacks |
| 2 | a mistake in flags or configuration |
| 130, 143 | stopped by SIGINT (Ctrl-C) or SIGTERM; the checkpoint is saved first |

## Defaults that differ from the tutorial's

Command lines of the tutorial's script work here, with the module's name changed. These defaults
differ:

{table(("flag", "tutorial", "here", "why"), differences)}

The tutorial's script evaluates on the training set, without autocast. Here the evaluation is on the
10,000 test pictures, in the precision of training; see [experiment.md](experiment.md).
"""


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
        return "on" if value else "off"
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


def main() -> int:
    """Write the page, or compare it, and return the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/flags.md from rsnn_fmnist/config.py.")
    parser.add_argument("--check", action="store_true", help="compare; exit with 1 if they differ")
    check: bool = parser.parse_args().check
    text = page()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        print("docs/flags.md is out of date: run python scripts/document_flags.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
