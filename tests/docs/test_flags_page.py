"""The tables of docs/flags.md are those of the declarations, and are complete."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from rsnn_fmnist.cli import build_parser
from rsnn_fmnist.config import FIELDS

SCRIPT = Path(__file__).parents[2] / "scripts" / "document_flags.py"
REMEDY = "run python scripts/document_flags.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("document_flags", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(script: ModuleType) -> str:
    return str(script.PAGE.read_text(encoding="utf-8"))


def test_the_page_is_up_to_date(script: ModuleType, text: str) -> None:
    assert text == script.page(text), f"docs/flags.md is out of date: {REMEDY}"


def test_every_flag_has_a_row(text: str) -> None:
    rows = [line for line in text.splitlines() if line.startswith("| `-")]
    flags = [row.split(" | ")[0] for row in rows]
    for action in build_parser()._actions:
        for word in action.option_strings:
            negates = word.startswith("--no-") and FIELDS[action.dest].default is False
            held = any(f"`{word}`" in cell or f"`{word} " in cell for cell in flags)
            assert held != negates, word


def test_no_text_of_the_script_is_lost(script: ModuleType, text: str) -> None:
    """A detail under a name that no flag has would be dropped silently."""
    for name, detail in script.DETAILS.items():
        assert detail in text, f"DETAILS[{name!r}] is in no row"


def test_an_outdated_table_is_rewritten(script: ModuleType, text: str) -> None:
    outdated = text.replace("| `--lr RATE` | 0.1 |", "| `--lr RATE` | 0.2 |")
    assert outdated != text
    assert script.page(outdated) == text


def test_a_page_without_marks_is_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="table: experiment"):
        script.page("# Flags\n")
