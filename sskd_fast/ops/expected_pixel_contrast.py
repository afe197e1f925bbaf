"""Pixel contrast without sampling, public function: embeddings and score vectors -> expected NT-Xent loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sskd_fast.ops._arguments import (
    check_choice,
    check_count,
    check_device,
    check_floating,
    check_groups,
    check_temperature,
    check_temperature_value,
    check_unit_rows,
    check_weight,
    check_weight_values,
)
from sskd_fast.ops._embeddings import check_embeddings, compute_dtype, distinct, reduced, stored
from sskd_fast.ops._gradients import wanted_gradients
from sskd_fast.ops._library import implementation, register
from sskd_fast.ops.negative_sampling import SCOPES
from sskd_fast.reference.expected_pixel_contrast import ExpectedState


def expected_pixel_contrast(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    anchor_scores: Tensor | None,
    candidate_scores: Tensor | None,
    num_negatives: int,
    temperature: float | Tensor,
    *,
    anchor_group: Tensor | None = None,
    candidate_group: Tensor | None = None,
    scope: str = "all",
    normalize: bool = True,
    backend: str = "auto",
    candidate_weight: Tensor | None = None,
) -> Tensor:
    """The pixel contrast loss without sampling noise: every candidate, weighted as the sampler would draw it.

    Embeddings, temperature and normalize as for `pixel_contrast`. Scores (A, E) and (M, E), groups, scope and
    candidate_weight as for `sample_negatives`; both scores None for equal weights. num_negatives: R, which multiplies
    the weighted mean over the candidates. No A x M matrix is kept: the backward pass computes tiles again. In C++ it
    holds one tile of at most 256 anchors x M: 1 KB a candidate in float32, and 2 KB if the scores want gradients.
    Differentiable once in the embeddings and in the scores.
    Returns the mean over the anchors. An anchor with no candidate of positive weight in scope has loss 0.
    Raises ValueError or TypeError for a wrong argument, RuntimeError if an explicit backend cannot run.
    Source: sum_r exp(s-_r) replaced by R sum_q w_q exp(s_q) / sum_q w_q, w = 1 - <y_a, y_q>.
    """
    anchors, positives, candidates = check_embeddings(anchors, positives, candidates)
    size, count = anchors.shape[0], candidates.shape[0]
    compute = compute_dtype(anchors)
    check_count("num_negatives", num_negatives)
    check_choice("scope", scope, SCOPES)
    if (anchor_scores is None) != (candidate_scores is None):
        raise ValueError("anchor_scores and candidate_scores: expected both, or None for both (equal weights)")
    if anchor_scores is not None and candidate_scores is not None:
        anchor_scores = check_floating("anchor_scores", anchor_scores, (size, "E")).to(compute)
        width = anchor_scores.shape[1]
        candidate_scores = check_floating("candidate_scores", candidate_scores, (count, width)).to(compute)
    weight = None if candidate_weight is None else check_weight(candidate_weight, count).to(compute)
    own = group = None
    if scope != "all":
        if anchor_group is None or candidate_group is None:
            raise ValueError(f"scope={scope!r} needs anchor_group and candidate_group")
        own = check_groups("anchor_group", anchor_group, size)
        group = check_groups("candidate_group", candidate_group, count)
    others = {"anchor_scores": anchor_scores, "candidate_scores": candidate_scores, "candidate_weight": weight}
    check_device("anchors", anchors, **others, anchor_group=own, candidate_group=group)
    inputs = distinct(anchors, positives, candidates, anchor_scores, candidate_scores, weight, own, group)
    loss: Tensor = ExpectedPixelContrastFunction.apply(
        *inputs, scope == "same", num_negatives, check_temperature(temperature, anchors.device), normalize, backend
    )
    return reduced(loss, "mean")


class ExpectedPixelContrastFunction(torch.autograd.Function):
    """Expected loss of every anchor (A,) from embeddings and unit score vectors.

    The inputs are those of the raw operator: three embeddings, then the scores, weight and groups of anchors and
    candidates (each a tensor or None). Then come same, num_negatives, temperature, normalize, backend.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, same, _num_negatives, temperature, normalize, backend = inputs
        _anchors, _positives, _candidates, needs_anchor_scores, needs_candidate_scores, *_ = ctx.needs_input_grad
        with_scores = needs_anchor_scores or needs_candidate_scores
        loss: Tensor
        loss, pull, log_mass, weight_sum = _expected(*inputs)
        ctx.save_for_backward(*tensors, pull, log_mass, weight_sum, temperature)
        ctx.same, ctx.settings = same, (normalize, with_scores, backend)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, pull, log_mass, weight_sum, temperature = ctx.saved_tensors
        state = ctx.same, pull, log_mass, weight_sum, temperature
        return wanted_gradients(ctx, *_expected_backward(grad, *tensors, *state, *ctx.settings))


def _run(anchors: Tensor, positives: Tensor, candidates: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    anchor_scores, candidate_scores, weight, *_ = rest
    *details, num_negatives, temperature, normalize, backend = rest
    if weight is not None:
        check_weight_values(weight)
    if anchor_scores is not None:
        check_unit_rows("anchor_scores", anchor_scores)
        check_unit_rows("candidate_scores", candidate_scores)
    if backend != "cpu":
        check_temperature_value(temperature)
    embeddings = stored(backend, anchors, positives, candidates)
    run = implementation(backend, "expected_pixel_contrast")
    return tuple(run(*embeddings, *details, num_negatives, temperature, normalize))


def _run_backward(
    grad: Tensor, anchors: Tensor, positives: Tensor, candidates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *details, backend = rest
    embeddings = stored(backend, anchors, positives, candidates)
    run = implementation(backend, "expected_pixel_contrast_backward")
    grad_anchors, grad_positives, grad_candidates, *of_scores = run(grad, *embeddings, *details)
    return *(g.to(anchors.dtype) for g in (grad_anchors, grad_positives, grad_candidates)), *of_scores


def _fake(anchors: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(anchors.new_empty(anchors.shape[0], dtype=compute_dtype(anchors)) for _ in ExpectedState._fields)


def _fake_backward(
    grad: Tensor, anchors: Tensor, positives: Tensor, candidates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    anchor_scores, candidate_scores, *_, with_scores, _backend = rest
    scores = anchor_scores, candidate_scores
    of_scores = (x.new_empty(x.shape) if x is not None and with_scores else grad.new_empty(0) for x in scores)
    return *(x.new_empty(x.shape) for x in (anchors, positives, candidates)), *of_scores


_INPUTS = (
    "Tensor anchors, Tensor positives, Tensor candidates, Tensor? anchor_scores, Tensor? candidate_scores,"
    " Tensor? candidate_weight, Tensor? anchor_group, Tensor? candidate_group, bool same"
)
_expected = register(
    f"expected_pixel_contrast({_INPUTS}, int num_negatives, Tensor temperature, bool normalize, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)
_expected_backward = register(
    f"expected_pixel_contrast_backward(Tensor grad, {_INPUTS}, Tensor pull, Tensor log_mass, Tensor weight_sum,"
    " Tensor temperature, bool normalize, bool with_scores, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
