"""The one place that chooses what runs a sequence: the torch reference or a kernel.

A kernel has the name and the signature of its reference, so it is found by that name in the
backend's module, which is imported when first needed. That module also has
`refusal(x_seq, **settings)`, which returns why its kernels cannot run a call. Backend `auto` then
uses the reference; a backend that was chosen by name raises BackendUnavailableError.
"""

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import first_line
from .sequence import BackendUnavailableError, SequenceModule, TimeDistributed

KERNELS = {  # backend -> module of kernels, each with its reference's name
    "numba": ".kernels.cpu.sequences",
    "cupy": ".kernels.cuda.sequences",
}
_PREFERRED = {"cpu": "numba", "cuda": "cupy"}  # device type -> what `auto` uses if it works there
_NEEDS = {
    "numba": "a CPU",
    "cupy": "a CUDA device and CuPy (pip install 'rsnn-fmnist[cuda13]', or [cuda12] as torch)",
}
BACKENDS = ("auto", "torch", *KERNELS)


def resolve(backend: str, device: torch.device) -> str:
    """The backend that `backend`, one of BACKENDS, stands for on `device`: torch, numba or cupy.

    Raises:
        ValueError: there is no such backend.
        BackendUnavailableError: it does not run on such a device, or lacks something.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    preferred = _PREFERRED.get(device.type, "torch")
    if backend == "torch" or (backend == "auto" and preferred == "torch"):
        return "torch"
    if backend not in ("auto", preferred):
        raise BackendUnavailableError(
            f"backend {backend!r} does not run on {device.type}: it needs {_NEEDS[backend]}; "
            "choose auto or torch"
        )
    missing = _missing(preferred, device)
    if missing is not None and backend != "auto":
        raise BackendUnavailableError(
            f"backend {backend!r} cannot run: {missing}; or choose auto or torch"
        )
    return preferred if missing is None else "torch"


def lacking(device: torch.device) -> str | None:
    """What the kernels for a device lack, and the remedy; None: nothing, or it has no kernels."""
    preferred = _PREFERRED.get(device.type)
    return _missing(preferred, device) if preferred else None


@cache
def _missing(backend: str, device: torch.device) -> str | None:
    """What a backend lacks on a device that it is made for, and the remedy; None: nothing."""
    if backend == "cupy":
        return import_module(KERNELS[backend], __package__).missing(device)
    remedy = f"pip install --upgrade {backend}"
    try:
        if import_module(backend).config.DISABLE_JIT:
            return "NUMBA_DISABLE_JIT is set: unset it"
        import_module(KERNELS[backend], __package__)
    except Exception as error:  # a broken installation can raise anything
        return f"it needs a working {backend} ({first_line(error)}): {remedy}"
    return None


@cache
def _kernel(module: str, reference: Callable[..., Any]) -> Callable[..., Any] | None:
    """A module's kernel for a reference; None where there is none, or the reference is a user's."""
    return getattr(_module(module), reference.__name__, None) if _is_ours(reference) else None


def _is_ours(function: Callable[..., Any]) -> bool:
    """Whether a function or a method is one of this package."""
    return function.__module__.rpartition(".")[0] == __package__


@cache
def _module(module: str) -> Any:
    return import_module(module, __package__)


def implementation(
    reference: Callable[..., Any], x_seq: Tensor, backend: str, **settings: Any
) -> Callable[..., Any]:
    """The function to run on x_seq: `reference` itself, or the kernel of the same name.

    Args:
        settings: the keyword arguments that it will be called with.
    Raises:
        ValueError, BackendUnavailableError: as `resolve`; the latter also if the backend was
            chosen by name and its kernels cannot run this call.
    """
    if backend == "auto" and torch.compiler.is_compiling():
        return reference  # torch.compile can compile the reference, but not a kernel
    name = resolve(backend, x_seq.device)
    if name == "torch":
        return reference
    module = KERNELS[name]
    kernel = _kernel(module, reference)
    if kernel is None:
        refusal = "it has no kernel for this function"
    else:
        refusal = _module(module).refusal(x_seq, **settings)
        if refusal is None:
            return kernel
    if backend == "auto":
        return reference
    raise BackendUnavailableError(
        f"backend {backend!r} cannot run {reference.__name__}: {refusal}; choose auto or torch"
    )


def set_backend(model: nn.Module, backend: str) -> None:
    """Set the backend of every spiking module of `model`, a user's own included.

    A layer that cannot have a backend that was chosen by name raises BackendUnavailableError when
    its sequence runs: an ElementWiseRecurrentContainer, a LinearRecurrentContainer around anything
    but an IF or a LIF, a user's module that defines `step` only. What kernels call in torch is no
    such case: the slopes of Sigmoid and Erf under numba and those of a user's surrogate, and the
    products with a container's input. A single `step` always runs in torch.

    Args:
        backend: one of BACKENDS; `auto` uses the kernels wherever they can run.
    Raises:
        ValueError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    for module in model.modules():
        if isinstance(module, SequenceModule):
            module.backend = backend


def backends_in_use(model: nn.Module, device: torch.device) -> dict[str, str]:
    """What runs each spiking layer of `model` on `device`, torch or a backend, by the layer's name.

    A container is one layer. A user's module that defines `sequence` is one too, in torch, unless
    it has layers inside, which are listed in its place. The model itself is "model".

    Raises:
        ValueError, BackendUnavailableError: as running the layer would; the message names it.
    """
    return dict(_backends(model, "", torch.zeros(1, device=device)))


def _backends(module: nn.Module, name: str, x_seq: Tensor) -> Iterator[tuple[str, str]]:
    if isinstance(module, SequenceModule) and not isinstance(module, TimeDistributed):
        inside = sum(isinstance(inner, SequenceModule) for inner in module.modules()) - 1
        if _is_ours(type(module).sequence) or not inside:
            yield name or "model", _backend_of(module, name or "model", x_seq)
            return
    for child_name, child in module.named_children():
        yield from _backends(child, f"{name}.{child_name}" if name else child_name, x_seq)


def _backend_of(layer: SequenceModule, name: str, x_seq: Tensor) -> str:
    if not _is_ours(type(layer).sequence):
        return "torch"
    try:
        call = layer.reference()
        if call is None:
            layer.refuse_kernels()
            return "torch"
        reference, settings = call
        run = implementation(reference, x_seq, layer.backend, **settings)
        return "torch" if run is reference else resolve(layer.backend, x_seq.device)
    except BackendUnavailableError as error:
        raise BackendUnavailableError(f"{name}: {error}") from None
