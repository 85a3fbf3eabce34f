"""What all commands share: closest matches, paths, output, errors in one line, exit codes."""

import importlib
import io
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.program import ENVIRONMENT
from helpers.runs import refused

from rsnn_fmnist import cli
from rsnn_fmnist.arguments import TORCHRUN, Parser, closest, run_command, user_path
from rsnn_fmnist.errors import DivergedError, RunError, UsageError
from rsnn_fmnist.interrupt import InterruptedRunError


def test_closest() -> None:
    assert closest("plane", ["feedback", "plain"]) == "; did you mean plain?"
    assert closest("xyz", ["feedback", "plain"]) == ""


def test_the_parser() -> None:
    parser = Parser(prog="rsnn_fmnist")
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_all(["one", "--rate", "-1e-4", "two", "--verbose"])
    assert (given.runs, given.rate, given.verbose) == (["one", "two"], -1e-4, True)
    for line, words in {
        "--rat 3": "unknown argument --rat; did you mean --rate?",
        "--rate": "expected one argument",
        "--rate fast": "invalid float value: 'fast'",
    }.items():
        with pytest.raises(UsageError, match=words.replace("?", r"\?")):
            parser.parse_all(line.split())


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("a mistake"), 2, "rsnn_fmnist: error: a mistake (see --help)\n"),
        (RunError("two\nlines"), 1, "rsnn_fmnist: error: two lines\n"),
        (DivergedError("the loss"), 1, "rsnn_fmnist: error: the loss\n"),
        (KeyboardInterrupt(), 130, "rsnn_fmnist: interrupted\n"),
        (InterruptedRunError(signal.SIGTERM), 143, ""),
        (BrokenPipeError(), 128 + signal.SIGPIPE, ""),
        (
            ZeroDivisionError("a defect\nin two lines"),
            1,
            "rsnn_fmnist: error: ZeroDivisionError: a defect (--debug shows where)\n",
        ),
    ],
)
def test_exit_codes(error: BaseException, code: int, line: str, capsys: Any) -> None:
    def command(arguments: list[str]) -> int:
        assert arguments == ["--flag"]
        raise error

    assert run_command(command, ["--flag"]) == code
    assert capsys.readouterr() == ("", line)


def test_of_several_processes_one_prints_the_error_of_all(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def command(_: list[str]) -> int:
        raise UsageError("of all")

    monkeypatch.setattr("rsnn_fmnist.arguments.PATIENCE", 0.0)
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")  # left behind: torchrun has not started this process
    for rank, printed in (("", True), ("0", True), ("1", False)):
        for name in TORCHRUN if rank else ():
            monkeypatch.setenv(name, rank)
        assert run_command(command, []) == 2
        assert ("of all" in capsys.readouterr().err) == printed


@pytest.mark.parametrize(
    ("encoding", "printed"), [("ascii", rb"\xe9 \xb1"), ("latin-1", b"\xe9 \xb1"), ("utf-8", "é ±")]
)
def test_every_character_is_printed(
    monkeypatch: pytest.MonkeyPatch, encoding: str, printed: bytes | str
) -> None:
    """Escaped where the encoding lacks it; a byte of a file name that is no character stays."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)

    def command(_: list[str]) -> int:
        print("é ± \udce9")
        raise RunError("é ± \udce9")

    assert run_command(command, []) == 1
    expected = (printed if isinstance(printed, bytes) else printed.encode()) + b" \xe9\n"
    for start, stream in zip((b"", b"rsnn_fmnist: error: "), streams, strict=True):
        assert stream.errors == "strict"
        stream.flush()
        assert stream.buffer.getvalue() == start + expected  # type: ignore[attr-defined]


def test_in_another_thread(here: Path, capsys: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run_command, lambda _: 0, []).result() == 0
        assert pool.submit(cli.main, ["--model", "plane"]).result() == 2
    assert "did you mean plain?" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_users_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of mine")
    for text, path in {
        "~/x": "/home/of mine/x",
        "~": "/home/of mine",
        "./~": "./~",
        "a/~/b": "a/~/b",
        "": "",
        "a//b/": "a//b/",
        "n" * 255: "n" * 255,
    }.items():
        assert user_path(text, "--out") == path
    for text, words in {
        "~nobody-of-this-name/x": "--out '~nobody-of-this-name/x': no such home folder",
        "a\0b": r"--out 'a\\x00b': has a NUL character",
        "~\0b": "has a NUL character",
        "a/" + "é" * 128: "too long; file systems allow names of 255 bytes",
        "a/" * 4096: "too long",
        "a\ud800b": "has a character that file names cannot have here",
    }.items():
        with pytest.raises(UsageError, match=words) as caught:
            user_path(text, "--out")
        assert len(str(caught.value)) < 200


def test_debug_shows_a_traceback(here: Path, capsys: Any) -> None:
    assert cli.main(["--model", "plain", "--resume", "none", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_is_one_line(here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a defect\nin two lines")

    monkeypatch.setattr(importlib.import_module("rsnn_fmnist.run"), "load_pictures", fail)
    line = refused(capsys, 1, "--model", "plain")
    assert "ZeroDivisionError: a defect (--debug shows where)" in line


def test_as_a_module(here: Path) -> None:
    """The program itself, as a process."""
    command = [sys.executable, "-m", "rsnn_fmnist", "--model", "plane"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_a_signal_while_the_interpreter_exits_prints_no_traceback() -> None:
    """As torchrun sends it to the processes that have just reported their error."""
    program = """
import atexit, signal
from rsnn_fmnist.arguments import run_command
atexit.register(signal.raise_signal, signal.SIGTERM)
raise SystemExit(run_command(lambda arguments: 1, []))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")
