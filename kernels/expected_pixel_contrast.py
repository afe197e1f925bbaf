"""The expected form of pixel contrast: tiles of anchors x candidates, two products for each, no A x M matrix kept.

A program holds the rows of one side and loops over the columns of the other with an online log-sum-exp. The backward
pass computes the tiles again, once with the anchors as rows and once with the candidates. So one program sums each
gradient, in a fixed order. To write each tile's share of the other side's gradient, and to add the shares up later,
would move more bytes than a second computation of the tile takes time (docs/gpu.md).

Embeddings and scores are multiplied in parts of float16 (_parts.py), a panel of BLOCK_W or BLOCK_S numbers at a time.
A program holds the gradients of BLOCK_G numbers; wider rows are split over programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sskd_fast.kernels import _tuning
from sskd_fast.kernels._expected_tiles import (
    added,
    any_in_scope,
    of_tile,
    panel_of,
    products_of,
    range_of,
    scoped,
    score_factor,
)
from sskd_fast.kernels._parts import Embeddings, Side, operands, sides, whole_tiles
from sskd_fast.kernels._rows import rows_backward
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

_LOG2_E = tl.constexpr(1.4426950408889634)
_LOG_2 = tl.constexpr(0.6931471805599453)
# Likelihoods are at most 1, and so are shares. As float16 numbers their products are multiplied by a power of two.
_LIFT = tl.constexpr(16384.0)


# A single panel, too, is a turn of a loop: in one loop over the columns, all their panels would be in flight.
@triton.jit(do_not_specialize=["panels", "score_panels"])
def expected_pixel_contrast_forward_kernel(
    anchors, candidates, anchor_scores, candidate_scores, half_anchor_ptr, half_candidate_ptr, anchor_largest_ptr,
    candidate_largest_ptr, anchor_group_ptr, candidate_group_ptr, anchor_range_ptr, candidate_range_ptr, anchors_ptr,
    positives_ptr, anchor_factor_ptr, candidate_factor_ptr, inverse_anchor_ptr, inverse_positive_ptr, weight_ptr,
    temperature_ptr, loss_ptr, pull_ptr, log_mass_ptr, weight_sum_ptr, anchor_count, candidate_count, num_negatives,
    panels, score_panels,
    SCORED: tl.constexpr, WEIGHTED: tl.constexpr, GROUPED: tl.constexpr, SAME: tl.constexpr, WIDTH: tl.constexpr,
    BY_ROWS: tl.constexpr, PARTS: tl.constexpr, PART_WIDTH: tl.constexpr, SCORE_PARTS: tl.constexpr,
    SCORE_WIDTH: tl.constexpr, TENSOR_COPIES: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """loss, pull, log_mass and weight_sum of BLOCK_I anchors."""
    first = tl.program_id(0) * BLOCK_I
    i = first + tl.arange(0, BLOCK_I)
    inside = i < anchor_count
    ACCUMULATE: tl.constexpr = anchor_factor_ptr.dtype.element_ty
    scale = (1.0 / tl.load(temperature_ptr)).to(ACCUMULATE)
    factor = tl.load(anchor_factor_ptr + i) * (scale * _LOG2_E)
    if not BY_ROWS:
        factor *= tl.load(candidate_factor_ptr)  # of every candidate
    half = tl.load(half_anchor_ptr + i)
    own, low, high = i, 0, 0
    if SCORED:
        back = score_factor(anchor_largest_ptr, candidate_largest_ptr)
    if GROUPED:
        own = tl.load(anchor_group_ptr + i)
        low, high = range_of(anchor_range_ptr, tl.program_id(0))
    top = tl.full([BLOCK_I], -3.4e38, ACCUMULATE)  # finite, so that it can be subtracted from itself
    mass, total = tl.zeros([BLOCK_I], ACCUMULATE), tl.zeros([BLOCK_I], ACCUMULATE)
    for tile in range(tl.cdiv(candidate_count, BLOCK_J)):
        if any_in_scope(candidate_range_ptr, low, high, tile, GROUPED, SAME):
            begin = tile * BLOCK_J
            half_candidate = of_tile(half_candidate_ptr, begin, BLOCK_J)
            other = half_candidate
            if GROUPED:
                other = of_tile(candidate_group_ptr, begin, BLOCK_J)
            if SCORED:
                products = products_of(
                    anchor_scores, first, anchor_count, candidate_scores, begin, candidate_count, score_panels,
                    ACCUMULATE, SCORE_PARTS, SCORE_WIDTH, BLOCK_I, BLOCK_J, BLOCK_S, TENSOR_COPIES,
                )  # fmt: skip
                weights = (half[:, None] + half_candidate[None, :]) - products * back
            else:
                weights = tl.minimum(half[:, None], half_candidate[None, :])
            weights = scoped(weights, own, other, GROUPED, SAME)
            if WEIGHTED:
                weights *= of_tile(weight_ptr, begin, BLOCK_J)[None, :]
            logits = products_of(
                anchors, first, anchor_count, candidates, begin, candidate_count, panels, ACCUMULATE,
                PARTS, PART_WIDTH, BLOCK_I, BLOCK_J, BLOCK_W, TENSOR_COPIES,
            )  # fmt: skip
            if BY_ROWS:
                logits *= of_tile(candidate_factor_ptr, begin, BLOCK_J)[None, :]
            logits = tl.where(weights > 0, logits, float("-inf"))
            higher = tl.maximum(top, tl.max(logits, axis=1) * factor)
            likelihood = tl.exp2(logits * factor[:, None] - higher[:, None])
            mass = mass * tl.exp2(top - higher) + tl.sum(likelihood * weights, axis=1)
            total += tl.sum(weights, axis=1)
            top = higher
    positive = tl.zeros([BLOCK_I], ACCUMULATE)
    for begin in range(0, WIDTH, BLOCK_W):
        a = wide(panel_of(anchors_ptr, first, begin, anchor_count, WIDTH, BLOCK_I, BLOCK_W, False))
        p = wide(panel_of(positives_ptr, first, begin, anchor_count, WIDTH, BLOCK_I, BLOCK_W, False))
        positive += tl.sum(a * p, axis=1)
    positive *= tl.load(inverse_anchor_ptr + i, mask=inside, other=0.0) * scale
    positive *= tl.load(inverse_positive_ptr + i, mask=inside, other=0.0)
    log_mass = tl.log(mass) + top * _LOG_2
    gap = tl.log(tl.zeros_like(positive) + num_negatives) + log_mass - tl.log(total) - positive
    gap = tl.where(total > 0, gap, float("-inf"))
    small = tl.exp(-tl.abs(gap))
    # log(1 + x), and x if that is too small to change 1.
    rest = tl.where(1 + small == 1, small, tl.log(1 + small) * (small / ((1 + small) - 1)))
    tl.store(loss_ptr + i, tl.maximum(gap, 0.0) + rest, mask=inside)
    tl.store(pull_ptr + i, tl.where(gap > 0, 1.0, small) / (1 + small), mask=inside)
    tl.store(log_mass_ptr + i, log_mass, mask=inside)
    tl.store(weight_sum_ptr + i, total, mask=inside)


# A single panel, too, is a turn of a loop: in one loop over the columns, all their panels would be in flight.
@triton.jit(do_not_specialize=["panels", "score_panels"])
def expected_pixel_contrast_backward_kernel(
    x, y, x_scores, y_scores, half_x_ptr, half_y_ptr, x_largest_ptr, y_largest_ptr, x_group_ptr, y_group_ptr,
    x_range_ptr, y_range_ptr, y_gradients, x_factor_ptr, y_factor_ptr, x_scores_ptr, y_scores_ptr, weight_ptr,
    temperature_ptr, share_ptr, largest_ptr, log_mass_ptr, pulled_ptr, inverse_sum_ptr, grad_ptr, grad_scores_ptr,
    rows, columns, panels, score_panels,
    ANCHORS_ARE_ROWS: tl.constexpr, WITH_SCORES: tl.constexpr, SCORED: tl.constexpr, WEIGHTED: tl.constexpr,
    GROUPED: tl.constexpr, SAME: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, PART_WIDTH: tl.constexpr,
    SCORES: tl.constexpr, SCORE_PARTS: tl.constexpr, SCORE_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BY_ROWS: tl.constexpr, TENSOR_COPIES: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """A panel of the gradients of BLOCK_I rows x (unit embeddings and scores), summed over columns y.

    grad: for anchors sum_q w_q exp(s_q - log_mass) c_q; for candidates the same sum over anchors, weighted by
    pulled / temperature. pulled (A,) = grad * pull. share: the factor of a column, divided by `largest`, times
    _LIFT and the weight of the column. log_mass: in powers of two. Vectors are of whole tiles.
    """
    first = tl.program_id(0) * BLOCK_I
    i = first + tl.arange(0, BLOCK_I)
    own_columns = tl.program_id(1) * BLOCK_G
    ACCUMULATE: tl.constexpr = x_factor_ptr.dtype.element_ty
    scale = (1.0 / tl.load(temperature_ptr)).to(ACCUMULATE)
    factor = tl.load(x_factor_ptr + i) * (scale * _LOG2_E)
    if not BY_ROWS:
        factor *= tl.load(y_factor_ptr)  # of every column
    half = tl.load(half_x_ptr + i)
    own, low, high = i, 0, 0
    if SCORED:
        back = score_factor(x_largest_ptr, y_largest_ptr)
    if GROUPED:
        own = tl.load(x_group_ptr + i)
        low, high = range_of(x_range_ptr, tl.program_id(0))
    if ANCHORS_ARE_ROWS:
        log_mass = tl.load(log_mass_ptr + i)
    elif WEIGHTED:
        weight = tl.load(weight_ptr + i)
    grad = tl.zeros([BLOCK_I, BLOCK_G], ACCUMULATE)
    if WITH_SCORES:
        grad_scores = tl.zeros([BLOCK_I, BLOCK_G], ACCUMULATE)
        slopes = tl.zeros([BLOCK_I], ACCUMULATE)
    for tile in range(tl.cdiv(columns, BLOCK_J)):
        if any_in_scope(y_range_ptr, low, high, tile, GROUPED, SAME):
            begin = tile * BLOCK_J
            half_y = of_tile(half_y_ptr, begin, BLOCK_J)
            other = half_y
            if GROUPED:
                other = of_tile(y_group_ptr, begin, BLOCK_J)
            if SCORED:
                products = products_of(
                    x_scores, first, rows, y_scores, begin, columns, score_panels, ACCUMULATE,
                    SCORE_PARTS, SCORE_WIDTH, BLOCK_I, BLOCK_J, BLOCK_S, TENSOR_COPIES,
                )  # fmt: skip
                weights = (half[:, None] + half_y[None, :]) - products * back
            else:
                weights = tl.minimum(half[:, None], half_y[None, :])
            weights = scoped(weights, own, other, GROUPED, SAME) * of_tile(share_ptr, begin, BLOCK_J)[None, :]
            if WEIGHTED and not ANCHORS_ARE_ROWS:
                weights *= weight[:, None]
            logits = products_of(
                x, first, rows, y, begin, columns, panels, ACCUMULATE,
                PARTS, PART_WIDTH, BLOCK_I, BLOCK_J, BLOCK_W, TENSOR_COPIES,
            )  # fmt: skip
            if BY_ROWS:
                logits *= of_tile(y_factor_ptr, begin, BLOCK_J)[None, :]
            if ANCHORS_ARE_ROWS:
                logits = logits * factor[:, None] - log_mass[:, None]
            else:
                logits = logits * factor[:, None] - of_tile(log_mass_ptr, begin, BLOCK_J)[None, :]
            # Finite, so that it vanishes with the weight.
            likelihood = tl.exp2(tl.minimum(logits, 120.0))
            grad = added(
                grad, likelihood * weights, y_gradients, begin, own_columns, columns,
                PARTS, PART_WIDTH, BLOCK_J, BLOCK_G, TENSOR_COPIES, ACCUMULATE,
            )  # fmt: skip
            if WITH_SCORES:
                likelihood = tl.where(weights != 0, likelihood, 0.0)
                pairs = scoped(tl.minimum(half[:, None], half_y[None, :]) + 1.0, own, other, GROUPED, SAME)
                if ANCHORS_ARE_ROWS:
                    slope = (likelihood - tl.load(inverse_sum_ptr + i)[:, None]) * tl.load(pulled_ptr + i)[:, None]
                else:
                    slope = likelihood - of_tile(inverse_sum_ptr, begin, BLOCK_J)[None, :]
                    slope *= of_tile(pulled_ptr, begin, BLOCK_J)[None, :]
                if WEIGHTED:
                    if ANCHORS_ARE_ROWS:
                        slope *= of_tile(weight_ptr, begin, BLOCK_J)[None, :]
                    else:
                        slope *= weight[:, None]
                slope = tl.where(pairs > 0, slope, 0.0)
                slopes += tl.sum(slope, axis=1)
                of_scores = panel_of(y_scores_ptr, begin, own_columns, columns, SCORES, BLOCK_J, BLOCK_G, False)
                grad_scores = tl.dot(slope, of_scores, grad_scores, input_precision=PRECISION, out_dtype=ACCUMULATE)
    inside = i < rows
    largest = tl.load(largest_ptr)
    back = largest * (1.0 / _LIFT)
    grad *= back if ANCHORS_ARE_ROWS else back * scale
    at = i.to(tl.int64)[:, None]
    w = own_columns + tl.arange(0, BLOCK_G)
    tl.store(grad_ptr + at * WIDTH + w[None, :], grad, mask=inside[:, None] & (w < WIDTH)[None, :])
    if WITH_SCORES:
        own_scores = panel_of(x_scores_ptr, first, own_columns, rows, SCORES, BLOCK_I, BLOCK_G, False)
        tl.store(
            grad_scores_ptr + at * SCORES + w[None, :],
            slopes[:, None] * own_scores - grad_scores,
            mask=inside[:, None] & (w < SCORES)[None, :],
        )


@triton.jit
def expected_pixel_contrast_unit_rows_backward_kernel(
    grad_ptr, x_ptr, out_ptr, rows,
    WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr, CHUNKS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_A: tl.constexpr,
):  # fmt: skip
    """Gradient of rows (N, OUT_WIDTH) from the gradient of their unit vectors (N, WIDTH)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK_A + tl.arange(0, BLOCK_A)
    columns = row_columns(CHUNKS, COLUMNS)
    x = gathered_rows(x_ptr, i, i < rows, columns, WIDTH)
    grad = gathered_rows(grad_ptr, i, i < rows, columns, WIDTH)
    grad = unit_row_gradient(grad, x, inverse_norm(row_sums(x * x)), True)
    mask = (i < rows)[None, :, None] & (columns < OUT_WIDTH)
    tl.store(out_ptr + i[None, :, None] * OUT_WIDTH + columns, grad.to(out_ptr.dtype.element_ty), mask=mask)


def expected_pixel_contrast(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    anchor_scores: Tensor | None,
    candidate_scores: Tensor | None,
    candidate_weight: Tensor | None,
    anchor_group: Tensor | None,
    candidate_group: Tensor | None,
    same: bool,
    num_negatives: int,
    temperature: Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss, pull, log_mass and weight_sum, each (A,)."""
    count = anchors.shape[0]
    scores, groups = (anchor_scores, candidate_scores), (anchor_group, candidate_group)
    own, other = sides(anchors, candidates, scores, groups, candidate_weight, normalize)
    a, c = own.embeddings, other.embeddings
    loss, pull, log_mass, weight_sum = (torch.empty_like(a.inverse) for _ in range(4))
    if count == 0:
        return loss, pull, log_mass, weight_sum
    p = padded_rows(positives)
    config = _tuning.expected_forward(p.dtype)
    weight = c.half if other.weight is None else other.weight
    with device_of(p):
        expected_pixel_contrast_forward_kernel[(triton.cdiv(count, config["BLOCK_I"]),)](
            *operands(own, other, config), a.rows, p, a.factor, c.factor, a.inverse, _inverse_norms(p, normalize),
            weight, temperature, loss, pull, log_mass, weight_sum, count, candidates.shape[0], num_negatives,
            *own.panel_counts(),
            SCORED=own.scores is not None, WEIGHTED=other.weight is not None, GROUPED=own.group is not None,
            SAME=same, WIDTH=p.shape[1], **own.constants(), **config,
        )  # fmt: skip
    return loss, pull, log_mass, weight_sum


def _inverse_norms(x: Tensor, normalize: bool) -> Tensor:
    compute = torch.promote_types(x.dtype, torch.float32)
    if not normalize:
        return torch.ones(x.shape[0], dtype=compute, device=x.device)
    return torch.linalg.vector_norm(x, dim=1, dtype=compute).clamp_min(1e-12).reciprocal()


def expected_pixel_contrast_backward(
    grad: Tensor,
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    anchor_scores: Tensor | None,
    candidate_scores: Tensor | None,
    candidate_weight: Tensor | None,
    anchor_group: Tensor | None,
    candidate_group: Tensor | None,
    same: bool,
    pull: Tensor,
    log_mass: Tensor,
    weight_sum: Tensor,
    temperature: Tensor,
    normalize: bool,
    with_scores: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of anchors, positives, candidates, anchor scores and candidate scores; of scores only if wanted."""
    scores, groups = (anchor_scores, candidate_scores), (anchor_group, candidate_group)
    own, other = sides(anchors, candidates, scores, groups, candidate_weight, normalize)
    with_scores = with_scores and anchor_scores is not None
    pulled = whole_tiles(grad * pull)
    state = (
        whole_tiles(log_mass * _LOG2_E.value),
        pulled,
        whole_tiles(torch.where(weight_sum > 0, weight_sum.reciprocal(), 0.0)),
    )
    with device_of(pull):
        shares = other.embeddings.factor, own.embeddings.factor * pulled
        of_anchors, of_anchor_scores = _gradients(own, other, shares[0], state, temperature, same, with_scores, True)
        of_candidates, of_scores = _gradients(other, own, shares[1], state, temperature, same, with_scores, False)
        of_anchors = (of_anchors * pull[:, None])[:, : anchors.shape[1]]
        grads = rows_backward(grad, anchors, positives, pull, of_anchors, temperature, normalize, True)
        grad_candidates = _through_norms(of_candidates, other.embeddings, candidates, normalize)
    empty = pull.new_empty(0), pull.new_empty(0)
    if with_scores and anchor_scores is not None:
        width = anchor_scores.shape[1]
        empty = of_anchor_scores[:, :width].contiguous(), of_scores[:, :width].contiguous()
    return grads[0], grads[1], grad_candidates, *empty


def _gradients(
    own: Side,
    other: Side,
    share: Tensor,
    state: tuple[Tensor, Tensor, Tensor],
    temperature: Tensor,
    same: bool,
    with_scores: bool,
    anchors_are_rows: bool,
) -> tuple[Tensor, Tensor]:
    """Sums over `other` for the rows of `own` and for their scores; see the kernel for share and state."""
    x, y = own.embeddings, other.embeddings
    count, width = x.rows.shape
    grads = torch.zeros(count, width, dtype=share.dtype, device=share.device)
    raw = (own.scores.rows, other.scores.rows) if own.scores and other.scores else (share, share)
    grad_scores = torch.zeros_like(raw[0]) if with_scores else share.new_empty(0)
    if count == 0 or width == 0:
        return grads, grad_scores
    more = x.by_rows or own.group is not None
    config = _tuning.expected_backward(x.rows.dtype, x.width, with_scores, more)
    of_gradients = y.panels(config["BLOCK_J"], config["TENSOR_COPIES"], config["BLOCK_G"])
    largest_share = torch.linalg.vector_norm(share, float("inf"))
    share = share / largest_share.clamp_min(1e-37) * _LIFT.value
    if other.weight is not None:
        share = share * other.weight
    weights = [x.weight for x in (own, other) if x.weight is not None]
    programs = triton.cdiv(max(width, grad_scores.shape[-1]), config["BLOCK_G"])
    expected_pixel_contrast_backward_kernel[(triton.cdiv(count, config["BLOCK_I"]), programs)](
        *operands(own, other, config), of_gradients, x.factor, y.factor, *raw, *(weights or [share]), temperature,
        share, largest_share, *state, grads, grad_scores, count, len(y.rows), *own.panel_counts(),
        ANCHORS_ARE_ROWS=anchors_are_rows, WITH_SCORES=with_scores, SCORED=own.scores is not None,
        WEIGHTED=bool(weights), GROUPED=own.group is not None, SAME=same, WIDTH=width,
        SCORES=raw[0].shape[-1], **own.constants(), **config,
    )  # fmt: skip
    return grads, grad_scores


def _through_norms(grads: Tensor, side: Embeddings, candidates: Tensor, normalize: bool) -> Tensor:
    (size, width), padded = candidates.shape, side.rows.shape[1]
    if not normalize or candidates.numel() == 0:
        return grads[:, :width].to(candidates.dtype).contiguous()
    result = torch.empty_like(candidates, memory_format=torch.contiguous_format)
    config = _tuning.rows_backward(padded, side.rows.dtype)
    expected_pixel_contrast_unit_rows_backward_kernel[(triton.cdiv(size, config["BLOCK_A"]),)](
        grads, side.rows, result, size, WIDTH=padded, OUT_WIDTH=width, **config
    )
    return result
