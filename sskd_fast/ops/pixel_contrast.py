"""Pixel contrast, public functions: embeddings and negatives -> NT-Xent loss, and its expected form."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sskd_fast import _backend
from sskd_fast.ops._arguments import (
    check_choice,
    check_count,
    check_floating,
    check_groups,
    check_indices,
    check_same,
    check_temperature,
)
from sskd_fast.ops.negative_sampling import SCOPES, check_weight
from sskd_fast.reference import pixel_contrast as reference

REDUCTIONS = ("mean", "none", "sum")

_PIXEL_CONTRAST = {"reference": (reference.pixel_contrast_forward, reference.pixel_contrast_backward)}
_EXPECTED = {"reference": (reference.expected_contrast_forward, reference.expected_contrast_backward)}

_Grads: TypeAlias = tuple[Tensor | None, ...]


def pixel_contrast(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    negatives: Tensor,
    temperature: float,
    *,
    margin: float | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """NT-Xent of every anchor pixel against its positive and its drawn negatives.

    anchors, positives: (A, D); candidates: (M, D); floating point of one dtype. negatives: (A, R) int32 or int64
    indices into the candidates, -1 ignored. temperature > 0. margin: similarity below which a negative no longer
    pushes, s- = max(0, <a, c> - margin) / T. normalize: L2-normalise the embeddings first.
    Returns the mean or the sum over the anchors (0 for none), or the (A,) losses for reduction "none". An anchor
    without a negative has loss 0. Differentiable once in the three embeddings.
    Raises ValueError or TypeError for a wrong argument, RuntimeError where an explicit backend cannot run.
    Source: L_pxl = mean over anchors of -log(exp(s+) / (exp(s+) + sum_r exp(s-_r))).
    """
    anchors, positives, candidates = _embeddings(anchors, positives, candidates, normalize)
    negatives = check_indices("negatives", negatives, (anchors.shape[0], "R"), candidates.shape[0])
    check_same("anchors", anchors, negatives=negatives)
    check_choice("reduction", reduction, REDUCTIONS)
    temperature = check_temperature(temperature)
    chosen = _backend.resolve(backend, anchors.device)
    loss: Tensor = PixelContrastFunction.apply(anchors, positives, candidates, negatives, temperature, margin, chosen)
    return _reduced(loss, reduction)


def expected_pixel_contrast(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    anchor_scores: Tensor | None,
    candidate_scores: Tensor | None,
    num_negatives: int,
    temperature: float,
    *,
    anchor_group: Tensor | None = None,
    candidate_group: Tensor | None = None,
    scope: str = "all",
    normalize: bool = True,
    backend: str = "auto",
    candidate_weight: Tensor | None = None,
) -> Tensor:
    """The pixel contrast loss without sampling noise: every candidate, weighted as the sampler would draw it.

    Embeddings, temperature and normalize as for `pixel_contrast`; scores (A, E) and (M, E), groups, scope and
    candidate_weight as for `sample_negatives`, both scores None for equal weights. num_negatives: R, by which the
    weighted mean over the candidates is multiplied. No A x M matrix is kept: tiles are computed again in the backward
    pass. Differentiable once in the embeddings and in the scores.
    Returns the mean over the anchors; 0 for an anchor with no candidate of positive weight in scope.
    Raises ValueError or TypeError for a wrong argument, RuntimeError where an explicit backend cannot run.
    Source: sum_r exp(s-_r) replaced by R sum_q w_q exp(s_q) / sum_q w_q, w = 1 - <y_a, y_q>.
    """
    anchors, positives, candidates = _embeddings(anchors, positives, candidates, normalize)
    size, count = anchors.shape[0], candidates.shape[0]
    check_count("num_negatives", num_negatives)
    temperature = check_temperature(temperature)
    check_choice("scope", scope, SCOPES)
    if (anchor_scores is None) != (candidate_scores is None):
        raise ValueError("anchor_scores and candidate_scores: expected both, or None for both (equal weights)")
    if anchor_scores is not None and candidate_scores is not None:
        anchor_scores = check_floating("anchor_scores", anchor_scores, (size, "E")).to(anchors.dtype)
        width = anchor_scores.shape[1]
        candidate_scores = check_floating("candidate_scores", candidate_scores, (count, width)).to(anchors.dtype)
    weight = None if candidate_weight is None else check_weight(candidate_weight, count).to(anchors.dtype)
    groups = None
    if scope != "all":
        if anchor_group is None or candidate_group is None:
            raise ValueError(f"scope={scope!r} needs anchor_group and candidate_group")
        own = check_groups("anchor_group", anchor_group, size)
        groups = own, check_groups("candidate_group", candidate_group, count)
    chosen = _backend.resolve(backend, anchors.device)
    loss: Tensor = ExpectedPixelContrastFunction.apply(
        anchors,
        positives,
        candidates,
        anchor_scores,
        candidate_scores,
        weight,
        groups,
        scope == "same",
        num_negatives,
        temperature,
        chosen,
    )
    return _reduced(loss, "mean")


class PixelContrastFunction(torch.autograd.Function):
    """Loss of every anchor (A,) from normalised embeddings and negatives."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        positives: Tensor,
        candidates: Tensor,
        negatives: Tensor,
        temperature: float,
        margin: float | None,
        backend: str,
    ) -> Tensor:
        run = _PIXEL_CONTRAST[backend][0]
        loss, share, pull = run(anchors, positives, candidates, negatives, temperature, margin)
        ctx.save_for_backward(anchors, positives, candidates, negatives, share, pull)
        ctx.temperature, ctx.backend = temperature, backend
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        run = _PIXEL_CONTRAST[ctx.backend][1]
        anchors, positives, candidates, negatives, share, pull = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[:3])
        grads = run(grad, anchors, positives, candidates, negatives, share, pull, ctx.temperature, needs)
        return *grads, None, None, None, None


class ExpectedPixelContrastFunction(torch.autograd.Function):
    """Expected loss of every anchor (A,) from normalised embeddings and unit score vectors."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        positives: Tensor,
        candidates: Tensor,
        anchor_scores: Tensor | None,
        candidate_scores: Tensor | None,
        weight: Tensor | None,
        groups: tuple[Tensor, Tensor] | None,
        same: bool,
        num_negatives: int,
        temperature: float,
        backend: str,
    ) -> Tensor:
        scores = None
        if anchor_scores is not None and candidate_scores is not None:
            centre = candidate_scores.mean(0) if len(candidate_scores) else 0
            scores = anchor_scores - centre, candidate_scores - centre
        w = reference.Dissimilarity(scores, weight, groups, same)
        with torch.autocast(anchors.device.type, enabled=False):
            loss, state = _EXPECTED[backend][0](anchors, positives, candidates, w, num_negatives, temperature)
        ctx.save_for_backward(anchors, positives, candidates, *state)
        ctx.dissimilarity, ctx.temperature, ctx.backend = w, temperature, backend
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        anchors, positives, candidates, *state = ctx.saved_tensors
        with_scores = any(ctx.needs_input_grad[3:5])
        with torch.autocast(anchors.device.type, enabled=False):
            grads = _EXPECTED[ctx.backend][1](
                grad,
                anchors,
                positives,
                candidates,
                ctx.dissimilarity,
                reference.ExpectedState(*state),
                ctx.temperature,
                with_scores,
            )
        return *grads, None, None, None, None, None, None


def _embeddings(
    anchors: Tensor, positives: Tensor, candidates: Tensor, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    anchors = check_floating("anchors", anchors, ("A", "D"))
    positives = check_floating("positives", positives, tuple(anchors.shape))
    candidates = check_floating("candidates", candidates, ("M", anchors.shape[1]))
    check_same("anchors", anchors, positives=positives, candidates=candidates)
    if not normalize:
        return anchors, positives, candidates
    return F.normalize(anchors, dim=-1), F.normalize(positives, dim=-1), F.normalize(candidates, dim=-1)


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / max(1, loss.shape[0])
