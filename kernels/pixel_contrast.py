"""Pixel contrast: one program for each anchor reads its negatives once, for the loss and the anchor's gradient.

Norms of the candidates are stored, since many anchors read each of them. Every row slot of a program keeps its own
online log-sum-exp and weighted sum of rows. They are merged once at the end, so the loop has no barrier. The gradient
of the candidates goes through an inverted index, one program for each candidate: uses are sorted once and summed in
that order, so the bits are the same every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sskd_fast.kernels import _tuning
from sskd_fast.kernels._rows import inverse_norms, rows_backward
from sskd_fast.kernels._tl import (
    device_of,
    gathered_rows,
    inverse_norm,
    padded_rows,
    row_columns,
    row_sums,
    unit_row_gradient,
    wide,
)


@triton.jit
def pixel_contrast_forward_kernel(
    anchors_ptr, positives_ptr, candidates_ptr, inverse_ptr, negatives_ptr, temperature_ptr, loss_ptr, share_ptr,
    pull_ptr, pulled_ptr, draws,
    MARGIN: tl.constexpr, NORMALIZE: tl.constexpr, WITH_GRAD: tl.constexpr, WIDTH: tl.constexpr,
    OUT_WIDTH: tl.constexpr, CHUNKS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    anchor = tl.program_id(0).to(tl.int64)
    columns = row_columns(CHUNKS, COLUMNS)
    slot = tl.arange(0, BLOCK_R)
    a = wide(tl.load(anchors_ptr + anchor * WIDTH + columns, mask=columns < WIDTH, other=0.0))
    p = wide(tl.load(positives_ptr + anchor * WIDTH + columns, mask=columns < WIDTH, other=0.0))
    scale = (1.0 / tl.load(temperature_ptr)).to(a.dtype)
    positive = tl.sum(row_sums(a * p), axis=0) * scale
    inverse = scale * 0 + 1
    if NORMALIZE:
        inverse = tl.sum(inverse_norm(row_sums(a * a)), axis=0)
        positive *= inverse * tl.sum(inverse_norm(row_sums(p * p)), axis=0)
    # The logit of the positive is a finite lower bound for every slot.
    top = tl.zeros([BLOCK_R], a.dtype) + positive
    mass = tl.zeros([BLOCK_R], a.dtype)
    pulled = tl.zeros([CHUNKS, BLOCK_R, COLUMNS], a.dtype)
    negatives_ptr += anchor * draws
    share_ptr += anchor * draws
    for begin in range(0, draws, BLOCK_R):
        inside = begin + slot < draws
        q = tl.load(negatives_ptr + begin + slot, mask=inside, other=-1)
        x = gathered_rows(candidates_ptr, q, q >= 0, columns, WIDTH)
        logit = row_sums(x * a) * inverse
        weight = tl.full([BLOCK_R], 1.0, a.dtype)
        if NORMALIZE:
            weight = tl.load(inverse_ptr + q, mask=q >= 0, other=0.0)
            logit *= weight
        if MARGIN is not None:
            logit = tl.maximum(logit - MARGIN, 0.0)
            weight = tl.where(logit > 0, weight, 0.0)
        logit = tl.where(q >= 0, logit * scale, float("-inf"))
        higher = tl.maximum(top, logit)
        shrink, part = tl.exp(top - higher), tl.exp(logit - higher)
        mass = mass * shrink + part
        top = higher
        if WITH_GRAD:
            pulled = pulled * shrink[None, :, None] + (part * weight)[None, :, None] * x
            tl.store(share_ptr + begin + slot, logit, mask=inside)  # becomes a share once the sum is known
    highest = tl.max(top, axis=0)
    shrink = tl.exp(top - highest)
    negative_mass = tl.sum(mass * shrink, axis=0)
    total = negative_mass + tl.exp(positive - highest)
    tl.store(loss_ptr + anchor, tl.log(total) + (highest - positive))
    tl.store(pull_ptr + anchor, negative_mass / total)
    if WITH_GRAD:
        pulled = tl.sum(pulled * (shrink / total)[None, :, None], axis=1, keep_dims=True)
        tl.store(pulled_ptr + anchor * OUT_WIDTH + columns, pulled, mask=columns < OUT_WIDTH)
        tl.debug_barrier()  # other threads wrote the logits
        for begin in range(0, draws, BLOCK_R):
            inside = begin + slot < draws
            logit = tl.load(share_ptr + begin + slot, mask=inside, other=float("-inf"))
            share = tl.exp(logit - highest) / total
            if MARGIN is not None:
                share = tl.where(logit > 0, share, 0.0)
            tl.store(share_ptr + begin + slot, share, mask=inside)


@triton.jit
def pixel_contrast_candidates_backward_kernel(
    anchors_ptr, candidates_ptr, weight_ptr, uses_ptr, start_ptr, grad_ptr, draws,
    NORMALIZE: tl.constexpr, WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr, CHUNKS: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Gradient of a candidate: the sum of weight * anchor over its uses (places among the weights)."""
    candidate = tl.program_id(0).to(tl.int64)
    columns = row_columns(CHUNKS, COLUMNS)
    slot = tl.arange(0, BLOCK_R)
    until = tl.load(start_ptr + candidate + 1)
    c = wide(tl.load(candidates_ptr + candidate * WIDTH + columns, mask=columns < WIDTH, other=0.0))
    total = tl.zeros([CHUNKS, BLOCK_R, COLUMNS], c.dtype)
    for begin in range(tl.load(start_ptr + candidate), until, BLOCK_R):
        inside = begin + slot < until
        use = tl.load(uses_ptr + begin + slot, mask=inside, other=0).to(tl.int32)  # a division of 64 bits takes long
        anchor = use // draws
        weight = tl.load(weight_ptr + use, mask=inside, other=0.0)
        total += weight[None, :, None] * gathered_rows(anchors_ptr, anchor, inside, columns, WIDTH)
    grad = tl.sum(total, axis=1, keep_dims=True)
    if NORMALIZE:
        grad = unit_row_gradient(grad, c, inverse_norm(row_sums(c * c)), NORMALIZE)
    tl.store(grad_ptr + candidate * OUT_WIDTH + columns, grad.to(grad_ptr.dtype.element_ty), mask=columns < OUT_WIDTH)


def pixel_contrast(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    negatives: Tensor,
    temperature: Tensor,
    margin: float | None,
    normalize: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss (A,), share (A, R), pull (A,), pulled (A, D); share and pulled have no rows without with_grad."""
    (count, width), draws = anchors.shape, negatives.shape[1]
    options = {"dtype": torch.promote_types(anchors.dtype, torch.float32), "device": anchors.device}
    kept = count if with_grad else 0
    loss, pull = torch.empty(count, **options), torch.empty(count, **options)
    share, pulled = torch.empty(kept, draws, **options), torch.empty(kept, width, **options)
    if count == 0:
        return loss, share, pull, pulled
    a, p, c = padded_rows(anchors), padded_rows(positives), padded_rows(candidates)
    inverse = inverse_norms(c) if normalize else c
    with device_of(a):
        pixel_contrast_forward_kernel[(count,)](
            a, p, c, inverse, negatives.contiguous(), temperature, loss, share, pull, pulled, draws,
            MARGIN=margin, NORMALIZE=normalize, WITH_GRAD=with_grad, WIDTH=a.shape[1], OUT_WIDTH=width,
            **_tuning.contrast(a.shape[1], a.dtype),
        )  # fmt: skip
    return loss, share, pull, pulled


def pixel_contrast_backward(
    grad: Tensor,
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    negatives: Tensor,
    share: Tensor,
    pull: Tensor,
    pulled: Tensor,
    temperature: Tensor,
    normalize: bool,
    with_positives: bool,
    with_candidates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of anchors, positives and candidates; the latter two have no rows if not wanted."""
    own = rows_backward(grad, anchors, positives, pull, pulled, temperature, normalize, with_positives)
    grad_anchors, grad_positives, factor = own
    size, width = candidates.shape
    grads = candidates.new_empty(size if with_candidates else 0, width)
    if grads.numel() == 0:
        return grad_anchors, grad_positives, grads
    if negatives.numel() >= 2**31:
        found = " x ".join(map(str, negatives.shape))
        raise ValueError(f"negatives: found {found}, expected fewer than 2^31 in all; take fewer anchors at a time")
    a, c = padded_rows(anchors), padded_rows(candidates)
    # A radix sort goes through the bytes of its keys, so it takes half the time with keys of 16 bits.
    keys = negatives.to(torch.int16 if size <= torch.iinfo(torch.int16).max else torch.int32)
    index, uses = keys.flatten().sort(stable=True)
    start = torch.searchsorted(index, torch.arange(size + 1, device=index.device, dtype=index.dtype), out_int32=True)
    weight = share * factor[:, None]
    with device_of(a):
        pixel_contrast_candidates_backward_kernel[(size,)](
            a, c, weight, uses, start, grads, max(1, negatives.shape[1]),
            NORMALIZE=normalize, WIDTH=c.shape[1], OUT_WIDTH=width, **_tuning.contrast(a.shape[1], a.dtype),
        )  # fmt: skip
    return grad_anchors, grad_positives, grads
