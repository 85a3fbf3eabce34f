"""The generators that a model may draw from: torch's, of the CPU and a GPU, NumPy's and Python's.

All are seeded by --seed, kept in checkpoints, and left alone by whatever only observes a run.
"""

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

State = dict[str, Any]  # of plain types and tensors, as checkpoints hold


def seed(number: int) -> None:
    """Seed all generators."""
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def capture(device: torch.device) -> State:
    """The states of all generators; of torch's, those of the CPU and of `device`."""
    numpy_state: Any = np.random.get_state(legacy=False)
    keys = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    version, internal, gauss_next = random.getstate()
    state: State = {
        "cpu": torch.get_rng_state(),
        "numpy": numpy_state | {"state": numpy_state["state"] | {"key": keys}},
        "python": (version, torch.tensor(internal), gauss_next),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def on_host() -> bytes:
    """The states of the generators that a GPU does not have, to compare by equality."""
    return pickle.dumps(
        (torch.get_rng_state().numpy(), np.random.get_state(legacy=False), random.getstate())
    )


def restore(state: State, device: torch.device) -> None:
    """Set the generators whose states are known: older checkpoints hold torch's only.

    Raises:
        KeyError, ValueError, TypeError, RuntimeError: it is not the result of `capture`.
    """
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if "numpy" in state:
        inner = state["numpy"]["state"]
        keys = inner["key"].numpy().astype(np.uint32)
        np.random.set_state(state["numpy"] | {"state": inner | {"key": keys}})
    if "python" in state:
        version, internal, gauss_next = state["python"]
        random.setstate((version, tuple(internal.tolist()), gauss_next))


@contextmanager
def unchanged(device: torch.device) -> Iterator[None]:
    """Restore all generators at the end."""
    state = capture(device)
    try:
        yield
    finally:
        restore(state, device)
