"""The obvious implementation, as a baseline: image by image, dense anchors x candidates matrices and their top-k.

It runs on any device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import NEGATIVES, TEMPERATURE


def fuse(masks: Tensor, classes: Tensor) -> Tensor:
    """Score vectors (N, E), unit rows, float32."""
    owner = masks.float().flatten(2).transpose(1, 2).softmax(-1)
    mixed = torch.bmm(owner, classes.float().softmax(-1))
    return F.normalize(torch.cat([owner, mixed], -1), dim=-1).flatten(0, 1)


def image_loss(own: Tensor, scores: Tensor, anchors: Tensor, positives: Tensor, candidates: Tensor) -> Tensor:
    """Sum of the losses of one image's anchors against all candidates."""
    with torch.no_grad():
        dissimilarity = (1 - own @ scores.t()).clamp_min(0)
        # The order of Gumbel top-k, log(dissimilarity) - log(-log(u)), with two logarithms less. PyTorch's own
        # exponential_() takes longer on a CPU. u may be 0, which has no logarithm, so it is clamped.
        arrival = torch.rand_like(dissimilarity).clamp_min_(torch.finfo(dissimilarity.dtype).tiny).log_().neg_()
        drawn = (dissimilarity / arrival).topk(min(NEGATIVES, scores.shape[0]), dim=1, sorted=False).indices
    similarity = (anchors @ candidates.t()) / TEMPERATURE
    positive = (anchors * positives).sum(1, keepdim=True) / TEMPERATURE
    logits = torch.cat([positive, similarity.gather(1, drawn)], 1).float()
    target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return F.cross_entropy(logits, target, reduction="sum")


def dense_step(
    masks: Tensor, classes: Tensor, weak: Tensor, strong: Tensor, image_loss: Callable[..., Tensor] = image_loss
) -> None:
    """Fuse, sample and contrast, forward and backward; image_loss may be a compiled one."""
    scores = fuse(masks, classes)
    candidates, positives = F.normalize(weak, dim=-1), F.normalize(strong, dim=-1)
    images = len(masks)
    parts = zip(scores.chunk(images), candidates.chunk(images), positives.chunk(images), strict=True)
    losses = [image_loss(own, scores, anchors, positive, candidates) for own, anchors, positive in parts]
    (torch.stack(losses).sum() / len(scores)).backward()
    weak.grad = None


def dense_bytes(images: int, pixels: int) -> int:
    """Bytes of one anchors x candidates matrix of an image in float32; several are alive at a time."""
    return 4 * pixels // images * pixels
