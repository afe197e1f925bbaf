"""L_pxl in the space of the mask features: pixels are pulled to the prototype of their instance, away from all others.

Ours, instead of the paper's form.  Source: the instance discrimination loss of MaX-DeepLab (Wang et al., CVPR 2021);
departures: background is one more prototype, and pixels count by their share of the instance and its score.
Shape letters: B images, G padded instances, P mask channels, N = h x w cells of the mask map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskd_fast.losses.contrast_settings import ContrastConfig, ContrastOutput, require
from sskd_fast.losses.matching import Targets, pad_targets
from sskd_fast.losses.pooling import pooled_size
from sskd_fast.losses.training_step import Part, TrainingStep


class MaskPrototypes(nn.Module):
    """L = -sum_i w_i sum_p m_i(p) log softmax_j(<t_j, M(p) / |M(p)|> / T)[i] over instances i, divided by
    sum_i w_i sum_p m_i(p).

    M: mask features.  m_i(p): share of cell p on instance i.  t_i: sum_p m_i(p) M(p), normalised; t_0 for the
    background.  w_i: score of the instance.  T: the first of `temperature`.  Sums run over the images of a batch.
    """

    def __init__(self, config: ContrastConfig) -> None:
        super().__init__()
        self.config = config

    def of_step(self, step: TrainingStep) -> ContrastOutput:
        """The loss of a training step.  Raises ValueError for a model without mask features."""

        def sums(part: Part) -> tuple[Tensor, Tensor]:
            features = part.predictions.mask_features
            if features is None:
                kind = step.model.config.kind
                raise ValueError(f"contrast.form='prototypes': a model of kind {kind!r} shows no mask features")
            features = F.avg_pool2d(features, part.label_pool) if part.label_pool > 1 else features
            targets = pad_targets(part.batch.targets, part.batch.valid, pooled_size(features, 1))
            return prototype_sums(features, targets, self.config.temperature[0])

        return ContrastOutput(step.weighted_mean(sums), {})


def prototype_sums(features: Tensor, targets: Targets, temperature: float) -> tuple[Tensor, Tensor]:
    """The numerator and the denominator of `MaskPrototypes`.

    features (B, P, h, w); targets: on the same map.  Raises ValueError for maps of two sizes.
    """
    found, expected = tuple(features.shape[-2:]), tuple(targets.masks.shape[-2:])
    require(found == expected, f"features: found a map of {found}, expected that of the targets, {expected}")
    features, valid = features.flatten(2), targets.valid.flatten(1).unsqueeze(1)
    masks = targets.masks.flatten(2) * targets.present.unsqueeze(2) * valid
    masks = torch.cat([(valid - masks.sum(1, keepdim=True)).clamp(min=0), masks], 1)
    prototypes = F.normalize(masks @ features.transpose(1, 2), dim=-1)
    logits = prototypes @ F.normalize(features, dim=1) / temperature
    empty = masks.sum(-1, keepdim=True) == 0
    log_share = logits.masked_fill(empty, -math.inf).log_softmax(1).masked_fill(empty, 0)
    weighted = masks[:, 1:] * targets.weights.unsqueeze(2)
    return -(weighted * log_share[:, 1:]).sum(), weighted.sum()
