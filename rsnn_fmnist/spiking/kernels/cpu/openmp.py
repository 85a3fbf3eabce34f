"""Run a compiled loop on torch's own OpenMP threads.

numba could start threads itself, but its pool would be a second one beside torch's: the workers of
both spin for a while after their work, on the same cores, and each slows the other down (its
"workqueue" layer even aborts the process when two Python threads use it at once). So `fork`
enters a parallel region of the very OpenMP library that torch is linked against. Kernels then
share torch's threads and its rules: as many as torch.set_num_threads says, safe to call from
several Python threads, and usable in a forked child only with one thread.

Where torch has no OpenMP with GNU's entry points (Windows), loops run in the calling thread, and
PARALLEL is False. What `fork` generates amounts to this:

    static void body(void *packed) {
        loop(omp_get_thread_num(), omp_get_num_threads(), *(arguments *)packed);
    }
    void fork(long threads, arguments given) {
        arguments packed = given;
        GOMP_parallel(body, &packed, threads, 0);
    }

Beyond numba's documented interface it uses dispatcher._cache with its _cache_file._source_stamp,
loop.dispatcher.get_compile_result, loop.get_call_type, context.active_code_library and
context.declare_function; tested with numba 0.68.1 and llvmlite 0.50.0.
"""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding
import torch
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])

DIGEST = sha256(Path(__file__).read_bytes()).hexdigest()  # code kept on disk contains `fork`
PREFIX = "rsnn_fmnist_"  # of the symbols by which compiled code, kept on disk, finds OpenMP


def compiled(loop: F) -> F:
    """Compile `loop` when first called; kept on disk, so that only the first run ever waits."""
    options = {"error_model": "numpy", "nogil": True}
    try:
        dispatcher = njit(loop, cache=True, **options)
    except RuntimeError:  # numba found no directory that it may write to
        return njit(loop, **options)
    kept = dispatcher._cache
    save, load = kept.save_overload, kept.load_overload
    kept._cache_file._source_stamp = (kept._cache_file._source_stamp, DIGEST)

    def save_if_possible(*arguments: Any) -> None:
        with suppress(Exception):  # a full disk is no reason not to compute
            save(*arguments)

    def load_if_possible(*arguments: Any) -> Any:
        try:
            return load(*arguments)
        except Exception:  # whatever a damaged file raises
            with suppress(OSError):
                kept.flush()
            return None

    kept.save_overload, kept.load_overload = save_if_possible, load_if_possible
    return dispatcher


def reassociated(loop: F) -> F:
    """Compile `loop` for loops that call it; its sums may be taken in any order, or fused."""
    return njit(loop, error_model="numpy", fastmath={"contract", "reassoc"})


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
    """The entry points of the OpenMP that torch is linked against; ALONE's where it has none."""
    for library in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        try:
            torch_cpu = ctypes.CDLL(str(library))
            return {name: getattr(torch_cpu, name) for name in ALONE}  # found in what it links
        except (OSError, AttributeError):
            continue
    return ALONE


_ENTRIES = _entries()
PARALLEL = _ENTRIES is not ALONE  # else loops run in the calling thread
for _name, _entry in _ENTRIES.items():
    llvmlite.binding.add_symbol(PREFIX + _name, ctypes.cast(_entry, ctypes.c_void_p).value)
