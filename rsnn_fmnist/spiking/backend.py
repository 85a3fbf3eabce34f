"""The one place that chooses what runs a sequence: the torch reference or a kernel.

A kernel carries the name and the signature of its reference, so choosing is looking the name up in
the backend's module, which is imported when first asked for. Beside its kernels that module has
`refusal(x_seq, **settings)`, which says why they cannot run a call. `auto` then takes the
reference; a backend asked for by name is an error.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .sequence import SequenceModule

KERNELS = {  # backend -> module of kernels, each named as its reference
    "numba": ".kernels.cpu.sequences",
    "cupy": ".kernels.cuda.sequences",
}
_PREFERRED = {"cpu": "numba", "cuda": "cupy"}  # device type -> what `auto` takes, if it works there
_TAKES = {  # backend -> what it needs
    "numba": "a CPU",
    "cupy": "a CUDA device and CuPy (pip install 'rsnn-fmnist[cuda13]', or [cuda12] as torch)",
}
BACKENDS = ("auto", "torch", *KERNELS)


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for by name cannot run here; the message says what to do."""


def resolve(backend: str, device: torch.device) -> str:
    """The backend that `backend` (one of BACKENDS) means for tensors on `device`.

    Raises:
        ValueError: no such backend.
        BackendUnavailableError: it takes no tensors of such a device, or lacks something.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    preferred = _PREFERRED.get(device.type, "torch")
    if backend == "torch" or (backend == "auto" and preferred == "torch"):
        return "torch"
    if backend not in ("auto", preferred):
        raise BackendUnavailableError(
            f"backend {backend!r} does not run on {device.type}: it takes {_TAKES[backend]}; "
            "choose auto or torch"
        )
    missing = _missing(preferred, device)
    if missing is not None and backend != "auto":
        raise BackendUnavailableError(
            f"backend {backend!r} cannot run: {missing}; or choose auto or torch"
        )
    return preferred if missing is None else "torch"


def lacking(device: torch.device) -> str | None:
    """What the kernels for a device lack to run on it, and the remedy; None: nothing, or no such
    kernels.
    """
    preferred = _PREFERRED.get(device.type)
    return _missing(preferred, device) if preferred else None


@cache
def _missing(backend: str, device: torch.device) -> str | None:
    """What a backend lacks to run on a device of its type, and the remedy; None: nothing."""
    if backend == "cupy":
        return import_module(KERNELS[backend], __package__).missing(device)
    remedy = f"pip install --upgrade {backend}"
    try:
        if import_module(backend).config.DISABLE_JIT:
            return "NUMBA_DISABLE_JIT is set: unset it"
        import_module(KERNELS[backend], __package__)
    except Exception as error:  # whatever a broken installation raises
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"it needs a working {backend} ({first}): {remedy}"
    return None


@cache
def _kernel(module: str, reference: Callable[..., Any]) -> Callable[..., Any] | None:
    """A module's kernel for a reference of this package; a user's may have any name."""
    own = reference.__module__.rpartition(".")[0] == __package__
    return getattr(_module(module), reference.__name__, None) if own else None


@cache
def _module(module: str) -> Any:
    return import_module(module, __package__)


def implementation(
    reference: Callable[..., Any], x_seq: Tensor, backend: str, **settings: Any
) -> Callable[..., Any]:
    """What runs `reference`'s mathematics on x_seq: itself, or a kernel of the same name.

    Args:
        settings: the keyword arguments that it is going to be called with.
    Raises:
        ValueError, BackendUnavailableError: as `resolve`; the latter also where the backend was
            asked for by name and its kernels cannot run this call.
    """
    if backend == "auto" and torch.compiler.is_compiling():
        return reference  # the compiler sees through it, and not into a kernel
    name = resolve(backend, x_seq.device)
    if name == "torch":
        return reference
    module = KERNELS[name]
    kernel = _kernel(module, reference)
    why_not = (
        "it has no such kernel" if kernel is None else _module(module).refusal(x_seq, **settings)
    )
    if kernel is not None and why_not is None:
        return kernel
    if backend == "auto":
        return reference
    raise BackendUnavailableError(
        f"backend {backend!r} cannot run {reference.__name__}: {why_not}; choose auto or torch"
    )


def set_backend(model: nn.Module, backend: str) -> None:
    """Choose the backend of every spiking module inside `model`, a user's own included."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    for module in model.modules():
        if isinstance(module, SequenceModule):
            module.backend = backend
