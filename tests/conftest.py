"""What several tests share: where the real pictures are, the golden file, small sets.

Functions that they share are in helpers/.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from helpers.fake_set import FakeSet

GOLDEN = Path(__file__).parent / "golden" / "spikingjelly.npz"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason."""
    import torch

    no_pictures = pytest.mark.skip(
        reason="needs the FashionMNIST archives: set RSNN_FMNIST_DATA to the folder that holds "
        "FashionMNIST/raw"
    )
    no_cuda = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("pictures") and not os.environ.get("RSNN_FMNIST_DATA"):
            item.add_marker(no_pictures)
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(no_cuda)


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """Every array that the tutorial's library has computed, by its path in the golden file."""
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def pictures_root() -> Path:
    """A torchvision root with the real pictures; only for tests marked `pictures`."""
    return Path(os.environ["RSNN_FMNIST_DATA"]).resolve()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RSNN_FMNIST_DATA", raising=False)
    return tmp_path


@pytest.fixture
def small_synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A synthetic set so small that an epoch takes a moment."""
    from rsnn_fmnist.data import splits

    monkeypatch.setattr(splits, "SYNTHETIC", {"train": (640, 1), "test": (200, 2)})


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "FakeSet":
    """The files of FashionMNIST are those of a small random set; none is written yet."""
    from helpers.fake_set import FakeSet

    from rsnn_fmnist.data import fashion_mnist

    fake = FakeSet.drawn(tmp_path)
    for key, file in fake.files().items():
        monkeypatch.setitem(fashion_mnist.FILES, key, file)
    fake.raw.mkdir(parents=True)
    return fake


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors and modules are in double precision."""
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib cannot be imported, as where it is not installed."""
    from rsnn_fmnist import tracking

    monkeypatch.delitem(sys.modules, "rsnn_fmnist.tracking.figures", raising=False)
    monkeypatch.delattr(tracking, "figures", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture(scope="session", autouse=True)
def _event_files_in_order() -> None:
    """TensorBoard reads event files in the order of their names: second, host, process, count.

    Tests write several in one second, so their counts should have equally many digits.
    """
    from tensorboard.summary.writer import event_file_writer

    event_file_writer._global_uid = event_file_writer.AtomicCounter(1_000_000)


@pytest.fixture(autouse=True)
def _unchanged_process() -> Iterator[None]:
    """Restore what the command line sets for the whole process: signal handlers and threads."""
    import torch

    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    for s, handler in handlers.items():
        signal.signal(s, handler)
