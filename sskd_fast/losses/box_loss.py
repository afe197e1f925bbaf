"""Losses of predicted boxes against the boxes around the instances' masks, for the queries matched to the masks.

Source: the box losses of DETR.  Shape letters: B images, K queries, G padded instances, n instances of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sskd_fast.data.instances import Instances
from sskd_fast.losses.joint_batch import WHOLE, JointBatch


def box_losses(
    layers: Sequence[Tensor],
    assigned: Sequence[Tensor | None],
    boxes: Sequence[Tensor],
    weights: Tensor,
    joint: JointBatch = WHOLE,
) -> dict[str, Tensor]:
    """L1 ("box") and 1 - generalised IoU ("overlap"): weighted means over the instances, summed over layers.

    layers: predicted boxes (B, K, 4) after each layer: centre x, y, width, height as shares of the image.  assigned: a
    layer's (B, G) int64 query of each instance, -1 for none.  boxes: an image's (n, 4) of `boxes_of`; boxes without
    area do not count.  weights: (B, G), of the instances; the means divide by their sum over the joint batch.
    """
    # Here, since torchvision brings torch's compiler along, which takes seconds that most commands have no use for.
    from torchvision.ops import box_convert, generalized_box_iou_loss

    padded = weights.new_zeros((*weights.shape, 4))
    for row, own in zip(padded, boxes, strict=True):
        row[: len(own)] = own
    solid = (padded[..., 2:] > padded[..., :2]).all(-1)
    total = joint.total("boxes", weights.sum()).clamp(min=1.0)
    distances = overlaps = weights.new_zeros(())
    for predicted, queries in zip(layers, assigned, strict=True):
        assert queries is not None
        image, instance = torch.nonzero((queries >= 0) & solid, as_tuple=True)
        found, wanted = predicted[image, queries[image, instance]], padded[image, instance]
        distance = F.l1_loss(found, box_convert(wanted, "xyxy", "cxcywh"), reduction="none").sum(-1)
        overlap = generalized_box_iou_loss(box_convert(found, "cxcywh", "xyxy"), wanted)
        weight = weights[image, instance] / total
        distances, overlaps = distances + (distance * weight).sum(), overlaps + (overlap * weight).sum()
    return {"box": distances, "overlap": overlaps}


def boxes_of(instances: Instances) -> Tensor:
    """Boxes (n, 4) float32 around the masks, x0 y0 x1 y1 as shares of the image; zeros for an empty mask."""
    _, height, width = instances.masks.shape
    ends = []
    for hit, side in ((instances.masks.any(1), width), (instances.masks.any(2), height)):
        first, last = hit.float().argmax(1), side - hit.flip(1).float().argmax(1)
        ends.append(torch.stack([first, last], 1).float() / side * hit.any(1, keepdim=True))
    x, y = ends
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
