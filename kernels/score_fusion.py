"""Score fusion: a program holds all queries of a block of pixels, from the mask logits to the unit score vectors.

Tiles are [BLOCK_K, BLOCK_N], queries x pixels, the memory layout of the mask logits. The first BLOCK_C classes stay in
registers; further classes are mixed one panel at a time, once for the norm and once for the result. The backward pass
computes the scores again, one class at a time. Each program writes its sums over pixels to a table of parts, which are
then added in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sskd_fast.kernels import _tuning
from sskd_fast.kernels._tl import device_of, inverse_norm

# In the order of CUES in sskd_fast/reference/score_fusion.py.
FUSED, OBJECT, MASK, CLASS = (tl.constexpr(i) for i in range(4))


@triton.jit
def _source(index, size_in, size_out, T: tl.constexpr):
    """Bilinear resizing along one axis, align_corners=False: the two source cells and the weight of the second."""
    ratio = size_in.to(T) / size_out.to(T) if tl.float64 == T else tl.div_rn(size_in.to(T), size_out.to(T))
    position = tl.maximum(ratio * (index.to(T) + 0.5) - 0.5, 0.0)
    first = tl.minimum(position.to(tl.int32), size_in - 1)
    weight = tl.minimum(tl.maximum(position - first.to(T), 0.0), 1.0)
    return first, first + tl.where(first < size_in - 1, 1, 0), weight


@triton.jit
def _mask_logits(masks_ptr, k, n, inside, plane_in, height_in, width_in, height, width, RESIZED: tl.constexpr):
    """The mask logits of pixels n [BLOCK_N] of one image, resized: [BLOCK_K, BLOCK_N]."""
    plane = masks_ptr + k.to(tl.int64)[:, None] * plane_in
    if RESIZED:
        T: tl.constexpr = masks_ptr.dtype.element_ty
        y0, y1, below = _source(n // width, height_in + n * 0, height + n * 0, T)
        x0, x1, right = _source(n % width, width_in + n * 0, width + n * 0, T)
        m00 = tl.load(plane + (y0 * width_in + x0)[None, :], mask=inside, other=0.0)
        m01 = tl.load(plane + (y0 * width_in + x1)[None, :], mask=inside, other=0.0)
        m10 = tl.load(plane + (y1 * width_in + x0)[None, :], mask=inside, other=0.0)
        m11 = tl.load(plane + (y1 * width_in + x1)[None, :], mask=inside, other=0.0)
        above = (1 - right)[None, :] * m00 + right[None, :] * m01
        under = (1 - right)[None, :] * m10 + right[None, :] * m11
        logits = (1 - below)[None, :] * above + below[None, :] * under
    else:
        logits = tl.load(plane + n[None, :], mask=inside, other=0.0)
    return logits


@triton.jit
def _presence(logits, inside, CUES: tl.constexpr):
    """Softmax over the queries or, for OBJECT, the sigmoid; 0 outside."""
    if CUES == OBJECT:
        small = tl.exp(-tl.abs(logits))
        presence = tl.where(logits > 0, 1.0, small) / (1 + small)
    else:
        logits = tl.where(inside, logits, float("-inf"))
        top = tl.max(logits, axis=0)
        presence = tl.exp(logits - tl.where(top > float("-inf"), top, 0.0)[None, :])
        total = tl.sum(presence, axis=0)
        presence = presence / tl.where(total > 0, total, 1.0)[None, :]
    return tl.where(inside, presence, 0.0)


@triton.jit
def _class_panel(
    classes_ptr, k, begin, QUERIES: tl.constexpr, CLASSES: tl.constexpr, MIXED: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Probabilities of the MIXED classes from `begin` on: [BLOCK_K, BLOCK_C]."""
    c = begin + tl.arange(0, BLOCK_C)
    mask = (k < QUERIES)[:, None] & (c < MIXED)[None, :]
    return tl.load(classes_ptr + k[:, None] * CLASSES + c[None, :], mask=mask, other=0.0)


@triton.jit
def _mixed(classes, presence):
    """sum_k P_k presence_k: [BLOCK_C, BLOCK_N]."""
    return tl.dot(tl.trans(classes), presence, input_precision="ieee", out_dtype=presence.dtype)


@triton.jit
def score_fusion_forward_kernel(
    masks_ptr, classes_ptr, scores_ptr, plane_in, pixels, height_in, width_in, height, width,
    CUES: tl.constexpr, RESIZED: tl.constexpr, QUERIES: tl.constexpr, CLASSES: tl.constexpr, MIXED: tl.constexpr,
    OFFSET: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Unit score vectors (B, N, OFFSET + MIXED); OFFSET: start of the class part."""
    image = tl.program_id(1).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (k < QUERIES)[:, None] & (n < pixels)[None, :]
    masks_ptr += image * QUERIES * plane_in
    classes_ptr += image * QUERIES * CLASSES
    presence = _presence(
        _mask_logits(masks_ptr, k, n, inside, plane_in, height_in, width_in, height, width, RESIZED), inside, CUES
    )
    owner = presence
    background = tl.zeros([BLOCK_N], presence.dtype)
    if CUES == OBJECT:
        empty = tl.load(classes_ptr + k * CLASSES + CLASSES - 1, mask=k < QUERIES, other=1.0)
        owner = presence * (1 - empty)[:, None]
        background = tl.maximum(1 - tl.sum(owner, axis=0), 0.0)
    squares = background * background
    if CUES != CLASS:
        squares += tl.sum(owner * owner, axis=0)
    if MIXED > 0:
        first = _mixed(_class_panel(classes_ptr, k, 0, QUERIES, CLASSES, MIXED, BLOCK_C), presence)
        squares += tl.sum(first * first, axis=0)
        for begin in range(BLOCK_C, MIXED, BLOCK_C):
            mixed = _mixed(_class_panel(classes_ptr, k, begin, QUERIES, CLASSES, MIXED, BLOCK_C), presence)
            squares += tl.sum(mixed * mixed, axis=0)
    inverse = inverse_norm(squares)
    scores_ptr += (image * pixels + n) * (OFFSET + MIXED)
    if CUES != CLASS:
        tl.store(scores_ptr[None, :] + k[:, None], owner * inverse[None, :], mask=inside)
    if CUES == OBJECT:
        tl.store(scores_ptr + QUERIES, background * inverse, mask=n < pixels)
    if MIXED > 0:
        c = tl.arange(0, BLOCK_C)
        mask = (c < MIXED)[:, None] & (n < pixels)[None, :]
        tl.store(scores_ptr[None, :] + (OFFSET + c)[:, None], first * inverse[None, :], mask=mask)
        for begin in range(BLOCK_C, MIXED, BLOCK_C):
            mixed = _mixed(_class_panel(classes_ptr, k, begin, QUERIES, CLASSES, MIXED, BLOCK_C), presence)
            mask = (begin + c < MIXED)[:, None] & (n < pixels)[None, :]
            tl.store(scores_ptr[None, :] + (OFFSET + begin + c)[:, None], mixed * inverse[None, :], mask=mask)


@triton.jit
def _class(classes_ptr, k, c, presence, QUERIES: tl.constexpr, CLASSES: tl.constexpr):
    """Probabilities of class c [BLOCK_K], and their mixture over the queries [BLOCK_N]."""
    probability = tl.load(classes_ptr + k * CLASSES + c, mask=k < QUERIES, other=0.0)
    return probability, tl.sum(probability[:, None] * presence, axis=0)


@triton.jit
def score_fusion_backward_kernel(
    grad_ptr, masks_ptr, classes_ptr, grad_masks_ptr, parts_ptr, plane_in, pixels, height_in, width_in, height, width,
    mixed_classes,
    CUES: tl.constexpr, RESIZED: tl.constexpr, QUERIES: tl.constexpr, CLASSES: tl.constexpr, MIXED: tl.constexpr,
    OFFSET: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradient of the resized mask logits (B, K, N), and of the class probabilities by part: (B, P, K, C + 1).

    mixed_classes equals MIXED but is not a constexpr: unrolled loops would need too many registers.
    """
    part, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    n = part * BLOCK_N + tl.arange(0, BLOCK_N)
    present = n < pixels
    inside = (k < QUERIES)[:, None] & present[None, :]
    masks_ptr += image * QUERIES * plane_in
    classes_ptr += image * QUERIES * CLASSES
    parts_ptr += ((image * tl.num_programs(0) + part) * QUERIES + k) * CLASSES
    # 64-bit offsets per block, 32-bit ones per number: half of the registers that 64-bit pointers would take.
    grad_ptr += (image * pixels + part * BLOCK_N) * (OFFSET + MIXED)
    rows_ptr = grad_ptr + tl.arange(0, BLOCK_N) * (OFFSET + MIXED)
    logits = _mask_logits(masks_ptr, k, n, inside, plane_in, height_in, width_in, height, width, RESIZED)
    presence = _presence(logits, inside, CUES)
    owner, grad = presence, tl.zeros_like(presence)
    squares = tl.zeros([BLOCK_N], presence.dtype)
    inner = squares
    if CUES == OBJECT:
        filled = 1 - tl.load(classes_ptr + k * CLASSES + CLASSES - 1, mask=k < QUERIES, other=1.0)
        owner = presence * filled[:, None]
        covered = tl.sum(owner, axis=0)
        background = tl.maximum(1 - covered, 0.0)
        grad_background = tl.load(rows_ptr + QUERIES, mask=present, other=0.0)
        squares, inner = background * background, grad_background * background
    if CUES != CLASS:
        grad = tl.load(
            grad_ptr + (tl.arange(0, BLOCK_N) * (OFFSET + MIXED))[None, :] + k[:, None], mask=inside, other=0.0
        )
        squares += tl.sum(owner * owner, axis=0)
        inner += tl.sum(grad * owner, axis=0)
    for c in range(mixed_classes):
        _, mixed = _class(classes_ptr, k, c, presence, QUERIES, CLASSES)
        squares += mixed * mixed
        inner += tl.load(rows_ptr + OFFSET + c, mask=present, other=0.0) * mixed
    # Gradient of y from the gradient of y / |y|: without its part along y, unless the norm was clamped.
    inverse = inverse_norm(squares)
    radial = tl.where(inverse * 1e-12 < 1, inner * inverse * inverse, 0.0)
    if CUES != CLASS:
        grad = (grad - radial[None, :] * owner) * inverse[None, :]
    if CUES == OBJECT:
        grad_background = (grad_background - radial * background) * inverse
        grad -= tl.where(covered > 1, 0.0, grad_background)[None, :]
        tl.store(parts_ptr + CLASSES - 1, -tl.sum(grad * presence, axis=1), mask=k < QUERIES)
        grad *= filled[:, None]
    for c in range(mixed_classes):
        probability, mixed = _class(classes_ptr, k, c, presence, QUERIES, CLASSES)
        of_mixed = (tl.load(rows_ptr + OFFSET + c, mask=present, other=0.0) - radial * mixed) * inverse
        grad += probability[:, None] * of_mixed[None, :]
        tl.store(parts_ptr + c, tl.sum(presence * of_mixed[None, :], axis=1), mask=k < QUERIES)
    if CUES == OBJECT:
        grad *= presence * (1 - presence)
    else:
        grad = presence * (grad - tl.sum(grad * presence, axis=0)[None, :])
    out = (image * QUERIES + k)[:, None] * pixels + n[None, :]
    tl.store(grad_masks_ptr + out, grad, mask=inside)


@triton.jit
def score_fusion_resize_backward_kernel(
    grad_ptr, out_ptr, height_in, width_in, height, width, reach_y, reach_x, BLOCK: tl.constexpr
):
    """Transpose of the bilinear resizing of a plane: each source pixel gathers from the result in a fixed order."""
    T: tl.constexpr = out_ptr.dtype.element_ty
    plane = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    grad_ptr += plane * height * width
    y, x = at // width_in, at % width_in
    # The first row and column of the result whose source lies within one pixel of this one.
    first_y = ((2 * y - 1) * height - height_in) // (2 * height_in)
    first_x = ((2 * x - 1) * width - width_in) // (2 * width_in)
    total = tl.zeros([BLOCK], T)
    for step_y in range(reach_y):
        i = first_y + step_y
        y0, y1, below = _source(i, height_in + i * 0, height + i * 0, T)
        weight_y = tl.where(y0 == y, 1 - below, 0.0) + tl.where(y1 == y, below, 0.0)
        weight_y = tl.where((i >= 0) & (i < height), weight_y, 0.0)
        for step_x in range(reach_x):
            j = first_x + step_x
            x0, x1, right = _source(j, width_in + j * 0, width + j * 0, T)
            weight = weight_y * (tl.where(x0 == x, 1 - right, 0.0) + tl.where(x1 == x, right, 0.0))
            reached = (weight != 0) & (j >= 0) & (j < width)
            total += tl.where(reached, weight, 0.0) * tl.load(grad_ptr + i * width + j, mask=reached, other=0.0)
    tl.store(out_ptr + plane * height_in * width_in + at, total, mask=at < height_in * width_in)


def _constants(masks: Tensor, classes: Tensor, height: int, width: int, cues: int) -> dict[str, int | bool]:
    queries, count = masks.shape[1], classes.shape[2]
    return {
        "CUES": cues,
        "RESIZED": tuple(masks.shape[2:]) != (height, width),
        "QUERIES": queries,
        "CLASSES": count,
        "MIXED": (count, count - 1, 0, count)[cues],
        "OFFSET": (queries, queries + 1, queries, 0)[cues],
    }


def score_fusion(mask_logits: Tensor, class_logits: Tensor, height: int, width: int, cues: int) -> Tensor:
    """Unit score vectors (B, N, E)."""
    masks, classes = mask_logits.contiguous(), class_logits.softmax(-1)
    constants = _constants(masks, classes, height, width, cues)
    images, pixels = masks.shape[0], height * width
    scores = masks.new_empty(images, pixels, constants["OFFSET"] + constants["MIXED"])
    if scores.numel() == 0:
        return scores
    config = _tuning.fusion_forward(masks.shape[1], classes.shape[2], masks.dtype)
    with device_of(masks):
        score_fusion_forward_kernel[(triton.cdiv(pixels, config["BLOCK_N"]), images)](
            masks, classes, scores, masks.shape[2] * masks.shape[3], pixels, *masks.shape[2:], height, width,
            **constants, **config,
        )  # fmt: skip
    return scores


def score_fusion_backward(
    grad: Tensor, mask_logits: Tensor, class_logits: Tensor, height: int, width: int, cues: int
) -> tuple[Tensor, Tensor]:
    """Gradients of both logits."""
    masks, classes = mask_logits.contiguous(), class_logits.softmax(-1)
    constants = _constants(masks, classes, height, width, cues)
    (images, queries, *size), pixels = masks.shape, height * width
    if grad.numel() == 0:
        return torch.zeros_like(masks), torch.zeros_like(classes)
    config = _tuning.fusion_backward(queries, classes.shape[2], masks.dtype)
    count = triton.cdiv(pixels, config["BLOCK_N"])
    parts = masks.new_zeros(images, count, *classes.shape[1:])
    of_masks = masks.new_empty(images, queries, height, width)
    with device_of(masks):
        score_fusion_backward_kernel[(count, images)](
            grad.contiguous(), masks, classes, of_masks, parts, size[0] * size[1], pixels, *size, height, width,
            constants["MIXED"], **constants, **config,
        )  # fmt: skip
        if constants["RESIZED"]:
            of_masks = _resize_backward(of_masks, masks)
    of_classes = parts.sum(1)
    of_classes = classes * (of_classes - (of_classes * classes).sum(-1, keepdim=True))
    return of_masks, of_classes


def _resize_backward(grad: Tensor, masks: Tensor) -> Tensor:
    result = torch.empty_like(masks)
    (images, queries, *size), target = masks.shape, grad.shape[2:]
    reach = (triton.cdiv(2 * n, s) + 2 for n, s in zip(target, size, strict=True))
    config = _tuning.resize_backward()
    grid = images * queries, triton.cdiv(size[0] * size[1], config["BLOCK"])  # the second dimension is at most 65535
    score_fusion_resize_backward_kernel[grid](grad, result, *size, *target, *reach, **config)
    return result
