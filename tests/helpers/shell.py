"""The shell scripts of scripts/, started as processes."""

import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
MODELS = ("plain", "feedback", "stateful-synapse")


def interpreter(folder: Path, text: str) -> str:
    path = folder / "interpreter"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def start(folder: Path, environment: dict[str, str], name: str, *words: str) -> Any:
    return subprocess.Popen(
        [str(SCRIPTS / name), *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def outcome(process: Any) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def run(folder: Path, environment: dict[str, str], name: str, *words: str) -> tuple[int, str, str]:
    with start(folder, environment, name, *words) as process:
        return outcome(process)


def wait_for(paths: list[Path]) -> None:
    deadline = time.monotonic() + 100
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, paths
        time.sleep(0.05)
