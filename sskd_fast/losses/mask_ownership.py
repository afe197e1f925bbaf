"""L_pxl on the mask logits: the queries of an image's instances compete for each pixel.

Ours, instead of the paper's form.  Source: the pixel-wise cross-entropy over the queries of kMaX-DeepLab (Yu et al.,
ECCV 2022).  Departures: only matched queries compete, background is a logit of 0, and labels count by their scores.
Shape letters: B images, K queries, G padded instances, h x w cells of the mask map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sskd_fast.losses.contrast_settings import ContrastConfig, ContrastOutput, require
from sskd_fast.losses.matching import Targets, pad_targets
from sskd_fast.losses.pooling import pooled, pooled_size
from sskd_fast.losses.training_step import Part, TrainingStep


class MaskOwnership(nn.Module):
    """L = -mean over valid cells p of log[exp(m_p) / (1 + sum over matched queries k of exp(m_k(p)))].

    m_k: mask logits.  m_p: the logit of the query matched to the instance at p, after the last decoder layer; 0 on
    background.  A cell shared by several instances counts for each by its share.  The mean is weighted by the scores.
    """

    def __init__(self, config: ContrastConfig) -> None:
        super().__init__()
        self.config = config

    def of_step(self, step: TrainingStep) -> ContrastOutput:
        """The loss of a training step.  Raises ValueError for a model whose queries are not matched to instances."""

        def sums(part: Part) -> tuple[Tensor, Tensor]:
            if part.set_loss is None or part.set_loss.assigned is None:
                kind = step.model.config.kind
                raise ValueError(f"contrast.form='ownership': a model of kind {kind!r} matches no queries to instances")
            logits = pooled(part.predictions.mask_logits, part.label_pool)
            targets = pad_targets(part.batch.targets, part.batch.valid, pooled_size(logits, 1))
            return ownership_sums(logits, targets, part.set_loss.assigned)

        return ContrastOutput(step.weighted_mean(sums), {})


def ownership_sums(mask_logits: Tensor, targets: Targets, assigned: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss of all cells and their summed weight.

    mask_logits (B, K, h, w); targets: on the same map; assigned (B, G) int64: the query of each instance, -1 for none.
    Raises ValueError for maps of two sizes.
    """
    found, expected = tuple(mask_logits.shape[-2:]), tuple(targets.masks.shape[-2:])
    require(found == expected, f"mask_logits: found a map of {found}, expected that of the targets, {expected}")
    masks = targets.masks * targets.present[..., None, None]
    shares = masks / masks.sum(1, keepdim=True).clamp(min=1)
    background = (1 - shares.sum(1, keepdim=True)).clamp(min=0)
    matched = (assigned >= 0)[..., None, None]
    index = assigned.clamp(min=0)[..., None, None].expand_as(masks)
    owned = mask_logits.gather(1, index).masked_fill(~matched, -math.inf)
    log_share = torch.cat([torch.zeros_like(background), owned], 1).log_softmax(1)
    weights = torch.cat([background, shares * (targets.weights[..., None, None] * matched)], 1)
    weights = weights * targets.valid.unsqueeze(1)
    return -(weights * log_share.where(weights > 0, 0)).sum(), weights.sum()
