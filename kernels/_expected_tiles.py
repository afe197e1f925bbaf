"""Tiles of the expected form: panels of rows in parts, their products, and the scope of pairs."""

from __future__ import annotations

import triton
import triton.language as tl

from sskd_fast.kernels._parts import powers_of_two


@triton.jit
def panel_of(
    x, first, begin, rows,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_W: tl.constexpr, TENSOR_COPIES: tl.constexpr,
):  # fmt: skip
    """[BLOCK, BLOCK_W]: the columns from `begin` on of the rows from `first` on of x (rows, WIDTH), zero outside.

    x: a pointer, or a tensor descriptor if TENSOR_COPIES.
    """
    if TENSOR_COPIES:
        panel = x.load([first, begin])
    else:
        columns = begin + tl.arange(0, BLOCK_W)
        mask = (first + tl.arange(0, BLOCK) < rows)[:, None] & (columns < WIDTH)[None, :]
        # 64-bit offsets per block, 32-bit ones per number: half of the registers that 64-bit pointers would take.
        x += first * tl.full([], WIDTH, tl.int64)
        panel = tl.load(x + tl.arange(0, BLOCK)[:, None] * WIDTH + columns[None, :], mask=mask, other=0.0)
    return panel


@triton.jit
def products_of(
    x, x_first, x_rows, y, y_first, y_rows, panels, ACCUMULATE: tl.constexpr,
    PARTS: tl.constexpr, PART_WIDTH: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_W: tl.constexpr,
    TENSOR_COPIES: tl.constexpr,
):  # fmt: skip
    """Dot products of the parts of rows of x from x_first on and of y from y_first on, [BLOCK_I, BLOCK_J].

    panels: number of panels of BLOCK_W numbers; not a constexpr, since the compiler would unroll the loop at the cost
    of registers. The product of the second parts is below the rounding of the others.
    """
    WIDTH: tl.constexpr = PARTS * PART_WIDTH
    products = tl.zeros([BLOCK_I, BLOCK_J], ACCUMULATE)
    for panel in range(panels):
        begin = panel * BLOCK_W
        first_x = panel_of(x, x_first, begin, x_rows, WIDTH, BLOCK_I, BLOCK_W, TENSOR_COPIES)
        first_y = panel_of(y, y_first, begin, y_rows, WIDTH, BLOCK_J, BLOCK_W, TENSOR_COPIES)
        if PARTS == 2:
            begin += PART_WIDTH
            second_x = panel_of(x, x_first, begin, x_rows, WIDTH, BLOCK_I, BLOCK_W, TENSOR_COPIES)
            products = tl.dot(second_x, tl.trans(first_y), products, out_dtype=ACCUMULATE)
            second_y = panel_of(y, y_first, begin, y_rows, WIDTH, BLOCK_J, BLOCK_W, TENSOR_COPIES)
            products = tl.dot(first_x, tl.trans(second_y), products, out_dtype=ACCUMULATE)
        products = tl.dot(first_x, tl.trans(first_y), products, input_precision="ieee", out_dtype=ACCUMULATE)
    return products


@triton.jit
def of_tile(x_ptr, begin, BLOCK: tl.constexpr):
    """[BLOCK]: a vector from `begin` on. `begin` is added first: the rest of an address is known to the compiler."""
    return tl.load(x_ptr + begin + tl.arange(0, BLOCK))


@triton.jit
def scoped(weights, own, other, GROUPED: tl.constexpr, SAME: tl.constexpr):
    """Weights of pairs, at least 0, and 0 out of scope."""
    weights = tl.maximum(weights, 0.0)
    if GROUPED:
        weights = tl.where((own[:, None] == other[None, :]) == SAME, weights, 0.0)
    return weights


@triton.jit
def range_of(range_ptr, tile):
    """The lowest and the highest group of a tile."""
    return tl.load(range_ptr + 2 * tile), tl.load(range_ptr + 2 * tile + 1)


@triton.jit
def any_in_scope(range_ptr, low, high, tile, GROUPED: tl.constexpr, SAME: tl.constexpr):
    """False if no row of a group from low to high has a column in scope in this tile."""
    found = True
    if GROUPED:
        lowest, highest = range_of(range_ptr, tile)
        found = (lowest <= high) & (low <= highest) if SAME else (lowest != high) | (low != highest)
    return found


@triton.jit
def score_factor(x_largest_ptr, y_largest_ptr):
    """The factor that turns products of the parts of scores into products of scores."""
    x, y = tl.load(x_largest_ptr), tl.load(y_largest_ptr)
    if x.dtype == tl.float64:
        factor = tl.full([], 1.0, tl.float64)
    else:
        _x_up, x_down = powers_of_two(x)
        _y_up, y_down = powers_of_two(y)
        factor = x_down * y_down
    return factor


@triton.jit
def added(
    grad, flow, y, first, begin, rows,
    PARTS: tl.constexpr, PART_WIDTH: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_G: tl.constexpr,
    TENSOR_COPIES: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """grad [BLOCK_I, BLOCK_G] + flow [BLOCK_I, BLOCK_J] times the columns from `begin` on of the parts of y."""
    WIDTH: tl.constexpr = PARTS * PART_WIDTH
    first_y = panel_of(y, first, begin, rows, WIDTH, BLOCK_J, BLOCK_G, TENSOR_COPIES)
    first_flow = flow.to(first_y.dtype)
    if PARTS == 2:
        second_flow = (flow - first_flow.to(ACCUMULATE)).to(first_y.dtype)
        grad = tl.dot(second_flow, first_y, grad, out_dtype=ACCUMULATE)
        second_y = panel_of(y, first, begin + PART_WIDTH, rows, WIDTH, BLOCK_J, BLOCK_G, TENSOR_COPIES)
        grad = tl.dot(first_flow, second_y, grad, out_dtype=ACCUMULATE)
    return tl.dot(first_flow, first_y, grad, input_precision="ieee", out_dtype=ACCUMULATE)
