"""Mask AP of touching objects, which are hard to tell apart.

Shape letters: D results, G objects of the ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sskd_fast.evaluation.coco_ap import MaskAP, evaluate_masks
from sskd_fast.mask_matching import by_image, rle_iou
from sskd_fast.rle import box_of_rle, encode_segmentation


def evaluate_touching(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], *, within: int = 2, max_detections: int = 100
) -> MaskAP:
    """COCO mask AP of the objects at most `within` rows and columns of pixels away from another object of any class.

    Isolated objects do not count, nor do results that overlap an isolated object most.  Results off all objects count
    as false positives.  Crowd regions stay crowd regions and touch nothing.
    ground_truth, results, max_detections and errors: see `evaluate_masks`.  Raises ValueError for within < 1.
    """
    if within < 1:
        raise ValueError(f"within: expected at least 1 pixel, found {within}")
    found = by_image(results)
    sizes = {int(image["id"]): (int(image["height"]), int(image["width"])) for image in ground_truth["images"]}
    annotations: list[dict[str, Any]] = []
    alone: set[int] = set()
    for image, objects in by_image(ground_truth["annotations"]).items():
        masks = [encode_segmentation(a["segmentation"], *sizes[image]) for a in objects]
        crowd = np.array([bool(a.get("iscrowd", 0)) for a in objects])
        kept = crowd | touching_masks(masks, ~crowd, within)
        annotations += [a for a, keep in zip(objects, kept, strict=True) if keep]
        mine = found.get(image, [])
        overlap = rle_iou([r["segmentation"] for r in mine], masks)
        alone |= {id(r) for r, row in zip(mine, overlap, strict=True) if row.max() > 0 and not kept[row.argmax()]}
    truth = ground_truth | {"annotations": annotations}
    return evaluate_masks(truth, [r for r in results if id(r) not in alone], max_detections=max_detections)


def touching_masks(masks: Sequence[dict[str, Any]], counted: NDArray[np.bool_], within: int) -> NDArray[np.bool_]:
    """(G,) bool: True for masks with a pixel at most `within` rows and columns away from a pixel of another mask.

    masks: compressed RLE masks of one image.  counted: (G,) bool; masks with False neither touch nor are touched.
    """
    touching = np.zeros(len(masks), dtype=np.bool_)
    if not counted.any():
        return touching
    height, width = masks[0]["size"]
    boxes = [box_of_rle(mask) for mask in masks]
    layers = np.zeros((height + 2 * within, width + 2 * within), dtype=np.int32)
    for index in np.flatnonzero(counted):
        mask, top, left = boxes[index]
        layers[within + top :, within + left :][: mask.shape[0], : mask.shape[1]] += mask
    square = np.ones((2 * within + 1, 2 * within + 1), dtype=np.bool_)
    for index in np.flatnonzero(counted):
        mask, top, left = boxes[index]
        own = np.pad(mask, within)
        others = layers[top:, left:][: own.shape[0], : own.shape[1]] - own
        touching[index] = bool((others[ndimage.binary_dilation(own, square)] > 0).any())
    return touching
