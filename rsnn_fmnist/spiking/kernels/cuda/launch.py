"""Compile the CUDA kernels with CuPy (NVRTC) and launch them on torch's tensors.

A kernel runs on its tensors' device and on torch's current stream there, uses memory of torch's
allocator and never makes the host wait, so a CUDA graph can capture it. Compilation cannot be
captured: launch every kernel once per device before. A number that is passed to a kernel is fixed
by the capture; a tensor is read at each replay.
"""

from functools import cache
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ....errors import first_line

STORAGE = {  # the dtype of x and s -> its name in number.cuh
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "Half",
    torch.bfloat16: "BFloat",
}
SHAPES = ("1, true", "4, true", "4, false")  # SAMPLES, STAGED in recurrent.cu
KERNELS = {  # file -> its kernels, as templates over the storage
    "neuron.cu": ("neuron_forward<{}>", "neuron_backward<{}>"),
    "filter.cu": ("filter_forward<{}>", "filter_backward<{}>"),
    "recurrent.cu": tuple(
        f"recurrent_{direction}<{{}}, {shape}>"
        for direction in ("forward", "backward")
        for shape in SHAPES
    ),
}
SOURCES = Path(__file__).parent
OPTIONS = ("-std=c++17", "-fmad=false", f"-I{SOURCES}")  # for -fmad see neuron.cuh

Argument = Tensor | np.generic | np.ndarray | None  # arrays have one element, passed by value


class Limits(NamedTuple):
    """What a device has."""

    multiprocessors: int
    shared_bytes: int  # of a block, at most


@cache
def limits(device: torch.device) -> Limits:
    properties: Any = torch.cuda.get_device_properties(device)  # a field is missing in some stubs
    return Limits(properties.multi_processor_count, properties.shared_memory_per_block_optin)


def launch(
    kernel: str,
    storage: torch.dtype,
    grid: int,
    block: tuple[int, int],
    shared_bytes: int,
    *arguments: Argument,
) -> None:
    """Queue `kernel`, one of KERNELS, for arrays of `storage`.

    Args:
        grid, block: the number of blocks, and of threads (x, y) in each; does nothing if one is 0.
        shared_bytes: dynamic shared memory of a block.
        arguments: of the kernel; None passes a null pointer.
    Raises:
        RuntimeError: the tensors are not all on one device.
    """
    (device, *others) = {a.device for a in arguments if isinstance(a, Tensor)}
    if others:
        raise RuntimeError(
            f"a kernel takes tensors of one device, not {', '.join(map(str, [device, *others]))}"
        )
    if grid == 0 or 0 in block:
        return
    import cupy

    function = _function(kernel, storage, device.index)
    with (
        torch.cuda.device(device),
        cupy.cuda.Stream.from_external(torch.cuda.current_stream(device)),
    ):
        function((grid,), block, tuple(map(_passed, arguments)), shared_mem=shared_bytes)


@cache
def missing(device: torch.device, *, every: bool = False) -> str | None:
    """Why kernels cannot run on this device, and what to do about it; None: they can.

    Args:
        every: compile every file for every storage to find out, not only one.
    """
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "it needs a CUDA device, and a torch built for it"
    major = torch.version.cuda.split(".")[0]
    remedy = f"pip install 'rsnn-fmnist[cuda{major}]'"
    try:
        import cupy

        version = cupy.cuda.runtime.runtimeGetVersion()
    except Exception as error:  # a broken installation can raise anything
        cause = error.__cause__ or error  # CuPy raises a page of advice from the actual error
        return f"it needs a working CuPy ({first_line(cause)}): {remedy}"
    if str(version // 1000) != major:
        return (
            f"CuPy is built for CUDA {version // 1000}, torch for CUDA {major}: remove that CuPy, "
            f"then {remedy}"
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    wanted = product(KERNELS, STORAGE) if every else [("neuron.cu", torch.float32)]
    try:
        for file, storage in wanted:
            _function(KERNELS[file][0], storage, index)
    except Exception as error:
        cause = error.__cause__ or error
        return f"CuPy cannot compile with NVRTC and CUDA's headers ({first_line(cause)}): {remedy}"
    return None


def variants(file: str, storage: torch.dtype) -> list[str]:
    """The kernels of a file for one storage, as C++ names them."""
    return [kernel.format(STORAGE[storage]) for kernel in KERNELS[file]]


@cache
def _function(kernel: str, storage: torch.dtype, device_index: int) -> Any:
    """The compiled kernel on one device; it may use all the shared memory that a block can have."""
    (file,) = (file for file, kernels in KERNELS.items() if kernel in kernels)
    with torch.cuda.device(device_index):
        function = _module(file, storage).get_function(kernel.format(STORAGE[storage]))
        most = limits(torch.device("cuda", device_index)).shared_bytes
        function.max_dynamic_shared_size_bytes = most
    return function


@cache
def _module(file: str, storage: torch.dtype) -> Any:
    """A file's kernels for one storage; CuPy compiles them for each device on first use."""
    import cupy

    sources = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.cu*")))
    digest = sha256(sources).hexdigest()  # CuPy's disk cache ignores what is #included
    return cupy.RawModule(
        code=(SOURCES / file).read_text(encoding="utf-8"),
        options=(*OPTIONS, f"-DSOURCES_{digest}"),
        name_expressions=variants(file, storage),
    )


def _passed(argument: Argument) -> np.generic | np.ndarray:
    """An argument as CuPy passes it: by value, a tensor as its address, None as null."""
    if argument is None:
        return np.uintp(0)
    return np.uintp(argument.data_ptr()) if isinstance(argument, Tensor) else argument
