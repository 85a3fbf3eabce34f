"""Products of weights with the rows of a step, from tiles; see `chain` for the layout.

Everything lies in one flat array, `space`, and is named by the index at which it begins. Rows are n
samples long, n a multiple of VECTOR. The order of a sum here is that of no reference, as it differs
from one BLAS to the next.
"""

from .openmp import inner
from .rows import Array
from .tiles import OUTER_COLUMNS, OUTER_ROWS, ROWS, VECTOR, outer_tile, product_tile


@inner
def product(
    add: bool, weights: Array, bias: int, first: int, step: int, space: Array, x: int, terms: int,
    out: int, count: int, n: int,
) -> None:  # fmt: skip
    """out [count, n] = a matrix [terms, count] transposed @ x [terms, n] + bias, or + out if `add`.

    The bias begins at weights[bias], and is read even if `add`; the matrix begins at
    weights[first], and its rows are `step` apart.
    """
    whole, pairs = count - count % ROWS, count - count % 2
    for v in range(0, n, VECTOR):
        for k in range(0, whole, ROWS):
            product_tile(
                ROWS, add, weights, bias + k, weights, first + k, step, space, x + v, n, terms,
                space, out + k * n + v, n,
            )  # fmt: skip
        for k in range(whole, pairs, 2):
            product_tile(
                2, add, weights, bias + k, weights, first + k, step, space, x + v, n, terms,
                space, out + k * n + v, n,
            )  # fmt: skip
        for k in range(pairs, count):
            product_tile(
                1, add, weights, bias + k, weights, first + k, step, space, x + v, n, terms,
                space, out + k * n + v, n,
            )  # fmt: skip


@inner
def add_outer(
    space: Array, g: int, rows: int, source: Array, x: int, x_row: int, x_step: int, columns: int,
    steps: int, sums: Array, first: int, width: int, n: int,
) -> None:  # fmt: skip
    """sums [rows, columns] += the sum over steps of g[t] @ x[t] transposed.

    g[t], in space, is [rows, n]; x[t], in source, [columns, n], its rows x_row and its steps x_step
    apart. The element of a row and a column is sums[first + row * width + column].
    """
    step, parts = rows * n, n // VECTOR
    tall, wide = rows - rows % OUTER_ROWS, columns - columns % OUTER_COLUMNS
    for c in range(0, wide, OUTER_COLUMNS):
        for r in range(0, tall, OUTER_ROWS):
            outer_tile(
                OUTER_ROWS, OUTER_COLUMNS, space, g + r * n, n, step, source, x + c * x_row, x_row,
                x_step, steps, parts, sums, first + r * width + c, width,
            )  # fmt: skip
        for r in range(tall, rows):
            outer_tile(
                1, OUTER_COLUMNS, space, g + r * n, n, step, source, x + c * x_row, x_row,
                x_step, steps, parts, sums, first + r * width + c, width,
            )  # fmt: skip
    for c in range(wide, columns):
        for r in range(0, tall, OUTER_ROWS):
            outer_tile(
                OUTER_ROWS, 1, space, g + r * n, n, step, source, x + c * x_row, x_row,
                x_step, steps, parts, sums, first + r * width + c, width,
            )  # fmt: skip
        for r in range(tall, rows):
            outer_tile(
                1, 1, space, g + r * n, n, step, source, x + c * x_row, x_row,
                x_step, steps, parts, sums, first + r * width + c, width,
            )  # fmt: skip


@inner
def transpose(values: Array, first: int, rows: int, columns: int) -> None:
    """Transpose in place the matrix [rows, columns] that begins at values[first]."""
    matrix = values[first : first + rows * columns].copy()
    for r in range(rows):
        for c in range(columns):
            values[first + c * rows + r] = matrix[r * columns + c]
