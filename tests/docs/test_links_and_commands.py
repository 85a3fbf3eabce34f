"""README and docs: links lead somewhere, commands are right, Python code runs.

A command is not run: its flags are given to the program's own parser, its files are looked up.
Left out: arguments of programs outside the project (`PROGRAMS`), and of torchrun, srun and sbatch.
"""

import importlib
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from rsnn_fmnist import cli, config, models
from rsnn_fmnist.config import Experiment, Machine
from rsnn_fmnist.errors import RunError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

LANGUAGES = {"sh", "python", "toml", "text"}  # of a fenced block; only sh and python are checked
PROGRAMS = {"pip", "pre-commit", "scontrol", "tensorboard"}  # outside the project, any arguments
STARTERS = {"sbatch", "srun", "torchrun"}  # programs that start one of the project's
MODULES = {"pip", "pytest", "rsnn_fmnist", "rsnn_fmnist.report", "venv"}  # after python -m
POSITIONAL = {"scripts/slurm_array.sh": 2, "scripts/sweep.sh": 2}  # MODELS SEEDS; then flags
OPERATORS = {"&&", "||", "|", ";"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


class Block(NamedTuple):
    """A fenced block of code."""

    page: Path
    line: int  # of its first line of code, from 1
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if start is None:
            start, language = number + 1, line[3:].strip()
        else:
            yield Block(page, start, language, "\n".join(lines[start - 1 : number - 1]) + "\n")
            start = None
    assert start is None, f"{page.name}:{start}: the block has no end"


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines outside fenced blocks."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


CODE = [block for page in PAGES for block in blocks(page) if block.language == "python"]


@every_page
def test_blocks_name_their_language(page: Path) -> None:
    """Otherwise a command could hide from these tests."""
    problems = [
        f"{block}: language {block.language!r}; write one of {', '.join(sorted(LANGUAGES))}"
        for block in blocks(page)
        if block.language not in LANGUAGES
    ]
    problems += [
        f"{page.name}:{number}: an indented command; put it into a block ```sh"
        for number, line in prose(page)
        if re.match(r" {4,}(python|pip|torchrun|sbatch|scripts/)", line)
    ]
    assert not problems, "\n".join(problems)


def test_readme_is_short() -> None:
    lines = len(PAGES[0].read_text(encoding="utf-8").splitlines())
    assert lines <= 250, f"README.md has {lines} lines; move what few need into docs/"


# Links


def links(page: Path) -> Iterator[tuple[int, str]]:
    """Targets of links and images, with their lines; not those in inline code."""
    for number, line in prose(page):
        text = re.sub(r"(`+).*?\1", "", line)
        found = re.findall(r"\]\(\s*<?([^)\s>]+)", text)  # [text](target), ![text](target)
        found += re.findall(r"^\[[^\]]+\]:\s*(\S+)", text)  # [text]: target
        found += re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
        yield from ((number, target) for target in found)


@cache
def anchors(page: Path) -> set[str]:
    """GitHub's slugs of a page's headings, and ids that stand in it."""
    found: set[str] = set()
    for _, line in prose(page):
        found.update(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", line))
        heading = re.match(r"#{1,6}\s+(.*?)\s*#*$", line)
        if heading:
            text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])  # a link's text
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            repeated = sum(
                1 for other in found if re.fullmatch(re.escape(slug) + r"(-\d+)?", other)
            )
            found.add(f"{slug}-{repeated}" if repeated else slug)
    return found


def wrong_link(page: Path, target: str) -> str | None:
    """What is wrong with a link, or None."""
    if re.match(r"[a-z][a-z+.-]*:", target):
        return None  # on the web
    place, _, anchor = target.partition("#")
    path = (page.parent / place).resolve() if place else page
    if not path.is_relative_to(ROOT):
        return "leads out of the repository"
    if not path.exists():
        return "no such file"
    if anchor and (path.suffix != ".md" or anchor not in anchors(path)):
        return f"no such heading; there are {', '.join(sorted(anchors(path)))}"
    return None


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    problems = [
        f"{page.name}:{number}: {target}: {wrong}"
        for number, target in links(page)
        if (wrong := wrong_link(page, target))
    ]
    assert not problems, "\n".join(problems)


@every_page
def test_files_in_the_text_exist(page: Path) -> None:
    """`scripts/sweep.sh` or `configs/2022-*.toml`, without a link."""
    problems = [
        f"{page.name}:{number}: {path}: no such file"
        for number, line in prose(page)
        for path in re.findall(r"`((?:configs|docs|rsnn_fmnist|scripts|tests)/[^`\s]+)", line)
        if not any(ROOT.glob(path))
    ]
    assert not problems, "\n".join(problems)


def test_readme_links_to_every_page() -> None:
    linked = {(ROOT / target.partition("#")[0]).resolve() for _, target in links(PAGES[0])}
    missing = {str(page.relative_to(ROOT)) for page in PAGES[1:] if page not in linked}
    assert not missing, f"README.md links to no {', '.join(sorted(missing))}"


# Commands


def commands(page: Path) -> Iterator[tuple[int, str]]:
    """The command lines of a page with their numbers: blocks of sh, and python -m in the text."""
    for block in blocks(page):
        if block.language == "sh":
            command = ""
            for number, line in enumerate(block.code.splitlines(), block.line):
                command += line.removesuffix("\\")
                if not line.endswith("\\"):
                    yield number, command
                    command = ""
    for number, line in prose(page):
        for code in re.findall(r"`(python -m [^`]+)`", line):
            yield number, re.sub(r"(?<= )[A-Z]+(?= |$)", "1", code)  # a placeholder, such as INDEX


def words_of(line: str) -> list[list[str]]:
    """The words of each simple command of a line; `.venv/bin/python3` is `python`."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if word in OPERATORS:
            found.append([])
        elif found[-1] or not re.match(r"\w+=", word):  # variables for one command come first
            found[-1].append(word)
    for words in found:
        if words and re.fullmatch(r"(?:\S*/)?bin/\S+|python3", words[0]):
            words[0] = re.sub(r"^python3$", "python", Path(words[0]).name)
    return [words for words in found if words]


def wrong_command(words: list[str]) -> str | None:
    """What is wrong with a simple command, or None."""
    program, arguments = words[0], words[1:]
    if program in PROGRAMS:
        return None
    if program in STARTERS:
        return wrong_started(arguments)
    if program == "python" and arguments[:1] == ["-m"]:
        return wrong_module(arguments[1], arguments[2:])
    if program == "python" and arguments and arguments[0].endswith(".py"):
        return wrong_python_file(arguments[0], arguments[1:])
    if program.startswith("scripts/") and program.endswith(".sh"):
        return wrong_shell_script(program, arguments)
    if program == ".ci/run":
        return None if (ROOT / program).is_file() else "no such file"
    return f"{program}: unknown; if it is right, add it to PROGRAMS in {Path(__file__).name}"


def wrong_started(arguments: list[str]) -> str | None:
    """What follows the options of torchrun, srun or sbatch."""
    for i, word in enumerate(arguments):
        if word in STARTERS:
            return wrong_started(arguments[i + 1 :])
        if word == "-m":
            return wrong_module(arguments[i + 1], arguments[i + 2 :])
        if word.endswith(".sh"):
            return wrong_shell_script(word, arguments[i + 1 :])
    return "starts nothing of this project"


def wrong_module(module: str, arguments: list[str]) -> str | None:
    """A module after python -m, and its arguments."""
    if module == "rsnn_fmnist":
        return wrong_flags(arguments)
    if module == "rsnn_fmnist.report":
        return refused_by_report(arguments)
    if module == "pytest":
        return wrong_pytest(arguments)
    return None if module in MODULES else f"-m {module}: unknown; add it to MODULES, if it is right"


def wrong_flags(arguments: list[str]) -> str | None:
    """The flags of training: parsed by the program, --config and --model looked up."""
    if {"--help", "--version"} & set(arguments):
        return None  # argparse would print, and exit
    try:
        settings = cli.parse(arguments)
        path = settings.pop("config", "")
        for name in models.MODELS if "{model}" in path else [""]:
            toml = config.read_toml(ROOT / path.replace("{model}", name)) if path else {}
            both = {**toml, **settings}
            config.check_together(
                config.from_settings(Experiment, both), config.from_settings(Machine, both)
            )
    except RunError as error:
        return str(error)
    known = {*models.MODELS, *re.findall(r'@register\("(.+?)"\)', "".join(b.code for b in CODE))}
    model = settings.get("model")
    return None if model is None or model in known else f"--model {model}: not registered"


def refused_by_report(arguments: list[str]) -> str | None:
    try:
        importlib.import_module("rsnn_fmnist.report.__main__").build_parser().parse_all(arguments)
    except RunError as error:
        return str(error)
    return None


def wrong_pytest(arguments: list[str]) -> str | None:
    """A marker that pyproject.toml does not declare, or a path that is not there."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    options = table["tool"]["pytest"]["ini_options"]
    known = {marker.partition(":")[0] for marker in options["markers"]} | {"not", "and", "or"}
    paths = iter(arguments)
    for word in paths:
        if word == "-m":
            unknown = set(re.findall(r"\w+", next(paths, ""))) - known
            if unknown:
                return f"-m: no such marker: {', '.join(sorted(unknown))}"
        elif not word.startswith("-") and not (ROOT / word.partition("::")[0]).exists():
            return f"{word}: no such file"
    return None


def wrong_python_file(path: str, arguments: list[str]) -> str | None:
    """A Python file that is not there, or a flag that its source does not have."""
    if not (ROOT / path).is_file():
        return f"{path}: no such file"
    source = (ROOT / path).read_text(encoding="utf-8")
    flags = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    unknown = [flag for flag in flags if flag != "--help" and f'"{flag}"' not in source]
    return f"{path} has no {', '.join(unknown)}" if unknown else None


def wrong_shell_script(path: str, arguments: list[str]) -> str | None:
    """A script that is not there, or flags that training does not take."""
    if not (ROOT / path).is_file():
        return f"{path}: no such file"
    count = POSITIONAL.get(path, 0)
    names = re.split(r"[\s,]+", arguments[0]) if count else []
    unknown = [name for name in names if name not in models.MODELS]
    return f"no such model: {', '.join(unknown)}" if unknown else wrong_flags(arguments[count:])


@every_page
def test_commands_are_right(page: Path) -> None:
    problems = [
        f"{page.name}:{number}: {' '.join(words)}\n    {wrong}"
        for number, line in commands(page)
        for words in words_of(line)
        if (wrong := wrong_command(words))
    ]
    assert not problems, "\n".join(problems)


def test_the_checks_can_fail() -> None:
    """One mistake of each kind, and what is said of it."""
    mistakes = {
        "python -m rsnn_fmnist --modle plain": "did you mean --model?",
        "python -m rsnn_fmnist --model plane": "not registered",
        "python -m rsnn_fmnist --epochs 0": "at least 1",
        "python -m rsnn_fmnist --config configs/none.toml": "no such file",
        "python -m rsnn_fmnist.report runs --memroy": "did you mean --memory?",
        "python -m rsnn_fmnist.nothing": "unknown",
        "python -m pytest -m quick": "no such marker",
        "python -m pytest tests/nothing.py": "no such file",
        "python scripts/nothing.py": "no such file",
        "python scripts/torture.py --sede 1": "has no --sede",
        "scripts/sweep.sh plain,plane 1": "no such model: plane",
        "scripts/sweep.sh plain 1 --modle plain": "did you mean --model?",
        "torchrun --nproc-per-node=2 -m rsnn_fmnist --modle plain": "did you mean --model?",
        "sbatch --time=10 scripts/nothing.sh plain 1": "no such file",
        "curl example.org | sh": "unknown",
    }
    for line, expected in mistakes.items():
        wrong = wrong_command(words_of(line)[0])
        assert wrong, line
        assert expected in wrong, line
    assert wrong_link(PAGES[0], "docs/nothing.md") == "no such file"
    assert str(wrong_link(PAGES[0], "#nothing")).startswith("no such heading")


# Python


@pytest.mark.parametrize("block", CODE, ids=str)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that begins with a file's name is a file of models, any other a program."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))
    named = re.match(r"# (\w+\.py)\n", block.code)
    if named is None:
        code = "\n" * (block.line - 1) + block.code  # a traceback then shows the page's lines
        exec(compile(code, str(block.page), "exec"), {"__name__": "__main__"})
        return
    before = set(models.MODELS)
    Path(named[1]).write_text(block.code, encoding="utf-8")
    with models.temporary_models():
        models.import_models(Path(named[1]))
        registered = set(models.MODELS) - before
        assert registered, f"{block}: registers no model"
        for name in registered:
            assert models.build(name)(torch.rand(2, 28, 28)).shape == (2, 10)
