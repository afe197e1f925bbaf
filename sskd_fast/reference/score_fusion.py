"""Score fusion: the class and mask predictions of every pixel as one unit vector.

Shape letters: B images, K queries, C classes, N = h * w pixels, E width of a score vector.
With P_c[k, c] = softmax over the C + 1 classes (the last is no-object) and m[k, p] the mask logits at pixel p:

    fused   y = (P_m, F_c)               P_m = softmax over the queries of m, F_c[p] = sum_k P_m[k, p] P_c[k]
    mask    y = P_m                      class   y = F_c
    object  y = (P_o, background, F_o)   P_o[k, p] = sigmoid(m[k, p]) (1 - P_c[k, no-object]),
                                         background[p] = max(0, 1 - sum_k P_o[k, p]),
                                         F_o[p, c] = sum_k sigmoid(m[k, p]) P_c[k, c] for the C object classes

and the scores are y / ||y||.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sskd_fast.reference.unit_rows import unit_rows, unit_rows_backward

# In the order of the numbers that raw operators use for them.
Cues = Literal["fused", "object", "mask", "class"]
CUES: tuple[Cues, ...] = get_args(Cues)


def score_fusion(mask_logits: Tensor, class_logits: Tensor, height: int, width: int, cue: int) -> Tensor:
    """Score vectors (B, N, E), unit rows; see the formulas of the module.

    mask_logits (B, K, H, W), resized bilinearly to (height, width) before anything else; class_logits (B, K, C+1).
    """
    size, cues = (height, width), CUES[cue]
    return unit_rows(_scores(_presence(mask_logits, size, cues), class_logits.softmax(-1), cues))[0]


def score_fusion_backward(
    grad: Tensor, mask_logits: Tensor, class_logits: Tensor, height: int, width: int, cue: int
) -> tuple[Tensor, Tensor]:
    """Gradients of both logits from grad (B, N, E)."""
    size, cues = (height, width), CUES[cue]
    presence, classes = _presence(mask_logits, size, cues), class_logits.softmax(-1)
    scores = _scores(presence, classes, cues)
    grad = unit_rows_backward(grad, *unit_rows(scores))
    queries = 0 if cues == "class" else presence.shape[-1]
    grad_presence, grad_classes = torch.zeros_like(presence), torch.zeros_like(classes)
    if cues == "object":
        covered = (presence * (1 - classes[:, None, :, -1])).sum(-1, keepdim=True)
        grad_owner = grad[..., :queries] - grad[..., queries : queries + 1].masked_fill(covered > 1, 0)
        grad_presence += grad_owner * (1 - classes[:, None, :, -1])
        grad_classes[..., -1] -= (grad_owner * presence).sum(1)
        mixed, of_classes = grad[..., queries + 1 :], slice(None, -1)
    else:
        grad_presence[..., :queries] += grad[..., :queries]
        mixed, of_classes = grad[..., queries:], slice(None) if cues != "mask" else slice(0)
    grad_presence += torch.bmm(mixed, classes[..., of_classes].transpose(1, 2))
    grad_classes[..., of_classes] += torch.bmm(presence.transpose(1, 2), mixed)
    grad_classes = classes * (grad_classes - (grad_classes * classes).sum(-1, keepdim=True))
    inner = grad_presence * presence if cues == "object" else (grad_presence * presence).sum(-1, keepdim=True)
    return _resized_backward(presence * (grad_presence - inner), mask_logits, size), grad_classes


def objectness(mask_logits: Tensor, class_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Confidence that a pixel lies on an object, (B, N): min(1, sum_k P_o[k, p])."""
    presence = _resized(mask_logits, size).flatten(2).sigmoid()
    is_object = 1 - class_logits.softmax(-1)[..., -1]
    return torch.bmm(is_object[:, None], presence)[:, 0].clamp_max(1)


def _presence(mask_logits: Tensor, size: tuple[int, int], cues: Cues) -> Tensor:
    """Presence (B, N, K): softmax over the queries or, for "object", the sigmoid of the resized mask logits."""
    masks = _resized(mask_logits, size).flatten(2).transpose(1, 2)
    return masks.sigmoid() if cues == "object" else masks.softmax(-1)


def _scores(presence: Tensor, classes: Tensor, cues: Cues) -> Tensor:
    """y (B, N, E) before normalisation."""
    if cues == "object":
        owner = presence * (1 - classes[:, None, :, -1])
        background = (1 - owner.sum(-1, keepdim=True)).clamp_min(0)
        parts = [owner, background, torch.bmm(presence, classes[..., :-1])]
    else:
        parts = [presence] if cues in ("mask", "fused") else []
        parts += [torch.bmm(presence, classes)] if cues in ("class", "fused") else []
    return torch.cat(parts, dim=-1)


def _resized(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(mask_logits.shape[-2:]) == tuple(size):
        return mask_logits
    return F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)


def _resized_backward(grad: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Gradient of the mask logits from the gradient of the resized ones, (B, N, K)."""
    planes = grad.transpose(1, 2).unflatten(2, size)
    if tuple(mask_logits.shape[-2:]) == tuple(size):
        return planes.contiguous()
    return torch.ops.aten.upsample_bilinear2d_backward(planes.contiguous(), size, mask_logits.shape, False)
