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

import torch
import torch.nn.functional as F
from torch import Tensor


def fuse_scores(mask_logits: Tensor, class_logits: Tensor, size: tuple[int, int], cues: str) -> Tensor:
    """Score vectors (B, N, E), unit rows; see the formulas of the module.

    mask_logits (B, K, H, W), resized bilinearly to `size` before anything else; class_logits (B, K, C+1).
    """
    masks = _resized(mask_logits, size).flatten(2).transpose(1, 2)
    classes = class_logits.softmax(-1)
    if cues == "object":
        presence = masks.sigmoid()
        owner = presence * (1 - classes[:, None, :, -1])
        background = (1 - owner.sum(-1, keepdim=True)).clamp_min(0)
        parts = [owner, background, torch.bmm(presence, classes[..., :-1])]
    else:
        owner = masks.softmax(-1)
        parts = [owner] if cues in ("mask", "fused") else []
        parts += [torch.bmm(owner, classes)] if cues in ("class", "fused") else []
    return F.normalize(torch.cat(parts, dim=-1), dim=-1)


def objectness(mask_logits: Tensor, class_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """How sure the predictions are that a pixel lies on an object, (B, N): min(1, sum_k P_o[k, p])."""
    presence = _resized(mask_logits, size).flatten(2).sigmoid()
    is_object = 1 - class_logits.softmax(-1)[..., -1]
    return torch.bmm(is_object[:, None], presence)[:, 0].clamp_max(1)


def _resized(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(mask_logits.shape[-2:]) == size:
        return mask_logits
    return F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)
