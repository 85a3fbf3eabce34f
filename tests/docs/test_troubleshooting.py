"""The messages that docs/troubleshooting.md quotes are ones that the program prints."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"


@cache
def messages() -> list[list[str]]:
    """Every string of the sources but docstrings, as the fixed parts between its values."""
    found = []
    for path in [*(ROOT / "rsnn_fmnist").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [""]
                for value in node.values:
                    if isinstance(value, ast.Constant):
                        parts[-1] += str(value.value)
                    else:
                        parts.append("")
                found.append(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append([node.value])
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = ""  # a docstring; walked after its statement
    found += [[path.read_text(encoding="utf-8")] for path in (ROOT / "scripts").glob("*.sh")]
    return found


def is_excerpt(text: str, parts: list[str]) -> bool:
    """Whether `text` may be cut out of a message whose fixed parts have values between them.

    A value is a word without spaces; at least half of the text must be fixed. So "--lr 0.5: must
    be" is an excerpt of ["", " ", ": must be above 0"].
    """
    if any(text in part for part in parts):
        return True
    for i, part in enumerate(parts[:-1]):
        for start in range(len(part) + 1):
            head = part[start:]
            if text.startswith(head):
                fixed = len(head) + fixed_after_value(text[len(head) :], parts[i + 1 :])
                if 2 * fixed >= len(text):
                    return True
    return False


def fixed_after_value(text: str, parts: list[str]) -> int:
    """How much of a text that begins with a value is fixed; far below 0 if it does not fit."""
    most = -len(text) - 1000
    for end in range(1, len(text) + 1):
        if text[end - 1].isspace():
            break
        rest = text[end:]
        if parts[0].startswith(rest):
            most = max(most, len(rest))
        elif len(parts) > 1 and rest.startswith(parts[0]):
            most = max(most, len(parts[0]) + fixed_after_value(rest[len(parts[0]) :], parts[1:]))
    return most


def quoted_messages() -> Iterator[tuple[int, str]]:
    """Texts in backticks in the first column of troubleshooting's table of messages."""
    in_table = False
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), 1):
        in_table = line.startswith("| message |") or (in_table and line.startswith("|"))
        if in_table:
            first = re.split(r"(?<!\\)\|", line)[1].replace("\\|", "|")
            yield from ((number, text) for text in re.findall("`(.+?)`", first))


def test_quoted_messages_exist() -> None:
    quoted = list(quoted_messages())
    assert len(quoted) > 10, "docs/troubleshooting.md has lost its table of messages"
    problems = [
        f"{PAGE.name}:{number}: no message has {fragment!r}; quote one as it "
        "is printed, with ... for what differs"
        for number, text in quoted
        for fragment in (piece.strip() for piece in re.split(r"\.\.\.|; ", text))
        if re.search("[a-z]{2}", fragment)
        and not any(is_excerpt(fragment, parts) for parts in messages())
    ]
    assert not problems, "\n".join(problems)


def test_excerpts() -> None:
    parts = ["", " ", ": the run in ", " has ", ""]
    for text in ("the run in", "--lr 0.5: the run in", "has 0.1"):
        assert is_excerpt(text, parts), text
    for text in ("the runs in", "--lr 0.5: runs in", "had 0.1", "--lr 0.5"):
        assert not is_excerpt(text, parts), text
