"""Score fusion, public function: mask and class logits -> unit score vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sskd_fast import _backend
from sskd_fast.ops._arguments import check_choice, check_finite, check_floating, check_same
from sskd_fast.ops._gradients import wanted_gradients
from sskd_fast.ops._library import implementation, register
from sskd_fast.reference import score_fusion as reference


def fuse_scores(
    mask_logits: Tensor,
    class_logits: Tensor,
    size: tuple[int, int] | None = None,
    *,
    cues: reference.Cues = "fused",
    backend: str = "auto",
) -> Tensor:
    """Fuse mask and class predictions into one vector per pixel, with unit norm and non-negative entries.

    mask_logits: (B, K, H, W); class_logits: (B, K, C+1), no-object last; finite floating point. size: (h, w) of the
    result, to which the mask logits are resized bilinearly; their own size if None. cues: "fused" (P_m and F_c),
    "object" (object-aware presence, background and class), "mask" (P_m) or "class" (F_c).
    Returns (B, h*w, E), rows in row-major pixel order; E = K+C+1 for "fused" and "object", K for "mask", C+1 for
    "class"; float32 for half-precision logits. Differentiable once in both logits.
    Raises ValueError or TypeError for a wrong argument (values are checked on the CPU only), RuntimeError if an
    explicit backend cannot run.
    Source: score fusion of the instance-aware contrastive loss; formulas in sskd_fast/reference/score_fusion.py.
    """
    check_choice("cues", cues, reference.CUES)
    masks, classes, (height, width) = _checked(mask_logits, class_logits, size)
    scores: Tensor = ScoreFusionFunction.apply(masks, classes, height, width, cues, backend)
    return scores


def objectness(
    mask_logits: Tensor, class_logits: Tensor, size: tuple[int, int] | None = None, *, backend: str = "auto"
) -> Tensor:
    """Confidence that a pixel lies on an object: min(1, sum_k sigmoid(m_k) (1 - P_k[no-object])).

    Arguments and errors as for `fuse_scores`; one matrix product, in PyTorch on every backend.
    Returns (B, h*w) in [0, 1].
    """
    masks, classes, target = _checked(mask_logits, class_logits, size)
    _backend.resolve(backend, masks.device, "score_fusion")
    with torch.autocast(masks.device.type, enabled=False):
        return reference.objectness(masks, classes, target)


class ScoreFusionFunction(torch.autograd.Function):
    """Score vectors (B, N, E) from mask and class logits."""

    @staticmethod
    def forward(ctx: Any, masks: Tensor, classes: Tensor, height: int, width: int, cues: str, backend: str) -> Tensor:
        ctx.save_for_backward(masks, classes)
        ctx.settings = height, width, cues, backend
        scores: Tensor = score_fusion(masks, classes, height, width, cues, backend)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        masks, classes = ctx.saved_tensors
        return wanted_gradients(ctx, *score_fusion_backward(grad, masks, classes, *ctx.settings))


def _run(masks: Tensor, classes: Tensor, height: int, width: int, cues: str, backend: str) -> Tensor:
    if backend != "cpu":
        check_finite("mask_logits", masks)
        check_finite("class_logits", classes)
    return implementation(backend, "score_fusion")(masks, classes, height, width, reference.CUES.index(cues))


def _run_backward(
    grad: Tensor, masks: Tensor, classes: Tensor, height: int, width: int, cues: str, backend: str
) -> tuple[Tensor, Tensor]:
    run = implementation(backend, "score_fusion_backward")
    return run(grad, masks, classes, height, width, reference.CUES.index(cues))


def _fake(masks: Tensor, classes: Tensor, height: int, width: int, cues: str, backend: str) -> Tensor:
    (images, queries, _, _), (_, _, class_count) = masks.shape, classes.shape
    entries = {"mask": queries, "class": class_count}.get(cues, queries + class_count)
    return masks.new_empty(images, height * width, entries)


def _fake_backward(
    grad: Tensor, masks: Tensor, classes: Tensor, height: int, width: int, cues: str, backend: str
) -> tuple[Tensor, Tensor]:
    return masks.new_empty(masks.shape), classes.new_empty(classes.shape)


_LOGITS = "Tensor mask_logits, Tensor class_logits, int height, int width, str cues, str backend"
score_fusion = register(f"score_fusion({_LOGITS}) -> Tensor", _run, _fake)
score_fusion_backward = register(
    f"score_fusion_backward(Tensor grad, {_LOGITS}) -> (Tensor, Tensor)", _run_backward, _fake_backward
)


def _checked(
    mask_logits: Tensor, class_logits: Tensor, size: tuple[int, int] | None
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    masks = check_floating("mask_logits", mask_logits, ("B", "K", "H", "W"))
    images, queries, height, width = masks.shape
    classes = check_floating("class_logits", class_logits, (images, queries, "C+1"))
    if classes.shape[-1] < 2:
        raise ValueError(f"class_logits: found shape {tuple(classes.shape)}, expected at least one class and no-object")
    check_same("mask_logits", masks, class_logits=classes)
    if min(queries, height, width) < 1:
        found = tuple(masks.shape)
        raise ValueError(f"mask_logits: found shape {found}, expected at least one query and one pixel")
    if size is None:
        return masks, classes, (height, width)
    if len(size) != 2 or any(int(x) != x or x < 1 for x in size):
        raise ValueError(f"size: found {size!r}, expected (height, width), whole numbers of at least 1")
    height, width = size
    return masks, classes, (int(height), int(width))
