"""Score fusion, public function: mask and class logits -> unit score vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from sskd_fast import _backend
from sskd_fast.ops._arguments import check_choice, check_floating, check_same
from sskd_fast.reference import score_fusion as reference

CUES = ("fused", "object", "mask", "class")

_FUSE_SCORES = {"reference": reference.fuse_scores}
_OBJECTNESS = {"reference": reference.objectness}


def fuse_scores(
    mask_logits: Tensor,
    class_logits: Tensor,
    size: tuple[int, int] | None = None,
    *,
    cues: str = "fused",
    backend: str = "auto",
) -> Tensor:
    """What the predictions say about every pixel, as one vector of unit norm and non-negative entries.

    mask_logits: (B, K, H, W); class_logits: (B, K, C+1), no-object last; floating point. size: (h, w) of the result,
    to which the mask logits are resized bilinearly; their own size where None. cues: "fused" (P_m and F_c),
    "object" (object-aware presence, background and class), "mask" (P_m) or "class" (F_c).
    Returns (B, h*w, E), rows in row-major pixel order; E = K+C+1 for "fused" and "object", K for "mask", C+1 for
    "class"; float32 for half-precision logits. Differentiable in both logits.
    Raises ValueError or TypeError for a wrong argument, RuntimeError where an explicit backend cannot run.
    Source: score fusion of the instance-aware contrastive loss; formulas in sskd_fast/reference/score_fusion.py.
    """
    check_choice("cues", cues, CUES)
    masks, classes, target = _checked(mask_logits, class_logits, size)
    run = _FUSE_SCORES[_backend.resolve(backend, masks.device)]
    with torch.autocast(masks.device.type, enabled=False):
        return run(masks, classes, target, cues)


def objectness(
    mask_logits: Tensor, class_logits: Tensor, size: tuple[int, int] | None = None, *, backend: str = "auto"
) -> Tensor:
    """How sure the predictions are that a pixel lies on an object: min(1, sum_k sigmoid(m_k) (1 - P_k[no-object])).

    Arguments and errors as for `fuse_scores`. Returns (B, h*w) in [0, 1].
    """
    masks, classes, target = _checked(mask_logits, class_logits, size)
    run = _OBJECTNESS[_backend.resolve(backend, masks.device)]
    with torch.autocast(masks.device.type, enabled=False):
        return run(masks, classes, target)


def _checked(
    mask_logits: Tensor, class_logits: Tensor, size: tuple[int, int] | None
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    masks = check_floating("mask_logits", mask_logits, ("B", "K", "H", "W"))
    images, queries, height, width = masks.shape
    classes = check_floating("class_logits", class_logits, (images, queries, "C+1"))
    if classes.shape[-1] < 2:
        raise ValueError(f"class_logits: found shape {tuple(classes.shape)}, expected at least one class and no-object")
    check_same("mask_logits", masks, class_logits=classes)
    if size is None:
        return masks, classes, (height, width)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: found {size!r}, expected (height, width), both at least 1")
    return masks, classes, (int(size[0]), int(size[1]))
