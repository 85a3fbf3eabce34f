"""Tiles of a matrix product whose sums stay in vector registers, and views without bookkeeping.

LLVM's vectorizer loads and stores the sums of a product every few terms. Here a tile's loop is
written in vectors of LLVM's intermediate representation, one for each sum, which LLVM keeps in
registers; it splits the vectors into what the processor has, so no instruction set is named but
the one that decides how large a tile may be. A product and its sum may be one instruction.

Arrays are flat. `first` is the index at which something begins in an array, `step` the distance
between two of its rows. numba's own indexing would check every index for wraparound, which keeps
LLVM from vectorizing, and count the references to every row.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_WIDE = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))  # 32 registers of 16 floats
VECTOR = 16 if _WIDE else 8  # numbers side by side
ROWS = 8  # sums of a product's tile; with one vector for the terms they fit into 16 registers
OUTER_ROWS, OUTER_COLUMNS = (4, 4) if _WIDE else (4, 2)  # sums of an outer product's tile


class _Vectors:
    """Generates code for vectors of VECTOR numbers of an array's type."""

    def __init__(self, context: Any, builder: Any, array: Any) -> None:
        self.context, self.builder = context, builder
        number = context.get_value_type(array.dtype)
        self.type = ir.VectorType(number, VECTOR)
        self.align = context.get_abi_sizeof(number)  # rows begin anywhere

    def at(self, array: Any, value: Any, first: Any, offset: int = 0, step: Any = None) -> Any:
        """A pointer to array[first + offset * step]; step None: 1."""
        index = first.type(offset)
        if step is not None:
            index = self.builder.mul(step, index)
        data = self.context.make_array(array)(self.context, self.builder, value).data
        return self.builder.gep(data, [self.builder.add(first, index)])

    def load(self, pointer: Any) -> Any:
        vector = self.builder.load(self.builder.bitcast(pointer, self.type.as_pointer()))
        vector.align = self.align
        return vector

    def store(self, vector: Any, pointer: Any) -> None:
        target = self.builder.bitcast(pointer, self.type.as_pointer())
        self.builder.store(vector, target).align = self.align

    def spread(self, pointer: Any) -> Any:
        """A vector of the one number there."""
        lane, number = ir.IntType(32), self.builder.load(pointer)
        one = self.builder.insert_element(ir.Constant(self.type, ir.Undefined), number, lane(0))
        everywhere = ir.Constant(ir.VectorType(lane, VECTOR), None)  # zeros
        return self.builder.shuffle_vector(one, one, everywhere)

    def total(self, start: Any) -> Any:
        """A variable for a sum."""
        place = cgutils.alloca_once(self.builder, self.type)
        self.builder.store(start, place)
        return place

    def reduced(self, total: Any) -> Any:
        """The sum over a variable's vector, in any order."""
        number = self.type.element
        kind = "f32" if number == ir.FloatType() else "f64"
        signature = ir.FunctionType(number, [number, self.type])
        name = f"llvm.vector.reduce.fadd.v{VECTOR}{kind}"
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        zero = ir.Constant(number, 0.0)
        return self.builder.call(function, [zero, self.builder.load(total)], fastmath=("reassoc",))

    def add(self, total: Any, a: Any, b: Any) -> None:
        """Add the product of two vectors to a sum."""
        product = self.builder.fmul(a, b, flags=("contract",))
        now = self.builder.fadd(self.builder.load(total), product, flags=("contract",))
        self.builder.store(now, total)


_Signature = tuple[Any, Callable[..., Any]]  # of an intrinsic: its types, and what generates it
INDEX = types.intp


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def product_tile(
    typing: Any, rows: Any, add: Any, bias: Any, bias_first: Any, weight: Any, w_first: Any,
    w_step: Any, x: Any, x_first: Any, x_step: Any, terms: Any, out: Any, out_first: Any,
    out_step: Any,
) -> _Signature:  # fmt: skip
    """out[r] = start + the sum over j of weight[j, r] x[j], for r below `rows`.

    out[r] and x[j] are vectors, weight[j, r] and bias[r] numbers; start is out[r] where `add`, else
    bias[r].
    """

    def generate(context: Any, builder: Any, _: Any, values: Any) -> Any:
        (_, add_, bias_, bias_first_, weight_, w_first_, w_step_, x_, x_first_, x_step_, terms_,
         out_, out_first_, out_step_) = values  # fmt: skip
        vectors, count = _Vectors(context, builder, out), range(rows.literal_value)
        targets = [vectors.at(out, out_, out_first_, r, out_step_) for r in count]
        totals = []
        for r in count:
            fresh = vectors.spread(vectors.at(bias, bias_, bias_first_, r))
            totals.append(vectors.total(builder.select(add_, vectors.load(targets[r]), fresh)))
        with cgutils.for_range(builder, terms_) as loop:
            x_j = builder.add(x_first_, builder.mul(loop.index, x_step_))
            term = vectors.load(vectors.at(x, x_, x_j))
            w_j = builder.add(w_first_, builder.mul(loop.index, w_step_))
            for r in count:
                vectors.add(totals[r], vectors.spread(vectors.at(weight, weight_, w_j, r)), term)
        for r in count:
            vectors.store(builder.load(totals[r]), targets[r])
        return context.get_dummy_value()

    signature = types.void(
        rows, types.boolean, bias, INDEX, weight, INDEX, INDEX, x, INDEX, INDEX, INDEX, out, INDEX,
        INDEX,
    )  # fmt: skip
    return signature, generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def outer_tile(
    typing: Any, rows: Any, columns: Any, g: Any, g_first: Any, g_row: Any, g_step: Any, x: Any,
    x_first: Any, x_row: Any, x_step: Any, steps: Any, parts: Any, out: Any, out_first: Any,
    out_row: Any,
) -> _Signature:  # fmt: skip
    """out[r, c] += the sum over steps t, parts p and lanes of g[t, r, p] x[t, c, p].

    r and c are below `rows` and `columns`; out's rows are out_row apart. *_row is from one row of g
    or x to the next, *_step from one time step to the next; the parts, vectors, are side by side.
    """

    def generate(context: Any, builder: Any, _: Any, values: Any) -> Any:
        (_, _, g_, g_first_, g_row_, g_step_, x_, x_first_, x_row_, x_step_, steps_, parts_, out_,
         out_first_, out_row_) = values  # fmt: skip
        vectors = _Vectors(context, builder, out)
        across, down = range(columns.literal_value), range(rows.literal_value)
        zero = ir.Constant(vectors.type, [0.0] * VECTOR)
        totals = {(r, c): vectors.total(zero) for r in down for c in across}
        size = g_first_.type(VECTOR)
        with cgutils.for_range(builder, steps_) as loop, cgutils.for_range(builder, parts_) as part:
            p = builder.mul(part.index, size)
            g_t = builder.add(builder.add(g_first_, p), builder.mul(loop.index, g_step_))
            x_t = builder.add(builder.add(x_first_, p), builder.mul(loop.index, x_step_))
            gs = [vectors.load(vectors.at(g, g_, g_t, r, g_row_)) for r in down]
            xs = [vectors.load(vectors.at(x, x_, x_t, c, x_row_)) for c in across]
            for (r, c), total in totals.items():
                vectors.add(total, gs[r], xs[c])
        for (r, c), total in totals.items():
            row = builder.add(out_first_, builder.mul(out_row_, size.type(r)))
            place = vectors.at(out, out_, row, c)
            builder.store(builder.fadd(builder.load(place), vectors.reduced(total)), place)
        return context.get_dummy_value()

    signature = types.void(
        rows, columns, g, INDEX, INDEX, INDEX, x, INDEX, INDEX, INDEX, INDEX, INDEX, out, INDEX,
        INDEX,
    )  # fmt: skip
    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def lanes(typing: Any, space: Any, first: Any, count: Any) -> _Signature:
    """space[first : first + count], without a count of references: space must outlive it."""
    view_type = types.Array(space.dtype, 1, "C")

    def generate(context: Any, builder: Any, _: Any, values: Any) -> Any:
        given = context.make_array(space)(context, builder, values[0])
        view = context.make_array(view_type)(context, builder)
        number = context.get_value_type(space.dtype)
        itemsize = context.get_constant(INDEX, context.get_abi_sizeof(number))
        context.populate_array(
            view,
            data=builder.gep(given.data, [values[1]]),
            shape=cgutils.pack_array(builder, [values[2]]),
            strides=cgutils.pack_array(builder, [itemsize]),
            itemsize=itemsize,
            meminfo=None,
        )
        return view._getvalue()

    return view_type(space, INDEX, INDEX), generate
