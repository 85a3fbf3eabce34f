"""docs/flags.md is what scripts/document_flags.py makes of the declarations, and is complete."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    written, expected = script.PAGE.read_text(encoding="utf-8"), script.page()
    assert written == expected, f"docs/flags.md is out of date: {REMEDY}"


def test_every_flag_has_a_row(script: ModuleType) -> None:
    rows = [line for line in script.page().splitlines() if line.startswith("| `-")]
    flags = [row.split(" | ")[0] for row in rows]
    for action in build_parser()._actions:
        for word in action.option_strings:
            negates = word.startswith("--no-") and FIELDS[action.dest].default is False
            held = any(f"`{word}`" in cell or f"`{word} " in cell for cell in flags)
            assert held != negates, word


def test_no_text_of_the_script_is_lost(script: ModuleType) -> None:
    """A detail under a name that no flag has would be dropped silently."""
    for name, detail in script.DETAILS.items():
        assert detail in script.page(), f"DETAILS[{name!r}] is in no row"


def test_check_compares_and_writes_nothing(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    page = tmp_path / "flags.md"
    monkeypatch.setattr(script, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["document_flags.py", "--check"])
    assert script.main() == 1
    page.write_text("# Flags\n")
    assert script.main() == 1
    assert capsys.readouterr().err.splitlines() == [f"docs/flags.md is out of date: {REMEDY}"] * 2
    assert page.read_text() == "# Flags\n"
    monkeypatch.setattr(sys, "argv", ["document_flags.py"])
    assert script.main() == 0
    monkeypatch.setattr(sys, "argv", ["document_flags.py", "--check"])
    assert script.main() == 0
