"""Runs of several processes, as torchrun starts them."""

import subprocess
import sys
from typing import Any

from helpers.program import ENVIRONMENT, PROGRAM


def torchrun(size: int, program: list[str]) -> list[str]:
    """The command that runs a program in `size` processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node", str(size), *program]


def launched(size: int, words: list[str], program: list[str] = PROGRAM[1:]) -> Any:
    """Start the program, or another one, in `size` processes."""
    return subprocess.Popen(
        torchrun(size, [*program, *words]),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
