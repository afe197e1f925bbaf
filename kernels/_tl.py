"""Code shared by the kernels: rows gathered by index, random words, and the device of a launch."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

# Streams of random numbers, as in sskd_fast/rng.py.
STREAM_TRIALS = tl.constexpr(0)
STREAM_RACE = tl.constexpr(1)
# The index of no candidate.
NOBODY = tl.constexpr(2**31 - 1)


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """The context in which kernels on `tensor` are launched."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def padded_rows(rows: Tensor) -> Tensor:
    """rows (N, W), contiguous and padded with zeros, so that every row is aligned to 16-byte loads.

    A row becomes a whole number of 32-byte sectors, the unit of memory transfers.
    """
    whole = 32 // rows.element_size()
    missing = -rows.shape[1] % whole
    return torch.nn.functional.pad(rows, (0, missing)) if missing else rows.contiguous()


@triton.jit
def squared_distances(
    x_ptr, index, mask, own_ptr, lines, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ACCUMULATE: tl.constexpr
):
    """|x[index] - own|^2 for rows of x (., WIDTH) at index [BLOCK], a line of 128 bytes (COLUMNS numbers) at a time.

    Eight lanes share a line of a row, 16 bytes each, and a warp holds four rows: a sum takes three shuffles. lines: the
    number of lines in a row, not a constexpr, since the compiler would unroll the loop at the cost of registers.
    """
    squares = tl.zeros([index.shape[0], COLUMNS], dtype=ACCUMULATE)
    rows = index.to(tl.int64)[:, None] * WIDTH
    for line in range(lines):
        columns = line * COLUMNS + tl.arange(0, COLUMNS)
        inside = columns < WIDTH
        own = tl.load(own_ptr + columns, mask=inside, other=0.0).to(ACCUMULATE)
        x = tl.load(x_ptr + rows + columns[None, :], mask=mask[:, None] & inside[None, :], other=0.0)
        difference = x.to(ACCUMULATE) - own[None, :]
        squares += difference * difference
    return tl.sum(squares, axis=1)


@triton.jit
def squared_distance(x_ptr, own_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ACCUMULATE: tl.constexpr):
    """|x - own|^2 of two rows of WIDTH numbers, BLOCK of them at a time."""
    squares = tl.zeros([BLOCK], dtype=ACCUMULATE)
    for begin in range(0, WIDTH, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        own = tl.load(own_ptr + columns, mask=columns < WIDTH, other=0.0).to(ACCUMULATE)
        difference = tl.load(x_ptr + columns, mask=columns < WIDTH, other=0.0).to(ACCUMULATE) - own
        squares += difference * difference
    return tl.sum(squares, axis=0)


@triton.jit
def unit_interval(words):
    """Random words as float64 numbers strictly between 0 and 1."""
    return (words.to(tl.float64) + 0.5) * (1.0 / 4294967296.0)


@triton.jit
def held_already(picks_ptr, held, drawn, BLOCK: tl.constexpr):
    """Mask of drawn [N]: true if among the first `held` picks of a row.

    The smallest exclusive or with a pick is 0 then: two instructions a pair, and a thread has a column of pairs.
    """
    nearest = drawn * 0 + NOBODY
    for begin in range(0, held, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        picks = tl.load(picks_ptr + place, mask=place < held, other=NOBODY)
        nearest = tl.minimum(nearest, tl.min(picks[:, None] ^ drawn[None, :], axis=0))
    return nearest == 0


@triton.jit
def wide(x):
    """x in the dtype of sums and products: float64 for float64, float32 otherwise."""
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def inverse_norm(squares):
    """1 / |x| from the sum of squares; norms are clamped to at least 1e-12, as in torch.nn.functional.normalize."""
    norm = tl.sqrt(squares) if squares.dtype == tl.float64 else tl.sqrt_rn(squares)
    return 1.0 / tl.maximum(norm, 1e-12)


@triton.jit
def row_columns(CHUNKS: tl.constexpr, COLUMNS: tl.constexpr):
    """Columns of a whole row in the layout of gathered rows: [CHUNKS, 1, COLUMNS], COLUMNS in 128 bytes."""
    return tl.arange(0, CHUNKS)[:, None, None] * COLUMNS + tl.arange(0, COLUMNS)[None, None, :]


@triton.jit
def gathered_rows(x_ptr, index, mask, columns, WIDTH: tl.constexpr):
    """Rows of x (., WIDTH) at index [BLOCK], zero if masked off: [CHUNKS, BLOCK, COLUMNS], widened."""
    offsets = index.to(tl.int64)[None, :, None] * WIDTH + columns
    return wide(tl.load(x_ptr + offsets, mask=mask[None, :, None] & (columns < WIDTH), other=0.0))


@triton.jit
def row_sums(x):
    """[CHUNKS, BLOCK, COLUMNS] -> [BLOCK]: first within a thread, then over the eight lanes of a row."""
    return tl.sum(tl.sum(x, axis=0), axis=1)


@triton.jit
def unit_row_gradient(grad, row, inverse, NORMALIZE: tl.constexpr):
    """Gradient of rows from that of their unit vectors; grad, row: [CHUNKS, BLOCK, COLUMNS], inverse: [BLOCK]."""
    if NORMALIZE:
        inner = tl.where(inverse * 1e-12 < 1, row_sums(grad * row) * inverse * inverse, 0.0)
        return inverse[None, :, None] * (grad - inner[None, :, None] * row)
    return grad
