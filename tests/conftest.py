"""What several tests share: where the real pictures are, and the seed's golden file."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden" / "seed_library.npz"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, saying why."""
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
    """Every array of the golden file, by its path."""
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def pictures_root() -> Path:
    """A torchvision root with the real pictures; only for tests marked `pictures`."""
    return Path(os.environ["RSNN_FMNIST_DATA"]).resolve()


@pytest.fixture
def small_synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A synthetic set that an epoch of a test passes through in a moment."""
    from rsnn_fmnist.data import fashion_mnist

    monkeypatch.setattr(fashion_mnist, "SYNTHETIC", {"train": (640, 1), "test": (200, 2)})


@pytest.fixture(autouse=True)
def _unchanged_process() -> Iterator[None]:
    """The command line sets signal handlers and threads for the process; put them back."""
    import torch

    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    for s, handler in handlers.items():
        signal.signal(s, handler)
