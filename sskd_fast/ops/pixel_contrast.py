"""Pixel contrast, public function: embeddings and drawn negatives -> NT-Xent loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sskd_fast.ops._arguments import (
    CHECK_THEIR_OWN,
    check_choice,
    check_device,
    check_index_values,
    check_indices,
    check_margin,
    check_temperature,
    check_temperature_value,
)
from sskd_fast.ops._embeddings import check_embeddings, compute_dtype, distinct, reduced, stored
from sskd_fast.ops._gradients import wanted_gradients
from sskd_fast.ops._library import implementation, register

REDUCTIONS = ("mean", "none", "sum")


def pixel_contrast(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    negatives: Tensor,
    temperature: float | Tensor,
    *,
    margin: float | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """NT-Xent of every anchor pixel against its positive and its drawn negatives.

    anchors, positives: (A, D); candidates: (M, D); floating point of one dtype. negatives: (A, R) int32 or int64
    indices into the candidates, -1 ignored. temperature > 0: a number or a one-element tensor, whose value can change
    under a compiled function or a CUDA graph. margin: similarity below which a negative no longer pushes,
    s- = max(0, <a, c> - margin) / T. normalize: L2-normalise the embeddings first.
    Returns the mean or the sum over the anchors (0 for none), or the (A,) losses for reduction "none". An anchor
    without a negative has loss 0. Differentiable once in the three embeddings.
    Raises ValueError or TypeError for a wrong argument, RuntimeError if an explicit backend cannot run.
    Source: L_pxl = mean over anchors of -log(exp(s+) / (exp(s+) + sum_r exp(s-_r))).
    """
    anchors, positives, candidates = check_embeddings(anchors, positives, candidates)
    negatives = check_indices("negatives", negatives, (anchors.shape[0], "R"))
    check_device("anchors", anchors, negatives=negatives)
    check_choice("reduction", reduction, REDUCTIONS)
    settings = check_temperature(temperature, anchors.device), check_margin(margin), normalize
    embeddings = distinct(anchors, positives, candidates)
    loss: Tensor = PixelContrastFunction.apply(*embeddings, negatives, *settings, backend)
    return reduced(loss, reduction)


class PixelContrastFunction(torch.autograd.Function):
    """Loss of every anchor (A,) from embeddings and negatives."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        positives: Tensor,
        candidates: Tensor,
        negatives: Tensor,
        temperature: Tensor,
        margin: float | None,
        normalize: bool,
        backend: str,
    ) -> Tensor:
        inputs = anchors, positives, candidates, negatives
        with_anchors, with_positives, with_candidates, *_ = ctx.needs_input_grad
        with_grad = with_anchors or with_positives or with_candidates
        loss: Tensor
        loss, share, pull, pulled = _pixel_contrast(*inputs, temperature, margin, normalize, with_grad, backend)
        ctx.save_for_backward(*inputs, share, pull, pulled, temperature)
        ctx.settings = normalize, with_positives, with_candidates, backend
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return wanted_gradients(ctx, *_pixel_contrast_backward(grad, *ctx.saved_tensors, *ctx.settings))


def _run(
    anchors: Tensor, positives: Tensor, candidates: Tensor, negatives: Tensor, temperature: Tensor, *settings: Any
) -> tuple[Tensor, ...]:
    *rest, backend = settings
    if backend not in CHECK_THEIR_OWN:
        check_index_values("negatives", negatives, candidates.shape[0])
        check_temperature_value(temperature)
    embeddings = stored(backend, anchors, positives, candidates)
    return tuple(implementation(backend, "pixel_contrast")(*embeddings, negatives, temperature, *rest))


def _run_backward(
    grad: Tensor, anchors: Tensor, positives: Tensor, candidates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *settings, backend = rest
    embeddings = stored(backend, anchors, positives, candidates)
    grads = implementation(backend, "pixel_contrast_backward")(grad, *embeddings, *settings)
    return tuple(g.to(anchors.dtype) for g in grads)


def _fake(
    anchors: Tensor, positives: Tensor, candidates: Tensor, negatives: Tensor, *settings: Any
) -> tuple[Tensor, ...]:
    *_, with_grad, _backend = settings
    (count, width), (_, draws) = anchors.shape, negatives.shape
    kept = count if with_grad else 0
    loss, share, pull, pulled = (count,), (kept, draws), (count,), (kept, width)
    return tuple(anchors.new_empty(size, dtype=compute_dtype(anchors)) for size in (loss, share, pull, pulled))


def _fake_backward(
    grad: Tensor, anchors: Tensor, positives: Tensor, candidates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *_, with_positives, with_candidates, _backend = rest
    kept = anchors, positives[: len(positives) * with_positives], candidates[: len(candidates) * with_candidates]
    return tuple(x.new_empty(x.shape) for x in kept)


_INPUTS = "Tensor anchors, Tensor positives, Tensor candidates, Tensor negatives"
_pixel_contrast = register(
    f"pixel_contrast({_INPUTS}, Tensor temperature, float? margin, bool normalize, bool with_grad, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)
_pixel_contrast_backward = register(
    f"pixel_contrast_backward(Tensor grad, {_INPUTS}, Tensor share, Tensor pull, Tensor pulled, Tensor temperature,"
    " bool normalize, bool with_positives, bool with_candidates, str backend) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
