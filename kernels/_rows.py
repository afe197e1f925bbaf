"""Backward pass of both contrast operators for the rows that belong to one anchor: the anchor and its positive."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sskd_fast.kernels import _tuning
from sskd_fast.kernels._tl import (
    device_of,
    gathered_rows,
    inverse_norm,
    padded_rows,
    row_columns,
    row_sums,
    unit_row_gradient,
)


@triton.jit
def pixel_contrast_rows_backward_kernel(
    grad_ptr, anchors_ptr, positives_ptr, pull_ptr, pulled_ptr, temperature_ptr, factor_ptr, grad_anchors_ptr,
    grad_positives_ptr, anchors,
    NORMALIZE: tl.constexpr, WITH_POSITIVES: tl.constexpr, WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_A: tl.constexpr,
):  # fmt: skip
    """grad_anchors, grad_positives (A, OUT_WIDTH), and factor (A,) = grad / (temperature |a|)."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_A + tl.arange(0, BLOCK_A)
    inside = rows < anchors
    columns = row_columns(CHUNKS, COLUMNS)
    a = gathered_rows(anchors_ptr, rows, inside, columns, WIDTH)
    p = gathered_rows(positives_ptr, rows, inside, columns, WIDTH)
    pulled = gathered_rows(pulled_ptr, rows, inside, columns, OUT_WIDTH)
    inverse_a, inverse_p = tl.full([BLOCK_A], 1.0, a.dtype), tl.full([BLOCK_A], 1.0, a.dtype)
    if NORMALIZE:
        inverse_a, inverse_p = inverse_norm(row_sums(a * a)), inverse_norm(row_sums(p * p))
    factor = tl.load(grad_ptr + rows, mask=inside, other=0.0) * (1.0 / tl.load(temperature_ptr)).to(a.dtype)
    attraction = factor * tl.load(pull_ptr + rows, mask=inside, other=0.0)
    tl.store(factor_ptr + rows, factor * inverse_a, mask=inside)
    out = rows[None, :, None] * OUT_WIDTH + columns
    kept = inside[None, :, None] & (columns < OUT_WIDTH)
    g = factor[None, :, None] * pulled - (attraction * inverse_p)[None, :, None] * p
    g = unit_row_gradient(g, a, inverse_a, NORMALIZE)
    tl.store(grad_anchors_ptr + out, g.to(grad_anchors_ptr.dtype.element_ty), mask=kept)
    if WITH_POSITIVES:
        g = -(attraction * inverse_a)[None, :, None] * a
        g = unit_row_gradient(g, p, inverse_p, NORMALIZE)
        tl.store(grad_positives_ptr + out, g.to(grad_positives_ptr.dtype.element_ty), mask=kept)


@triton.jit
def pixel_contrast_norms_kernel(
    x_ptr, inverse_ptr, rows, WIDTH: tl.constexpr, CHUNKS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_A: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64) * BLOCK_A + tl.arange(0, BLOCK_A)
    x = gathered_rows(x_ptr, i, i < rows, row_columns(CHUNKS, COLUMNS), WIDTH)
    tl.store(inverse_ptr + i, inverse_norm(row_sums(x * x)), mask=i < rows)


def inverse_norms(rows: Tensor) -> Tensor:
    """1 / norm of each row, (N,); rows (N, W): as `padded_rows` gives them."""
    count, width = rows.shape
    inverse = torch.empty(count, dtype=torch.promote_types(rows.dtype, torch.float32), device=rows.device)
    if count == 0 or width == 0:
        return inverse
    config = _tuning.rows_backward(width, rows.dtype)
    with device_of(rows):
        pixel_contrast_norms_kernel[(triton.cdiv(count, config["BLOCK_A"]),)](
            rows, inverse, count, WIDTH=width, **config
        )
    return inverse


def rows_backward(
    grad: Tensor,
    anchors: Tensor,
    positives: Tensor,
    pull: Tensor,
    pulled: Tensor,
    temperature: Tensor,
    normalize: bool,
    with_positives: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the anchors and of the positives (no rows if not wanted), and grad / (temperature |a|), (A,).

    pull (A,) and pulled (A, D), for unit candidates, as in `ContrastState` of the reference.
    """
    count, width = anchors.shape
    grads = torch.empty_like(anchors, memory_format=torch.contiguous_format)
    grads_positives = grads.new_empty(count if with_positives else 0, width)
    factor = torch.empty_like(pull)
    if count == 0 or width == 0:
        return grads, grads_positives, factor
    a, p = padded_rows(anchors), padded_rows(positives)
    config = _tuning.rows_backward(a.shape[1], a.dtype)
    with device_of(a):
        pixel_contrast_rows_backward_kernel[(triton.cdiv(count, config["BLOCK_A"]),)](
            grad.contiguous(), a, p, pull, pulled.contiguous(), temperature, factor, grads, grads_positives, count,
            NORMALIZE=normalize, WITH_POSITIVES=with_positives, WIDTH=a.shape[1], OUT_WIDTH=width, **config,
        )  # fmt: skip
    return grads, grads_positives, factor
