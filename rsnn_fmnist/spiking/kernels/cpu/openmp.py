"""Run a compiled loop on torch's own OpenMP threads.

numba can start threads itself, but they would be a second pool beside torch's: the workers of both
spin for a while after their work, on the same cores, and slow each other down. (numba's "workqueue"
layer also aborts the process when two Python threads use it at once.) So `fork` enters a parallel
region of the OpenMP library that torch is linked against. Kernels then share torch's threads and
their rules: as many as torch.set_num_threads sets, safe to call from several Python threads, and in
a forked child usable with one thread only.

If torch's OpenMP does not have GNU's entry points (Windows), loops run in the calling thread, and
PARALLEL is False. `fork` generates the equivalent of:

    static void body(void *packed) {
        loop(omp_get_thread_num(), omp_get_num_threads(), *(arguments *)packed);
    }
    void fork(long threads, arguments given) {
        arguments packed = given;
        GOMP_parallel(body, &packed, threads, 0);
    }

Besides numba's documented interface, this file uses dispatcher._cache with its
_cache_file._source_stamp, loop.dispatcher.get_compile_result, loop.get_call_type,
context.active_code_library and context.declare_function; tested with numba 0.61.0 and 0.68.1
(llvmlite 0.44.0 and 0.50.0).
"""

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache as cache_once
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import llvmlite.binding
import numba
import torch
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from ....errors import note, on_terminal, warn

F = TypeVar("F", bound=Callable[..., Any])

# What the code in the cache is made of; see `compiled`.
SOURCES = sorted(Path(__file__).parents[1].rglob("*.py"))
VERSIONS = (numba.__version__, llvmlite.__version__, torch.__version__)
DIGEST = sha256(repr(VERSIONS).encode() + b"".join(p.read_bytes() for p in SOURCES)).hexdigest()
PREFIX = "rsnn_fmnist_"  # of the symbols through which code cached on disk finds OpenMP


def compiled(loop: F) -> F:
    """Compile `loop` when it is first called; cached on disk, so later runs do not compile.

    The code in the cache contains that of the functions which `loop` calls, so it is outdated when
    any file of the kernels changes.
    """
    options = {"error_model": "numpy", "nogil": True}
    try:
        _check_home()
        dispatcher = njit(loop, cache=True, **options)
    except RuntimeError:  # there is no folder that numba may write to
        _say_uncached()
        return njit(loop, **options)
    cache = dispatcher._cache
    save, load = cache.save_overload, cache.load_overload
    cache._cache_file._source_stamp = (cache._cache_file._source_stamp, DIGEST)

    def save_if_possible(*arguments: Any) -> None:
        try:
            save(*arguments)
        except Exception:  # such as a full disk
            _say_uncached()

    def load_if_possible(*arguments: Any) -> Any:
        found = None
        try:
            found = load(*arguments)
        except Exception:  # a damaged file can raise anything
            with suppress(OSError):
                cache.flush()
        if found is None:
            _say_compiling()
        return found

    cache.save_overload, cache.load_overload = save_if_possible, load_if_possible
    return dispatcher


if numba.config.CACHE_DIR:  # else NUMBA_CACHE_DIR=~/folder would be a folder named `~`
    numba.config.CACHE_DIR = str(Path(numba.config.CACHE_DIR).expanduser())


def _check_home() -> None:
    """Raise RuntimeError where numba would make a folder named `~` for its cache."""
    if not (os.access(Path(__file__).parent, os.W_OK) or os.environ.get("NUMBA_CACHE_DIR")):
        Path.home()


@cache_once
def _say_compiling() -> None:
    if on_terminal():
        note("compiling the CPU kernels: up to a minute, once for this version and processor")


@cache_once
def _say_uncached() -> None:
    warn(
        "the compiled CPU kernels cannot be kept, so that every run compiles them: set "
        "NUMBA_CACHE_DIR to a folder that can be written"
    )


INNER = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def inner(loop: F) -> F:
    """Compile `loop` for other loops to call, not Python."""
    return njit(loop, **INNER)


def inlined(loop: F) -> F:
    """As `inner`, into the loops that call it, so that they can optimize it for their case."""
    return njit(loop, **INNER, forceinline=True)


def reassociated(loop: F) -> F:
    """As `inner`; the sums of `loop` may be reordered and fused."""
    return njit(loop, **INNER, fastmath={"contract", "reassoc"})


@intrinsic  # type: ignore[untyped-decorator]
def fork(typing: Any, loop: Any, _threads: Any, arguments: Any) -> Any:
    """fork(loop, threads, arguments): call loop(part, parts, *arguments) once on each thread.

    part counts from 0 to parts - 1; parts is at most `threads`.
    """
    parameters = (types.intp, types.intp, *arguments)
    callee = loop.get_call_type(typing, parameters, {})

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        """Pack the arguments, and call GOMP_parallel(body, &packed, threads, flags = 0)."""
        packed = cgutils.alloca_once_value(builder, values[2])
        body = _region_body(context, builder.module, loop, callee, values[2].type)
        pointer, integer = cgutils.voidptr_t, cgutils.int32_t
        gomp_parallel = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [body.type, pointer, integer, integer]),
            PREFIX + "GOMP_parallel",
        )
        count = builder.trunc(values[1], integer)
        data = builder.bitcast(packed, pointer)
        builder.call(gomp_parallel, [body, data, count, integer(0)])
        return context.get_dummy_value()

    return types.void(loop, types.intp, arguments), generate


def _region_body(context: Any, module: Any, loop: Any, callee: Any, packed_type: Any) -> Any:
    """void body(void *packed): call loop(part, parts, *packed) and drop its status (no raise)."""
    compiled_loop = loop.dispatcher.get_compile_result(callee)
    context.active_code_library.add_linking_library(compiled_loop.library)
    body = ir.Function(
        module, ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t]), module.get_unique_name("body")
    )
    body.linkage = "internal"
    builder = ir.IRBuilder(body.append_basic_block("entry"))
    ask = ir.FunctionType(cgutils.int32_t, [])
    part, parts = (
        builder.sext(
            builder.call(cgutils.get_or_insert_function(module, ask, PREFIX + name), []),
            cgutils.intp_t,
        )
        for name in ("omp_get_thread_num", "omp_get_num_threads")
    )
    packed = builder.load(builder.bitcast(body.args[0], packed_type.as_pointer()))
    context.call_conv.call_function(
        builder,
        context.declare_function(module, compiled_loop.fndesc),
        types.none,
        callee.args,
        [part, parts, *cgutils.unpack_tuple(builder, packed)],
    )
    builder.ret_void()
    return body


_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Parallel = ctypes.CFUNCTYPE(None, _Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
_Count = ctypes.CFUNCTYPE(ctypes.c_int)

ALONE = {  # a parallel region of one thread, the calling one
    "GOMP_parallel": _Parallel(lambda body, packed, threads, flags: body(packed)),
    "omp_get_thread_num": _Count(lambda: 0),
    "omp_get_num_threads": _Count(lambda: 1),
}


def _entries() -> dict[str, Any]:
    """The entry points of the OpenMP that torch is linked against; ALONE if there are none."""
    for library in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        try:
            torch_cpu = ctypes.CDLL(str(library))
            return {name: getattr(torch_cpu, name) for name in ALONE}  # in a library it links to
        except (OSError, AttributeError):
            continue
    return ALONE


_ENTRIES = _entries()
PARALLEL = _ENTRIES is not ALONE  # if not, loops run in the calling thread
for _name, _entry in _ENTRIES.items():
    llvmlite.binding.add_symbol(PREFIX + _name, ctypes.cast(_entry, ctypes.c_void_p).value)
