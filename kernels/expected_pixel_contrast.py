"""The expected form of pixel contrast: tiles of anchors x candidates, two products for each, no A x M matrix kept.

A program holds the rows of one side and loops over the columns of the other with an online log-sum-exp. The backward
pass computes the tiles again, once with the anchors as rows and once with the candidates. So one program sums each
gradient, in a fixed order. Rows are multiplied BLOCK_W numbers at a time, and a program holds the gradients of BLOCK_G
numbers; wider rows are split over programs.

Half precision is multiplied as stored, which is exact with float32 sums. Products of float32 numbers (PRECISION) are
split in three of TF32 on NVIDIA's tensor cores. Their error is that of float32 (tests/test_triton.py checks it).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sskd_fast.kernels import _tuning
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


@triton.jit
def _panel(x_ptr, first, inside, begin, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr, WIDEN: tl.constexpr):
    """[BLOCK, BLOCK_W]: the columns from `begin` on of the rows from `first` on of x (., WIDTH), zero outside."""
    columns = begin + tl.arange(0, BLOCK_W)
    mask = inside[:, None] & (columns < WIDTH)[None, :]
    # 64-bit offsets per block, 32-bit ones per number: half of the registers that 64-bit pointers would take.
    x_ptr += first * tl.full([], WIDTH, tl.int64)
    offsets = tl.arange(0, inside.shape[0])[:, None] * WIDTH + columns[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    return wide(x) if WIDEN else x


@triton.jit
def _products(
    x_ptr, x_first, x_inside, y_ptr, y_first, y_inside, panels,
    WIDTH: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_W: tl.constexpr, WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Dot products of the rows of x from x_first on with the rows of y from y_first on, [BLOCK_I, BLOCK_J].

    panels: number of panels of BLOCK_W numbers; not a constexpr, since the compiler would unroll the loop at the cost
    of registers.
    """
    ACCUMULATE: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    products = tl.zeros([BLOCK_I, BLOCK_J], ACCUMULATE)
    for panel in range(panels):
        begin = panel * BLOCK_W
        x = _panel(x_ptr, x_first, x_inside, begin, WIDTH, BLOCK_W, WIDEN)
        y = _panel(y_ptr, y_first, y_inside, begin, WIDTH, BLOCK_W, WIDEN)
        products += tl.dot(x, tl.trans(y), input_precision=PRECISION, out_dtype=ACCUMULATE)
    return products


@triton.jit
def _vector(x_ptr, rows, inside, other):
    return tl.load(x_ptr + rows, mask=inside, other=other)


@triton.jit
def _factors(
    weight_ptr, row_group_ptr, column_group_ptr, rows, columns, row_inside, column_inside,
    WEIGHTED: tl.constexpr, GROUPED: tl.constexpr, SAME: tl.constexpr, ANCHORS_ARE_ROWS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """The factor of a pair's dissimilarity: the candidate's weight, 0 out of scope or outside the tile."""
    row, column = row_inside.to(ACCUMULATE), column_inside.to(ACCUMULATE)
    if WEIGHTED:
        if ANCHORS_ARE_ROWS:
            column = _vector(weight_ptr, columns, column_inside, 0.0)
        else:
            row = _vector(weight_ptr, rows, row_inside, 0.0)
    factors = row[:, None] * column[None, :]
    if GROUPED:
        own = _vector(row_group_ptr, rows, row_inside, 0)
        other = _vector(column_group_ptr, columns, column_inside, 0)
        factors = tl.where((own[:, None] == other[None, :]) == SAME, factors, 0.0)
    return factors


@triton.jit
def expected_pixel_contrast_forward_kernel(
    anchors_ptr, positives_ptr, candidates_ptr, inverse_anchor_ptr, inverse_positive_ptr, inverse_candidate_ptr,
    anchor_scores_ptr, candidate_scores_ptr, half_anchor_ptr, half_candidate_ptr, weight_ptr, anchor_group_ptr,
    candidate_group_ptr, temperature_ptr, loss_ptr, pull_ptr, log_mass_ptr, weight_sum_ptr, anchors, candidates,
    num_negatives, panels, score_panels,
    SCORED: tl.constexpr, WEIGHTED: tl.constexpr, GROUPED: tl.constexpr, SAME: tl.constexpr, WIDTH: tl.constexpr,
    SCORE_WIDTH: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr, FLOW_PRECISION: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """loss, pull, log_mass and weight_sum of BLOCK_I anchors."""
    first = tl.program_id(0) * BLOCK_I
    i = first + tl.arange(0, BLOCK_I)
    inside = i < anchors
    inverse = _vector(inverse_anchor_ptr, i, inside, 0.0)
    ACCUMULATE: tl.constexpr = inverse_anchor_ptr.dtype.element_ty
    scale = (1.0 / tl.load(temperature_ptr)).to(ACCUMULATE)
    if SCORED:
        half = _vector(half_anchor_ptr, i, inside, 0.0)
    top = tl.full([BLOCK_I], -3.4e38, ACCUMULATE)  # finite, so that it can be subtracted from itself
    mass, total = tl.zeros([BLOCK_I], ACCUMULATE), tl.zeros([BLOCK_I], ACCUMULATE)
    for begin in range(0, candidates, BLOCK_J):
        j = begin + tl.arange(0, BLOCK_J)
        present = j < candidates
        logits = _products(
            anchors_ptr, first, inside, candidates_ptr, begin, present, panels,
            WIDTH, BLOCK_I, BLOCK_J, BLOCK_W, WIDEN, PRECISION,
        )  # fmt: skip
        logits *= (inverse * scale)[:, None] * _vector(inverse_candidate_ptr, j, present, 0.0)[None, :]
        weights = _factors(
            weight_ptr, anchor_group_ptr, candidate_group_ptr, i, j, inside, present,
            WEIGHTED, GROUPED, SAME, True, ACCUMULATE,
        )  # fmt: skip
        if SCORED:
            products = _products(
                anchor_scores_ptr, first, inside, candidate_scores_ptr, begin, present, score_panels,
                SCORE_WIDTH, BLOCK_I, BLOCK_J, BLOCK_W, WIDEN, PRECISION,
            )  # fmt: skip
            norms = half[:, None] + _vector(half_candidate_ptr, j, present, 0.0)[None, :]
            weights *= tl.maximum(norms - products, 0.0)
        logits = tl.where(weights > 0, logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, axis=1))
        mass = mass * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[:, None]) * weights, axis=1)
        total += tl.sum(weights, axis=1)
        top = higher
    positive = tl.zeros([BLOCK_I], ACCUMULATE)
    for begin in range(0, WIDTH, BLOCK_W):
        a = _panel(anchors_ptr, first, inside, begin, WIDTH, BLOCK_W, True)
        positive += tl.sum(a * _panel(positives_ptr, first, inside, begin, WIDTH, BLOCK_W, True), axis=1)
    positive *= inverse * _vector(inverse_positive_ptr, i, inside, 0.0) * scale
    log_mass = tl.log(mass) + top
    gap = tl.log(tl.zeros_like(positive) + num_negatives) + log_mass - tl.log(total) - positive
    gap = tl.where(total > 0, gap, float("-inf"))
    small = tl.exp(-tl.abs(gap))
    # log(1 + x), and x if that is too small to change 1.
    rest = tl.where(1 + small == 1, small, tl.log(1 + small) * (small / ((1 + small) - 1)))
    tl.store(loss_ptr + i, tl.maximum(gap, 0.0) + rest, mask=inside)
    tl.store(pull_ptr + i, tl.where(gap > 0, 1.0, small) / (1 + small), mask=inside)
    tl.store(log_mass_ptr + i, log_mass, mask=inside)
    tl.store(weight_sum_ptr + i, total, mask=inside)


@triton.jit
def expected_pixel_contrast_backward_kernel(
    x_ptr, y_ptr, inverse_x_ptr, inverse_y_ptr, x_scores_ptr, y_scores_ptr, half_x_ptr, half_y_ptr, weight_ptr,
    x_group_ptr, y_group_ptr, temperature_ptr, pulled_ptr, log_mass_ptr, weight_sum_ptr, grad_ptr, grad_scores_ptr,
    rows, columns, panels, score_panels,
    ANCHORS_ARE_ROWS: tl.constexpr, WITH_SCORES: tl.constexpr, SCORED: tl.constexpr, WEIGHTED: tl.constexpr,
    GROUPED: tl.constexpr, SAME: tl.constexpr, WIDTH: tl.constexpr, SCORE_WIDTH: tl.constexpr, WIDEN: tl.constexpr,
    PRECISION: tl.constexpr, FLOW_PRECISION: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """A panel of the gradients of BLOCK_I rows x (unit embeddings and scores), summed over columns y.

    grad: for anchors sum_q w_q exp(s_q - log_mass) c_q; for candidates the same sum over anchors, weighted by
    pulled / temperature. pulled (A,) = grad * pull.
    """
    first = tl.program_id(0) * BLOCK_I
    i = first + tl.arange(0, BLOCK_I)
    own = tl.program_id(1) * BLOCK_G
    inside = i < rows
    ACCUMULATE: tl.constexpr = inverse_x_ptr.dtype.element_ty
    scale = (1.0 / tl.load(temperature_ptr)).to(ACCUMULATE)
    inverse = _vector(inverse_x_ptr, i, inside, 0.0)
    grad = tl.zeros([BLOCK_I, BLOCK_G], ACCUMULATE)
    if SCORED:
        half = _vector(half_x_ptr, i, inside, 0.0)
    if WITH_SCORES:
        grad_scores = tl.zeros([BLOCK_I, BLOCK_G], ACCUMULATE)
        slopes = tl.zeros([BLOCK_I], ACCUMULATE)
    for begin in range(0, columns, BLOCK_J):
        j = begin + tl.arange(0, BLOCK_J)
        present = j < columns
        inverse_y = _vector(inverse_y_ptr, j, present, 0.0)
        logits = _products(
            x_ptr, first, inside, y_ptr, begin, present, panels, WIDTH, BLOCK_I, BLOCK_J, BLOCK_W, WIDEN, PRECISION
        )
        logits *= (inverse * scale)[:, None] * inverse_y[None, :]
        factors = _factors(
            weight_ptr, x_group_ptr, y_group_ptr, i, j, inside, present,
            WEIGHTED, GROUPED, SAME, ANCHORS_ARE_ROWS, ACCUMULATE,
        )  # fmt: skip
        weights = factors
        if SCORED:
            products = _products(
                x_scores_ptr, first, inside, y_scores_ptr, begin, present, score_panels,
                SCORE_WIDTH, BLOCK_I, BLOCK_J, BLOCK_W, WIDEN, PRECISION,
            )  # fmt: skip
            norms = half[:, None] + _vector(half_y_ptr, j, present, 0.0)[None, :]
            weights *= tl.maximum(norms - products, 0.0)
        if ANCHORS_ARE_ROWS:
            log_mass = _vector(log_mass_ptr, i, inside, 0.0)[:, None]
            pulled = _vector(pulled_ptr, i, inside, 0.0)[:, None]
            weight_sum = _vector(weight_sum_ptr, i, inside, 0.0)[:, None]
            of_columns = inverse_y
        else:
            log_mass = _vector(log_mass_ptr, j, present, 0.0)[None, :]
            of_columns = _vector(pulled_ptr, j, present, 0.0)
            pulled = of_columns[None, :]
            weight_sum = _vector(weight_sum_ptr, j, present, 0.0)[None, :]
            of_columns *= inverse_y * scale
        likelihood = tl.where(weights > 0, tl.exp(logits - log_mass), 0.0)
        y = _panel(y_ptr, begin, present, own, WIDTH, BLOCK_G, True)
        flow = weights * likelihood * of_columns[None, :]
        grad += tl.dot(flow, y, input_precision=FLOW_PRECISION, out_dtype=ACCUMULATE)
        if WITH_SCORES:
            slope = (likelihood - tl.where(weight_sum > 0, 1.0 / weight_sum, 0.0)) * pulled * factors
            slopes += tl.sum(slope, axis=1)
            y = _panel(y_scores_ptr, begin, present, own, SCORE_WIDTH, BLOCK_G, True)
            grad_scores += tl.dot(slope, y, input_precision=PRECISION, out_dtype=ACCUMULATE)
    at = i.to(tl.int64)[:, None]
    w = own + tl.arange(0, BLOCK_G)
    tl.store(grad_ptr + at * WIDTH + w[None, :], grad, mask=inside[:, None] & (w < WIDTH)[None, :])
    if WITH_SCORES:
        own_scores = _panel(x_scores_ptr, first, inside, own, SCORE_WIDTH, BLOCK_G, True)
        tl.store(
            grad_scores_ptr + at * SCORE_WIDTH + w[None, :],
            slopes[:, None] * own_scores - grad_scores,
            mask=inside[:, None] & (w < SCORE_WIDTH)[None, :],
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


class _Side:
    """One side of the tiles: padded embeddings, padded scores minus the candidates' centre, and the norms of both."""

    def __init__(self, embeddings: Tensor, scores: Tensor | None, centre: Tensor | None, normalize: bool) -> None:
        compute = torch.promote_types(embeddings.dtype, torch.float32)
        self.rows = padded_rows(embeddings)
        self.inverse = _inverse_norms(self.rows, compute, normalize)
        self.scores, self.half = self.inverse, self.inverse
        if scores is not None:
            self.scores = padded_rows(scores - centre)
            self.half = self.scores.square().sum(1) / 2


def _inverse_norms(x: Tensor, compute: torch.dtype, normalize: bool) -> Tensor:
    if not normalize:
        return torch.ones(x.shape[0], dtype=compute, device=x.device)
    return torch.linalg.vector_norm(x, dim=1, dtype=compute).clamp_min(1e-12).reciprocal()


def _sides(
    anchors: Tensor, candidates: Tensor, scores: tuple[Tensor | None, Tensor | None], normalize: bool
) -> tuple[_Side, _Side]:
    centre = None if scores[1] is None else scores[1].contiguous().sum(0) / max(1, len(scores[1]))
    return _Side(anchors, scores[0], centre, normalize), _Side(candidates, scores[1], centre, normalize)


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
    a, c = _sides(anchors, candidates, (anchor_scores, candidate_scores), normalize)
    loss, pull, log_mass, weight_sum = (torch.empty_like(a.inverse) for _ in range(4))
    if count == 0:
        return loss, pull, log_mass, weight_sum
    p = padded_rows(positives)
    inverse_positive = _inverse_norms(p, a.inverse.dtype, normalize)
    config = _tuning.expected_forward(a.rows.dtype)
    with device_of(p):
        expected_pixel_contrast_forward_kernel[(triton.cdiv(count, config["BLOCK_I"]),)](
            a.rows, p, c.rows, a.inverse, inverse_positive, c.inverse, a.scores, c.scores, a.half, c.half,
            *_details(a, candidate_weight, anchor_group, candidate_group), temperature, loss, pull, log_mass,
            weight_sum, count, candidates.shape[0], num_negatives, *_panels(a, config),
            SCORED=anchor_scores is not None, WEIGHTED=candidate_weight is not None, GROUPED=anchor_group is not None,
            SAME=same, WIDTH=p.shape[1], SCORE_WIDTH=a.scores.shape[-1], **config,
        )  # fmt: skip
    return loss, pull, log_mass, weight_sum


def _panels(x: _Side, config: dict[str, int]) -> tuple[int, int]:
    """The numbers of panels in which embeddings and scores are multiplied."""
    return triton.cdiv(x.rows.shape[1], config["BLOCK_W"]), triton.cdiv(x.scores.shape[-1], config["BLOCK_W"])


def _details(a: _Side, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Contiguous tensors; absent ones become a dummy that the kernel does not read."""
    return tuple(a.inverse if x is None else x.contiguous() for x in tensors)


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
    a, c = _sides(anchors, candidates, (anchor_scores, candidate_scores), normalize)
    weight, anchor_group_, candidate_group_ = _details(a, candidate_weight, anchor_group, candidate_group)
    pulled = grad * pull
    with_scores = with_scores and anchor_scores is not None

    def side(x: _Side, y: _Side, groups: tuple[Tensor, Tensor], anchors_are_rows: bool) -> tuple[Tensor, Tensor]:
        rows, width, score_width = len(x.rows), x.rows.shape[1], x.scores.shape[-1]
        grads = torch.zeros(rows, width, dtype=pull.dtype, device=pull.device)
        grad_scores = torch.zeros_like(x.scores) if with_scores else pull.new_empty(0)
        if rows == 0 or width == 0:
            return grads, grad_scores
        config = _tuning.expected_backward(x.rows.dtype)
        programs = triton.cdiv(max(width, score_width if with_scores else 1), config["BLOCK_G"])
        expected_pixel_contrast_backward_kernel[(triton.cdiv(rows, config["BLOCK_I"]), programs)](
            x.rows, y.rows, x.inverse, y.inverse, x.scores, y.scores, x.half, y.half, weight, *groups, temperature,
            pulled, log_mass, weight_sum, grads, grad_scores, rows, len(y.rows),
            *_panels(x, config),
            ANCHORS_ARE_ROWS=anchors_are_rows, WITH_SCORES=with_scores, SCORED=anchor_scores is not None,
            WEIGHTED=candidate_weight is not None, GROUPED=anchor_group is not None, SAME=same, WIDTH=width,
            SCORE_WIDTH=score_width, **config,
        )  # fmt: skip
        return grads, grad_scores

    with device_of(pull):
        of_anchors, anchor_scores_grad = side(a, c, (anchor_group_, candidate_group_), True)
        of_candidates, candidate_scores_grad = side(c, a, (candidate_group_, anchor_group_), False)
        of_anchors = (of_anchors * pull[:, None])[:, : anchors.shape[1]]
        own = rows_backward(grad, anchors, positives, pull, of_anchors, temperature, normalize, True)
        grad_candidates = _through_norms(of_candidates, c, candidates, normalize)
    scores = pull.new_empty(0), pull.new_empty(0)
    if with_scores and anchor_scores is not None:
        width = anchor_scores.shape[1]
        scores = anchor_scores_grad[:, :width].contiguous(), candidate_scores_grad[:, :width].contiguous()
    return own[0], own[1], grad_candidates, *scores


def _through_norms(grads: Tensor, side: _Side, candidates: Tensor, normalize: bool) -> Tensor:
    (size, width), padded = candidates.shape, side.rows.shape[1]
    if not normalize or candidates.numel() == 0:
        return grads[:, :width].to(candidates.dtype).contiguous()
    result = torch.empty_like(candidates, memory_format=torch.contiguous_format)
    config = _tuning.rows_backward(padded, side.rows.dtype)
    expected_pixel_contrast_unit_rows_backward_kernel[(triton.cdiv(size, config["BLOCK_A"]),)](
        grads, side.rows, result, size, WIDTH=padded, OUT_WIDTH=width, **config
    )
    return result
