"""The loss of dense queries: every cell near an instance's centre learns the instance's class and mask.

Source: centre sampling of FCOS, masks of CondInst, focal loss of RetinaNet; scores learn the mask's IoU as in
generalised focal loss.

Shape letters: B images, C classes, G padded instances, P positive cells, n cells of all levels, h x w mask cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sskd_fast.data.instances import Instances
from sskd_fast.losses.heat_loss import centre_points
from sskd_fast.losses.joint_batch import WHOLE, JointBatch
from sskd_fast.losses.matching import Targets, pad_targets
from sskd_fast.losses.pooling import pooled, pooled_size
from sskd_fast.models.dense_maps import DenseMaps


@dataclass(frozen=True)
class DenseLossConfig:
    """Weights and assignment of the dense loss.

    class_weight, mask_weight, dice_weight: of focal loss, mask cross-entropy and dice.  radius: around an instance's
    centre, in cells of the level; cells within learn the instance.  sizes: smallest and largest side (square root of
    the area) of a level's instances, in its cells.  The finest level has no lower bound, the coarsest no upper one.
    masks_an_instance: number of an instance's cells, redrawn every step, that learn its mask.  masks_an_image: limit
    of such cells per image, on average.  quality: a cell's score learns the IoU of its mask instead of 1.
    """

    class_weight: float = 1.0
    mask_weight: float = 0.0
    dice_weight: float = 1.0
    radius: float = 1.5
    sizes: tuple[float, float] = (1.5, 5.0)
    masks_an_instance: int = 3
    masks_an_image: int = 20
    quality: bool = True


@dataclass
class Cells:
    """P positive cells: image (P,), cell (P,) among all levels' cells, instance (P,)."""

    image: Tensor
    cell: Tensor
    instance: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def at(self, index: Tensor) -> Cells:
        """Some of the cells."""
        return Cells(self.image[index], self.cell[index], self.instance[index])


def dense_loss(
    config: DenseLossConfig,
    maps: DenseMaps,
    instances: list[Instances],
    valid: Tensor,
    joint: JointBatch = WHOLE,
    label_pool: int = 1,
) -> tuple[dict[str, Tensor], Tensor]:
    """The parts "class", "mask" and "dice", unweighted, and the share of instances that have a cell.

    instances: one record per image; valid: (B, H, W) bool.  joint: mask terms divide by the summed weight of the cells
    drawn in the joint batch, class terms by that of its positive cells.  label_pool: side of the labels' cells in cells
    of the masks, in which masks are compared; for 1, they are compared at twice the resolution of the predictions.
    """
    size = (maps.features.shape[-2], maps.features.shape[-1])
    targets = pad_targets(instances, valid, size)
    positive = assign(config, maps, targets)
    chosen = drawn_cells(config, positive, len(valid))
    logits = maps.masks(chosen.image, chosen.cell).unsqueeze(1)
    if label_pool > 1:
        compared, logits = pooled_size(logits, label_pool), pooled(logits, label_pool)
    else:
        compared = (2 * size[0], 2 * size[1])
        logits = F.interpolate(logits, size=compared, mode="bilinear", align_corners=False)
    parts, iou = _mask_parts(logits.squeeze(1), chosen, pad_targets(instances, valid, compared), joint)
    quality = _qualities(positive, chosen, iou) if config.quality else None
    parts["class"] = _class_part(maps, positive, targets, quality, joint)
    found = len(torch.unique(positive.image * targets.present.shape[1] + positive.instance))
    matched = parts["class"].new_tensor(found) / targets.present.sum().clamp(min=1)
    return parts, matched


@torch.no_grad()
def assign(config: DenseLossConfig, maps: DenseMaps, targets: Targets) -> Cells:
    """The cells near an instance's centre on the levels for its size; a cell near several takes the smallest one."""
    _, centres, covers = maps.cells()
    area = targets.masks.flatten(2).sum(-1)
    side = area.sqrt().unsqueeze(2)
    away = (centres - centre_points(targets.masks).unsqueeze(2)).abs().amax(-1)  # (B, G, n)
    least = torch.where(covers == covers.min(), 0.0, config.sizes[0] * covers)
    most = torch.where(covers == covers.max(), torch.inf, config.sizes[1] * covers)
    there = (targets.present & (area > 0.5)).unsqueeze(2)
    near = there & (away < config.radius * covers) & (side >= least) & (side <= most)
    smallest = torch.where(near, area.unsqueeze(2), torch.inf).argmin(1)
    image, cell = torch.nonzero(near.any(1), as_tuple=True)
    return Cells(image, cell, smallest[image, cell])


def drawn_cells(config: DenseLossConfig, positive: Cells, images: int) -> Cells:
    """Draw at most `masks_an_instance` cells of an instance, and `masks_an_image` cells per image on average."""
    if not len(positive):
        return positive
    order = torch.randperm(len(positive), device=positive.image.device)
    shuffled = positive.at(order)
    key = shuffled.image * (int(positive.instance.max()) + 1) + shuffled.instance
    by_instance = key.argsort(stable=True)
    key = key[by_instance]
    first = torch.searchsorted(key, key)
    rank = torch.arange(len(key), device=key.device) - first
    kept = by_instance[rank < config.masks_an_instance]
    if len(kept) > config.masks_an_image * images:
        kept = kept[torch.randperm(len(kept), device=kept.device)[: config.masks_an_image * images]]
    return shuffled.at(kept)


def _mask_parts(logits: Tensor, cells: Cells, targets: Targets, joint: JointBatch) -> tuple[dict[str, Tensor], Tensor]:
    """Mask cross-entropy and dice of the cells' logits (P, h, w), weighted by the instances' weights, and IoUs (P,)."""
    valid = targets.valid[cells.image]
    wanted = targets.masks[cells.image, cells.instance] * valid
    weight = targets.weights[cells.image, cells.instance]
    total = joint.total("drawn cells", weight.sum()).clamp(min=1.0)
    prob = logits.sigmoid() * valid
    squares = (prob.square() + wanted.square()).flatten(1).sum(1)
    dice = 1 - 2 * (prob * wanted).flatten(1).sum(1) / squares.clamp(min=1e-4)
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * valid
    entropy = entropy.flatten(1).sum(1) / (4 * wanted.flatten(1).sum(1) + 20)
    with torch.no_grad():
        drawn = (logits > 0).to(wanted.dtype) * valid
        both = (drawn * wanted).flatten(1).sum(1)
        iou = both / (drawn.flatten(1).sum(1) + wanted.flatten(1).sum(1) - both).clamp(min=1e-4)
    return {"mask": (entropy * weight).sum() / total, "dice": (dice * weight).sum() / total}, iou


@torch.no_grad()
def _qualities(positive: Cells, chosen: Cells, iou: Tensor) -> Tensor:
    """The target (P,) of each positive cell's score: the mean IoU of its instance's drawn cells, 1/2 without any."""
    if not len(positive):
        return iou.new_zeros(0)
    stride = int(positive.instance.max()) + 1
    bins = (int(positive.image.max()) + 1) * stride
    key = chosen.image * stride + chosen.instance
    count = torch.zeros(bins, device=iou.device).index_add_(0, key, torch.ones_like(iou))
    total = torch.zeros(bins, device=iou.device).index_add_(0, key, iou)
    mean = torch.where(count > 0, total / count.clamp(min=1), 0.5)
    return mean[positive.image * stride + positive.instance].clamp(min=0.1)


def _class_part(
    maps: DenseMaps, positive: Cells, targets: Targets, quality: Tensor | None, joint: JointBatch
) -> Tensor:
    """Focal loss of all cells' scores; unassigned cells on invalid pixels (padding, crowd, unsure) do not count."""
    logits, centres, _ = maps.cells()
    height, width = targets.valid.shape[-2:]
    x = centres[:, 0].round().long().clamp(0, width - 1)
    y = centres[:, 1].round().long().clamp(0, height - 1)
    weight = (targets.valid[:, y, x] > 0.5).to(logits.dtype)
    wanted = torch.zeros_like(logits)
    own = targets.weights[positive.image, positive.instance]
    label = targets.labels[positive.image, positive.instance]
    wanted[positive.image, positive.cell, label] = torch.ones_like(own) if quality is None else quality
    weight[positive.image, positive.cell] = own
    prob = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    balance = torch.where(wanted > 0, 0.25, 0.75) if quality is None else torch.where(wanted > 0, 1.0, 0.75)
    focal = balance * entropy * (wanted - prob).detach().square()
    return (focal.sum(-1) * weight).sum() / joint.total("positive cells", own.sum()).clamp(min=1.0)
