"""The loss of the map of instances' centres, whose peaks seed queries.

Shape letters: B images, G padded instances, h x w cells of the map.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sskd_fast.losses.joint_batch import WHOLE, JointBatch
from sskd_fast.losses.matching import Targets


def centre_points(masks: Tensor) -> Tensor:
    """Centroids (B, G, 2) of masks (B, G, h, w), x, y in cells."""
    h, w = masks.shape[-2:]
    mass = masks.flatten(2).sum(-1).clamp(min=1e-6)
    ys = torch.arange(h, dtype=masks.dtype, device=masks.device)
    xs = torch.arange(w, dtype=masks.dtype, device=masks.device)
    return torch.stack([(masks.sum(2) * xs).sum(-1) / mass, (masks.sum(3) * ys).sum(-1) / mass], -1)


def heat_terms(heat: Tensor, masks: Tensor, present: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of `heat_loss` over all cells, and how many instances it is of; see `Targets`."""
    h, w = heat.shape[-2:]
    centre = centre_points(masks).round()
    sigma = (masks.flatten(2).sum(-1).sqrt() / 6).clamp(min=0.7)
    ys = torch.arange(h, dtype=heat.dtype, device=heat.device)
    xs = torch.arange(w, dtype=heat.dtype, device=heat.device)
    gx = torch.exp(-((xs - centre[..., :1]) ** 2) / (2 * sigma.unsqueeze(-1) ** 2))
    gy = torch.exp(-((ys - centre[..., 1:]) ** 2) / (2 * sigma.unsqueeze(-1) ** 2))
    here = present & (masks.flatten(2).sum(-1) > 0)
    goal = (gy.unsqueeze(-1) * gx.unsqueeze(-2) * here[..., None, None]).amax(1)
    prob = heat.sigmoid()
    peak = goal > 0.999
    positive = F.logsigmoid(heat) * (1 - prob).square() * peak
    negative = F.logsigmoid(-heat) * prob.square() * (1 - goal).pow(4) * ~peak * (valid > 0.5)
    return -(positive.sum() + negative.sum()), here.sum()


def heat_loss(
    heat: Tensor, targets: Targets, joint: JointBatch = WHOLE, terms: Callable[..., tuple[Tensor, Tensor]] = heat_terms
) -> Tensor:
    """Focal loss of the centre heat map (CenterNet's, alpha 2, beta 4) against Gaussians at the instances' centroids.

    heat (B, h, w) logits; the Gaussian's width follows the instance: sigma = max(0.7, sqrt(area) / 6) cells.
    terms: `heat_terms`, or what it was compiled to.
    """
    loss, count = terms(heat, targets.masks, targets.present, targets.valid)
    return loss / joint.total("centres", count).clamp(min=1)
