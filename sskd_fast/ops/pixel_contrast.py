"""Pixel contrast, public functions: embeddings and negatives -> NT-Xent loss, and its expected form."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sskd_fast import _native
from sskd_fast.ops._arguments import (
    check_choice,
    check_count,
    check_device,
    check_embeddings,
    check_floating,
    check_groups,
    check_index_values,
    check_indices,
    check_margin,
    check_same,
    check_temperature,
    check_unit_rows,
    check_weight,
    check_weight_values,
)
from sskd_fast.ops._library import register
from sskd_fast.ops.negative_sampling import SCOPES
from sskd_fast.reference import pixel_contrast as reference

REDUCTIONS = ("mean", "none", "sum")

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
    anchors, positives, candidates = _embeddings(anchors, positives, candidates)
    negatives = check_indices("negatives", negatives, (anchors.shape[0], "R"))
    check_device("anchors", anchors, negatives=negatives)
    check_choice("reduction", reduction, REDUCTIONS)
    settings = check_temperature(temperature), check_margin(margin), normalize
    embeddings = _distinct(anchors, positives, candidates)
    loss: Tensor = PixelContrastFunction.apply(*embeddings, negatives, *settings, backend)
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
    anchors, positives, candidates = _embeddings(anchors, positives, candidates)
    size, count = anchors.shape[0], candidates.shape[0]
    compute = _compute_dtype(anchors)
    check_count("num_negatives", num_negatives)
    temperature = check_temperature(temperature)
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
    inputs = _distinct(anchors, positives, candidates, anchor_scores, candidate_scores, weight, own, group)
    loss: Tensor = ExpectedPixelContrastFunction.apply(
        *inputs,
        scope == "same",
        num_negatives,
        temperature,
        normalize,
        backend,
    )
    return _reduced(loss, "mean")


class PixelContrastFunction(torch.autograd.Function):
    """Loss of every anchor (A,) from embeddings and negatives."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        positives: Tensor,
        candidates: Tensor,
        negatives: Tensor,
        temperature: float,
        margin: float | None,
        normalize: bool,
        backend: str,
    ) -> Tensor:
        inputs = anchors, positives, candidates, negatives
        with_grad = any(ctx.needs_input_grad[:3])
        loss, *state = _pixel_contrast(*inputs, temperature, margin, normalize, with_grad, backend)
        ctx.save_for_backward(*inputs, *state)
        ctx.settings = temperature, normalize, *ctx.needs_input_grad[1:3], backend
        result: Tensor = loss
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        grads = _pixel_contrast_backward(grad, *ctx.saved_tensors, *ctx.settings)
        return *_needed(grads, ctx.needs_input_grad), None, None, None, None, None


class ExpectedPixelContrastFunction(torch.autograd.Function):
    """Expected loss of every anchor (A,) from embeddings and unit score vectors."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        positives: Tensor,
        candidates: Tensor,
        anchor_scores: Tensor | None,
        candidate_scores: Tensor | None,
        weight: Tensor | None,
        own: Tensor | None,
        group: Tensor | None,
        same: bool,
        num_negatives: int,
        temperature: float,
        normalize: bool,
        backend: str,
    ) -> Tensor:
        inputs = anchors, positives, candidates, anchor_scores, candidate_scores, weight, own, group
        loss, *state = _expected(*inputs, same, num_negatives, temperature, normalize, backend)
        ctx.save_for_backward(*inputs, *state)
        ctx.same, ctx.settings = same, (temperature, normalize, any(ctx.needs_input_grad[3:5]), backend)
        result: Tensor = loss
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> _Grads:
        inputs, state = ctx.saved_tensors[:8], ctx.saved_tensors[8:]
        grads = _expected_backward(grad, *inputs, ctx.same, *state, *ctx.settings)
        return *_needed(grads, ctx.needs_input_grad), *[None] * 8


def _run(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    negatives: Tensor,
    temperature: float,
    margin: float | None,
    normalize: bool,
    with_grad: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    inputs = *_stored(backend, anchors, positives, candidates), negatives
    if backend == "cpu":
        return _native.operators().pixel_contrast(*inputs, temperature, margin, normalize, with_grad)
    check_index_values("negatives", negatives, candidates.shape[0])
    return tuple(reference.pixel_contrast_forward(*inputs, temperature, margin, normalize, with_grad))


def _run_backward(
    grad: Tensor,
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    negatives: Tensor,
    share: Tensor,
    pull: Tensor,
    pulled: Tensor,
    temperature: float,
    normalize: bool,
    with_positives: bool,
    with_candidates: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    inputs = *_stored(backend, anchors, positives, candidates), negatives
    if backend == "cpu":
        run = _native.operators().pixel_contrast_backward
        grads = run(grad, *inputs, share, pull, pulled, temperature, normalize, with_positives, with_candidates)
    else:
        state = reference.ContrastState(grad, share, pull, pulled)
        needs = with_positives, with_candidates
        grads = reference.pixel_contrast_backward(grad, *inputs, state, temperature, normalize, *needs)
    return tuple(g.to(anchors.dtype) for g in grads)


def _fake(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    negatives: Tensor,
    temperature: float,
    margin: float | None,
    normalize: bool,
    with_grad: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    (count, width), draws, compute = anchors.shape, negatives.shape[1], _compute_dtype(anchors)
    kept = count if with_grad else 0
    shapes = (count,), (kept, draws), (count,), (kept, width)
    return tuple(anchors.new_empty(shape, dtype=compute) for shape in shapes)


def _fake_backward(
    grad: Tensor, anchors: Tensor, positives: Tensor, candidates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *_, with_positives, with_candidates, _ = rest
    kept = anchors, positives[: len(positives) * with_positives], candidates[: len(candidates) * with_candidates]
    return tuple(x.new_empty(x.shape) for x in kept)


def _run_expected(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    anchor_scores: Tensor | None,
    candidate_scores: Tensor | None,
    weight: Tensor | None,
    own: Tensor | None,
    group: Tensor | None,
    same: bool,
    num_negatives: int,
    temperature: float,
    normalize: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    if weight is not None:
        check_weight_values(weight)
    if anchor_scores is not None and candidate_scores is not None:
        check_unit_rows("anchor_scores", anchor_scores)
        check_unit_rows("candidate_scores", candidate_scores)
    inputs = _stored(backend, anchors, positives, candidates)
    details = anchor_scores, candidate_scores, weight, own, group, same
    if backend == "cpu":
        run = _native.operators().expected_pixel_contrast
        return run(*inputs, *details, num_negatives, temperature, normalize)
    w = _dissimilarity(*details)
    with torch.autocast(anchors.device.type, enabled=False):
        return tuple(reference.expected_contrast_forward(*inputs, w, num_negatives, temperature, normalize))


def _run_expected_backward(
    grad: Tensor,
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    anchor_scores: Tensor | None,
    candidate_scores: Tensor | None,
    weight: Tensor | None,
    own: Tensor | None,
    group: Tensor | None,
    same: bool,
    pull: Tensor,
    log_mass: Tensor,
    weight_sum: Tensor,
    temperature: float,
    normalize: bool,
    with_scores: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    inputs = _stored(backend, anchors, positives, candidates)
    details = anchor_scores, candidate_scores, weight, own, group, same
    if backend == "cpu":
        run = _native.operators().expected_pixel_contrast_backward
        grads = run(grad, *inputs, *details, pull, log_mass, weight_sum, temperature, normalize, with_scores)
    else:
        state = reference.ExpectedState(grad, pull, log_mass, weight_sum)
        w = _dissimilarity(*details)
        with torch.autocast(anchors.device.type, enabled=False):
            backward = reference.expected_contrast_backward
            grads = backward(grad, *inputs, w, state, temperature, normalize, with_scores)
    return *(g.to(anchors.dtype) for g in grads[:3]), *grads[3:]


def _fake_expected(anchors: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(anchors.new_empty(anchors.shape[0], dtype=_compute_dtype(anchors)) for _ in range(4))


def _fake_expected_backward(
    grad: Tensor,
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    anchor_scores: Tensor | None,
    candidate_scores: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    with_scores = rest[-2]
    scores = (
        x.new_empty(x.shape) if x is not None and with_scores else grad.new_empty(0)
        for x in (anchor_scores, candidate_scores)
    )
    return *(x.new_empty(x.shape) for x in (anchors, positives, candidates)), *scores


_EMBEDDINGS = "Tensor anchors, Tensor positives, Tensor candidates"
_DISSIMILARITY = (
    "Tensor? anchor_scores, Tensor? candidate_scores, Tensor? candidate_weight, Tensor? anchor_group,"
    " Tensor? candidate_group, bool same"
)
_pixel_contrast = register(
    f"pixel_contrast({_EMBEDDINGS}, Tensor negatives, float temperature, float? margin, bool normalize, bool with_grad,"
    " str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)
_pixel_contrast_backward = register(
    f"pixel_contrast_backward(Tensor grad, {_EMBEDDINGS}, Tensor negatives, Tensor share, Tensor pull, Tensor pulled,"
    " float temperature, bool normalize, bool with_positives, bool with_candidates, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
_expected = register(
    f"expected_pixel_contrast({_EMBEDDINGS}, {_DISSIMILARITY}, int num_negatives, float temperature, bool normalize,"
    " str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_expected,
    _fake_expected,
)
_expected_backward = register(
    f"expected_pixel_contrast_backward(Tensor grad, {_EMBEDDINGS}, {_DISSIMILARITY}, Tensor pull, Tensor log_mass,"
    " Tensor weight_sum, float temperature, bool normalize, bool with_scores, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_expected_backward,
    _fake_expected_backward,
)


def _dissimilarity(
    anchor_scores: Tensor | None,
    candidate_scores: Tensor | None,
    weight: Tensor | None,
    own: Tensor | None,
    group: Tensor | None,
    same: bool,
) -> reference.Dissimilarity:
    groups = None if own is None or group is None else (own, group)
    return reference.Dissimilarity.centred(anchor_scores, candidate_scores, weight, groups, same)


def _compute_dtype(embeddings: Tensor) -> torch.dtype:
    """Of sums and products: double for double, single precision otherwise."""
    return torch.float64 if embeddings.dtype == torch.float64 else torch.float32


def _stored(backend: str, a: Tensor, p: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The embeddings as the backend reads them: bfloat16 stays in "cpu", other half precision is widened first."""
    if backend == "cpu" and a.dtype == torch.bfloat16:
        return a, p, c
    compute = _compute_dtype(a)
    return a.to(compute), p.to(compute), c.to(compute)


def _needed(grads: tuple[Tensor, ...], needs: tuple[bool, ...]) -> _Grads:
    return tuple(g if need else None for g, need in zip(grads, needs, strict=False))


def _embeddings(anchors: Tensor, positives: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    anchors = check_embeddings("anchors", anchors, ("A", "D"))
    positives = check_embeddings("positives", positives, tuple(anchors.shape))
    candidates = check_embeddings("candidates", candidates, ("M", anchors.shape[1]))
    check_same("anchors", anchors, positives=positives, candidates=candidates)
    return anchors, positives, candidates


def _distinct(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors, a view in place of each that was there before: compilers take no tensor twice in one Function."""
    seen: list[Tensor] = []
    result = []
    for tensor in tensors:
        again = tensor is not None and any(tensor is other for other in seen)
        result.append(tensor.view_as(tensor) if tensor is not None and again else tensor)
        if tensor is not None:
            seen.append(tensor)
    return tuple(result)


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / max(1, loss.shape[0])
