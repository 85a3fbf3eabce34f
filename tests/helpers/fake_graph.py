"""A graph of operations on the CPU that behaves like a CUDA graph, for tests without a GPU.

During a capture nothing is computed: in-place operations write nothing, and all others return NaN.
A replay repeats the recorded operations on the same tensors in the same order, without running any
Python code of the step. An operation that makes the host wait for the device cannot be captured.
Streams and the allocator's private pools have no counterpart here.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from rsnn_fmnist.training import cuda_graph

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense.default, aten.item.default, aten.nonzero.default}
WRITING = {aten.native_batch_norm.default}  # though its schema does not say so


class Watch(TorchDispatchMode):
    """Remembers an operation that makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.obstacle: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING:
            self.obstacle = f"it waits for the device in {func}"
        return func(*args, **(kwargs or {}))


class Record(TorchDispatchMode):
    """Records operations without doing them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in WAITING:
            raise RuntimeError("operation not permitted when stream is capturing\nand more lines")
        writes = func._schema.is_mutable or func in WRITING
        if writes and all(r.alias_info for r in func._schema.returns):
            self.operations.append((func, args, kwargs, None))
            return written(func._schema, args, kwargs)
        copies = tree_map(copied, (args, kwargs)) if writes else (args, kwargs)
        outputs = func(*copies[0], **copies[1])
        if storages(outputs) & storages((args, kwargs)):
            return outputs  # a view, which takes no work
        for output in tensors(outputs):
            if output.is_floating_point():
                output.fill_(math.nan)
        self.operations.append((func, args, kwargs, outputs))
        return outputs

    def replay(self) -> None:
        with torch.inference_mode():
            for func, args, kwargs, outputs in self.operations:
                again = func(*args, **kwargs)
                if outputs is None:
                    continue
                for kept, fresh in zip(tensors(outputs), tensors(again), strict=True):
                    kept.copy_(fresh)  # numbers are frozen


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def storages(values: Any) -> set[int]:
    """The addresses of the tensors' storages."""
    return {x.untyped_storage().data_ptr() for x in tensors(values) if x.numel()}


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def written(schema: Any, args: Any, kwargs: Any) -> Any:
    """What an in-place operation returns: the arguments that it writes to."""
    given = {a.name: value for a, value in zip(schema.arguments, args, strict=False)} | kwargs
    sets = {
        frozenset(a.alias_info.before_set): given.get(a.name)
        for a in schema.arguments
        if a.alias_info and a.alias_info.is_write
    }
    returned = tuple(sets[frozenset(r.alias_info.before_set)] for r in schema.returns)
    return returned[0] if len(returned) == 1 else returned or None


class FakeGraph:
    """A cuda_graph.Graph; `done` lists the calls of its methods."""

    def __init__(self, device: torch.device) -> None:
        self.done: list[str] = []
        self.record = Record()

    def warm_up(self, work: cuda_graph.Work) -> str | None:
        self.done.append("warm up")
        with Watch() as watch:
            work()
        return watch.obstacle

    def capture(self, work: cuda_graph.Work) -> None:
        self.done.append("capture")
        with torch.random.fork_rng([]), self.record:
            work()

    def replay(self) -> None:
        self.done.append("replay")
        self.record.replay()
