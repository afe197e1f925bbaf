"""Score vectors in bytes, for a first look at a trial: bounds on s(a, q) = |a - q|^2 / 2 from a quarter of the memory.

With c any fixed vector, a' = a - c and q' = q - c:  s = (|a'|^2 + |q'|^2) / 2 - <a', q'>. A row is stored as
q' = scale * integers + error. An anchor's error is stored once more in bytes, in units of scale / 254, so that what is
left of it hardly counts. By Cauchy-Schwarz, <a', q'> then differs from the integer products by at most
|error_a| |q'| + (|a'| + |error_a|) |error_q|. A trial that this bound does not settle reads the row itself, so no
decision depends on the compression.

The integers of a row come first, then anything, then its scale, norm |q'| and |error| as float32 at the end: a whole
number of 32-byte sectors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sskd_fast.kernels import _tuning
from sskd_fast.kernels._tl import device_of

# Units of a layer in one of the layer before it.
FINER = tl.constexpr(254)
HEADER = tl.constexpr(3)
# Relative slack for the rounding of float32 sums of up to 4096 terms, in the bounds and in the exact score.
SLACK = tl.constexpr(2e-5)
# Squared norms below this may underflow in float32: such rows are never settled by the bounds.
LEAST_SQUARE = tl.constexpr(1e-30)
# Integer products of wider rows would overflow 32 bits: their error counts as infinite.
WIDEST = tl.constexpr(65536)


class CompressedRows(NamedTuple):
    """Rows (N, E) in bytes. layers (N, stride) int8: the integers and the header; headers: the same as float32."""

    layers: Tensor
    headers: Tensor

    @classmethod
    def empty(cls, rows: Tensor) -> CompressedRows:
        stride = _tuning.compressed_stride(rows.shape[1])
        layers = torch.empty(len(rows), stride, dtype=torch.int8, device=rows.device)
        return cls(layers, layers.view(torch.float32))


@triton.jit
def slack_of(WIDTH: tl.constexpr):
    """Relative slack for the rounding of sums over a row."""
    return float("inf") if WIDTH > WIDEST else SLACK * (1 + WIDTH // 4096)


@triton.jit
def _centred(rows_ptr, centre_ptr, row, present, columns, WIDTH: tl.constexpr):
    inside = columns < WIDTH
    offsets = row[:, None] * WIDTH + columns[None, :]
    x = tl.load(rows_ptr + offsets, mask=present[:, None] & inside[None, :], other=0.0).to(tl.float64)
    return (x - tl.load(centre_ptr + columns, mask=inside, other=0.0)[None, :]).to(tl.float32)


@triton.jit
def _rounded(x):
    return tl.floor(tl.minimum(tl.maximum(x, -127.0), 127.0) + 0.5)


@triton.jit
def negative_sampling_bytes_kernel(
    rows_ptr, centre_ptr, layers_ptr, headers_ptr, fine_ptr, fine_headers_ptr, count, lines,
    FINE: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows less the centre in bytes; fine: their errors in bytes, with a header that holds the error of both."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    present = row < count
    largest = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for line in range(lines):
        x = _centred(rows_ptr, centre_ptr, row, present, line * COLUMNS + tl.arange(0, COLUMNS), WIDTH)
        largest = tl.maximum(largest, tl.abs(x))
    most = tl.max(largest, axis=1)
    scale = most / 127
    inverse = tl.where(scale > 1e-30, 1 / scale, 0.0)
    squares = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    errors = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    fine_errors = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for line in range(lines):
        columns = line * COLUMNS + tl.arange(0, COLUMNS)
        mask = present[:, None] & (columns < WIDTH)[None, :]
        offsets = row[:, None] * STRIDE + columns[None, :]
        x = _centred(rows_ptr, centre_ptr, row, present, columns, WIDTH)
        integers = _rounded(x * inverse[:, None])
        tl.store(layers_ptr + offsets, integers.to(tl.int8), mask=mask)
        squares += x * x
        x -= scale[:, None] * integers
        errors += x * x
        if FINE:
            integers = _rounded(x * (inverse * FINER)[:, None])
            tl.store(fine_ptr + offsets, integers.to(tl.int8), mask=mask)
            x -= (scale / FINER)[:, None] * integers
            fine_errors += x * x
    slack = slack_of(WIDTH)
    at = row * (STRIDE // 4) + STRIDE // 4 - HEADER
    norm = tl.sqrt(tl.sum(squares, axis=1))
    tl.store(headers_ptr + at, scale, mask=present)
    tl.store(headers_ptr + at + 1, norm, mask=present)
    tl.store(headers_ptr + at + 2, tl.sqrt(tl.sum(errors, axis=1)) * (1 + slack) + slack * most, mask=present)
    if FINE:
        error = tl.sqrt(tl.sum(fine_errors, axis=1)) * (1 + slack) + slack * most
        tl.store(fine_headers_ptr + at, scale, mask=present)
        tl.store(fine_headers_ptr + at + 1, norm, mask=present)
        tl.store(fine_headers_ptr + at + 2, error, mask=present)


def compress(rows: Tensor, centre: Tensor, fine: bool) -> tuple[CompressedRows, CompressedRows]:
    """Rows (N, E) of `padded_rows` less the first row of centre (., E) float64; and their errors if fine."""
    (count, width), coarse = rows.shape, CompressedRows.empty(rows)
    finer = CompressedRows.empty(rows) if fine else coarse
    tuning: dict[str, Any] = _tuning.compression(rows.dtype)
    with device_of(rows):
        negative_sampling_bytes_kernel[(triton.cdiv(count, tuning["ROWS"]),)](
            rows, centre, *coarse, *finer, count, triton.cdiv(width, tuning["COLUMNS"]), FINE=fine, WIDTH=width,
            STRIDE=coarse.layers.shape[1], **tuning,
        )  # fmt: skip
    return coarse, finer


@triton.jit
def own_layers(
    coarse_ptr, fine_ptr, anchor, columns, WIDTH: tl.constexpr, STRIDE: tl.constexpr, PRODUCTS: tl.constexpr
):
    """The integers of an anchor [columns, PRODUCTS]: first layer, second layer, zeros."""
    layer = tl.arange(0, PRODUCTS)[None, :]
    offsets = anchor * STRIDE + columns[:, None]
    inside = (columns < WIDTH)[:, None]
    coarse = tl.load(coarse_ptr + offsets, mask=inside, other=0)
    fine = tl.load(fine_ptr + offsets, mask=inside, other=0)
    return tl.where(layer == 0, coarse, tl.where(layer == 1, fine, 0)).to(tl.int8)


@triton.jit
def bounds(
    layers_ptr, headers_ptr, drawn, coarse_ptr, fine_ptr, own, own_headers_ptr, anchor,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, BLOCK_K: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Lower and upper bounds, float64, on s between an anchor and the candidates `drawn` [N], NaN if undefined.

    own: the first BLOCK_K of `own_layers`.
    """
    rows = drawn.to(tl.int64)
    products = tl.zeros([drawn.shape[0], PRODUCTS], dtype=tl.int32)
    for begin in tl.static_range(0, STRIDE, BLOCK_K):
        columns = begin + tl.arange(0, BLOCK_K)
        if begin > 0:
            own = own_layers(coarse_ptr, fine_ptr, anchor, columns, WIDTH, STRIDE, PRODUCTS)
        offsets = rows[:, None] * STRIDE + columns[None, :]
        if begin + BLOCK_K <= STRIDE:
            integers = tl.load(layers_ptr + offsets)
        else:
            integers = tl.load(layers_ptr + offsets, mask=(columns < STRIDE)[None, :], other=0)
        products = tl.dot(integers, own, acc=products, out_dtype=tl.int32)
    at = own_headers_ptr + anchor * (STRIDE // 4) + STRIDE // 4 - HEADER
    own_scale, own_norm, own_error = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    at = headers_ptr + rows * (STRIDE // 4) + STRIDE // 4 - HEADER
    scale, norm, error = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    layer = tl.arange(0, PRODUCTS)
    unit = tl.where(layer == 0, own_scale, own_scale / FINER)
    product = scale * tl.sum(products.to(tl.float32) * unit[None, :], axis=1)
    own_square, square = own_norm * own_norm, norm * norm
    squares = own_square + square
    s = 0.5 * squares - product
    margin = own_error * norm + (own_norm + own_error) * error + slack_of(WIDTH) * squares
    margin = tl.where(tl.minimum(own_square, square) < LEAST_SQUARE, float("inf"), margin)
    return tl.maximum(s - margin, 0.0).to(tl.float64), (s + margin).to(tl.float64)
