"""What a run is made of: the source's revision, whatever the environment."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rsnn_fmnist.storage import provenance


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another repository, without a commit."""
    if not (Path(provenance.__file__).parents[2] / ".git").exists() or not shutil.which("git"):
        pytest.skip("needs a clone")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def test_the_revision_is_that_of_the_source(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git sets these variables for its hooks, and for what they start."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR"):
        monkeypatch.delenv(name, raising=False)
    revision = provenance.git_revision()
    assert revision
    for name, value in {
        "GIT_DIR": other / ".git",
        "GIT_WORK_TREE": other,
        "GIT_INDEX_FILE": other / "index",
        "GIT_OBJECT_DIRECTORY": other,
        "GIT_COMMON_DIR": other / ".git",
    }.items():
        monkeypatch.setenv(name, str(value))
        assert provenance.git_revision() == revision


def test_output_that_is_no_text_is_no_failure() -> None:
    """A tag may be named in another encoding than this machine's."""
    program = r"import sys; sys.stdout.buffer.write(b'v1-\xe9\n')"
    assert provenance._output_of(sys.executable, "-c", program) == "v1-\ufffd"
