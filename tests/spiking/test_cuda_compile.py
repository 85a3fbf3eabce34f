"""NVRTC compiles every kernel for every storage and for several devices, without a GPU."""

import re

import pytest
import torch

from rsnn_fmnist.spiking.kernels.cuda.launch import (
    KERNELS,
    OPTIONS,
    SOURCES,
    STORAGE,
    variants,
)

nvrtc = pytest.importorskip(
    "cuda.bindings.nvrtc", reason="cuda.bindings comes with a CUDA build of torch"
)
CAPABILITIES = ("75", "80", "90")  # Turing, Ampere, Hopper; CUDA 13 no longer knows 70
MOST_SPILLED = 32  # bytes of registers that a thread may spill to memory


def done(result: tuple) -> tuple:
    """What a call of NVRTC returns behind its error code, which has to be success."""
    assert result[0] == nvrtc.nvrtcResult.NVRTC_SUCCESS, result[0]
    return result[1:]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("storage", STORAGE, ids=str)
@pytest.mark.parametrize("file", KERNELS)
def test_every_variant_compiles(file: str, storage: torch.dtype, capability: str) -> None:
    names = [name.encode() for name in variants(file, storage)]
    (program,) = done(
        nvrtc.nvrtcCreateProgram((SOURCES / file).read_bytes(), file.encode(), 0, [], [])
    )
    for name in names:
        done(nvrtc.nvrtcAddNameExpression(program, name))
    options = [*OPTIONS, f"-arch=sm_{capability}", "--ptxas-options=-v"]
    (outcome,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    (size,) = done(nvrtc.nvrtcGetProgramLogSize(program))
    log = b" " * size
    done(nvrtc.nvrtcGetProgramLog(program, log))
    assert outcome == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    assert b"warning" not in log, log.decode()
    mangled = {done(nvrtc.nvrtcGetLoweredName(program, name))[0] for name in names}
    assert len(mangled) == len(names)
    assert log.count(b"registers") == len(names)
    spilled = [int(count) for count in re.findall(rb"(\d+) bytes spill stores", log)]
    assert len(spilled) == len(names)
    assert max(spilled) <= MOST_SPILLED, log.decode()
    (size,) = done(nvrtc.nvrtcGetCUBINSize(program))
    assert size > 0
    done(nvrtc.nvrtcDestroyProgram(program))


def test_the_kernels_use_no_atomics_and_include_no_system_headers() -> None:
    for path in SOURCES.glob("*.cu*"):
        text = path.read_text(encoding="utf-8")
        assert "atomic" not in text
        assert "#include <" not in text, f"{path.name}: NVRTC may not find it"
