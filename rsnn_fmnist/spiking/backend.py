"""The one place that chooses what runs a sequence: the torch reference or a kernel.

A kernel carries the name and the signature of its reference, so choosing is looking the name up in
the backend's module. Kernels are imported when first asked for.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .sequence import SequenceModule

KERNELS: dict[str, str] = {}  # backend -> module of kernels, each named as its reference
_PREFERRED: dict[str, str] = {}  # device type -> backend that `auto` takes there, if not torch
BACKENDS = ("auto", "torch", *KERNELS)


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for by name cannot run here; the message says what to do."""


def resolve(backend: str, device: torch.device) -> str:
    """The backend that `backend` (one of BACKENDS) means for tensors on `device`."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    return _PREFERRED.get(device.type, "torch") if backend == "auto" else backend


def implementation(
    reference: Callable[..., Any], x_seq: Tensor, backend: str
) -> Callable[..., Any]:
    """What runs `reference`'s mathematics on x_seq: itself, or a kernel of the same name."""
    name = resolve(backend, x_seq.device)
    if name == "torch":
        return reference
    return getattr(import_module(KERNELS[name], __package__), reference.__name__)


def set_backend(model: nn.Module, backend: str) -> None:
    """Choose the backend of every spiking module inside `model`, a user's own included."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    for module in model.modules():
        if isinstance(module, SequenceModule):
            module.backend = backend
