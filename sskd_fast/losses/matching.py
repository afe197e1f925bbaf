"""Hungarian matching of predicted masks to instances (Mask2Former's costs), for all layers and images at once.

Shape letters: B images, K queries, C classes, G padded instances, P mask pixels or sampled points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from sskd_fast.data.instances import Instances

# Logits whose sigmoid, and one minus it, are still normal float32 numbers.
SURE = 80.0


@dataclass
class Targets:
    """Instances of B images, padded to G.

    masks (B, G, h, w) float in [0, 1] at the size of the mask map. labels (B, G). present (B, G) bool. valid (B, h, w)
    float: share of valid pixels; weights (B, G): score of a pseudo-label, else 1.
    """

    masks: Tensor
    labels: Tensor
    present: Tensor
    valid: Tensor
    weights: Tensor


def pad_targets(instances: list[Instances], valid: Tensor, size: tuple[int, int]) -> Targets:
    """Build Targets on a (h, w) map from B records and valid (B, H, W) bool; masks are averaged over cells."""
    device, count = valid.device, max([1, *(len(i) for i in instances)])
    b = len(valid)
    masks = torch.zeros((b, count, *size), device=device)
    labels = torch.zeros((b, count), dtype=torch.int64, device=device)
    present = torch.zeros((b, count), dtype=torch.bool, device=device)
    weights = torch.zeros((b, count), device=device)
    for i, record in enumerate(instances):
        n = len(record)
        if n:  # moved as bytes, one image at a time: full-size masks as floats would fill the device's memory
            full = record.masks.to(device, non_blocking=True).to(masks.dtype)
            masks[i, :n] = F.interpolate(full.unsqueeze(0), size=size, mode="area")[0]
        labels[i, :n], present[i, :n], weights[i, :n] = record.labels.to(device), True, record.scores.to(device)
    share = F.interpolate(valid.to(masks.dtype).unsqueeze(1), size=size, mode="area").squeeze(1)
    return Targets(masks, labels, present, share, weights)


@dataclass(frozen=True)
class MatchCosts:
    """Weights of the class, mask cross-entropy and dice terms, both in the matching and in the loss."""

    classes: float = 2.0
    mask: float = 5.0
    dice: float = 5.0


@dataclass
class Matching:
    """The result of the matching.

    assigned (B, G) int64: the query of each instance, -1 for none (absent instances, or more instances than queries).
    inside (B, K) bool: True if most of a query's mask lies on valid places, among the compared ones.
    """

    assigned: Tensor
    inside: Tensor


def pair_costs(
    mask_logits: Tensor, class_logits: Tensor, labels: Tensor, pixels: Tensor, valid: Tensor, normalizer: Tensor,
    costs: MatchCosts,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The cost (B, K, G) of each pair of a query and an instance, and summed probabilities of a query.  The latter
    are on valid places and on all, (B, K, 1) each.  Arguments as in `match`."""
    classes = -class_logits.softmax(-1).gather(2, labels.unsqueeze(1).expand(-1, mask_logits.shape[1], -1))
    # Each operation reads every mask of the batch, so there are few of them, in place.
    bounded = mask_logits.clamp(-SURE, SURE)
    inner = bounded @ pixels.transpose(1, 2)
    outside = bounded.neg_().sigmoid_()
    places = torch.cat([pixels, valid, torch.ones_like(valid)], 1)
    total = places.sum(-1).unsqueeze(1)
    mass = total - outside @ places.transpose(1, 2)
    overlap, on_valid, everywhere = mass[..., :-2], mass[..., -2:-1], mass[..., -1:]
    softplus = outside.log_().neg_()
    entropy = (softplus @ valid.transpose(1, 2) - inner) / normalizer.unsqueeze(1)
    dice = 1 - (2 * overlap + 1) / (on_valid + total[..., :-2] + 1)
    return costs.classes * classes + costs.mask * entropy + costs.dice * dice, on_valid, everywhere


@torch.no_grad()
def match(
    mask_logits: Tensor, class_logits: Tensor, targets: Targets, pixels: Tensor, valid: Tensor, normalizer: Tensor,
    costs: MatchCosts, costs_of_pairs: Callable[..., tuple[Tensor, Tensor, Tensor]] = pair_costs,
) -> Matching:  # fmt: skip
    """Assigns each instance a query.

    mask_logits (B, K, P), class_logits (B, K, C+1). valid (B, 1, P): weights of the P places, 0 to ignore one. pixels
    (B, G, P): the instances' values there times valid. normalizer (B, G): divisor of a mask's summed cross-entropy.
    costs_of_pairs: `pair_costs`, or what it was compiled to.
    Raises FloatingPointError if logits are not finite, matched or not.
    """
    of_pairs, on_valid, everywhere = costs_of_pairs(
        mask_logits, class_logits, targets.labels, pixels, valid, normalizer, costs
    )
    cost = of_pairs.cpu().numpy()
    if not (np.isfinite(cost).all() and bool(torch.isfinite(mask_logits.sum()))):
        raise FloatingPointError("matching: mask or class logits are not finite; lower train.lr or raise train.warmup")
    counts = targets.present.cpu().numpy().sum(1)
    assigned = torch.full(targets.labels.shape, -1, dtype=torch.int64)
    for i, count in enumerate(counts):
        queries, instances = linear_sum_assignment(cost[i, :, :count])
        assigned[i, torch.from_numpy(instances)] = torch.from_numpy(queries)
    inside = lies_inside(on_valid, everywhere, mask_logits.shape[-1]).squeeze(2)
    return Matching(assigned.to(mask_logits.device), inside)


def lies_inside(on_valid: Tensor, everywhere: Tensor, places: int) -> Tensor:
    """True if most of a mask lies on valid places, from its sums of probability there and everywhere.

    A mask of less than a hundred-thousandth of all places counts as inside, since rounding would decide otherwise.
    """
    return (on_valid > 0.5 * everywhere) | (everywhere < 1e-5 * places)
