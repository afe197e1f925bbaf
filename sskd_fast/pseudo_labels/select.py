"""Which of a teacher's predictions become labels: score thresholds, mask NMS, a limit per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

from sskd_fast.pseudo_labels.matching import by_image


def mask_nms(results: Sequence[dict[str, Any]], iou: float, *, class_aware: bool = False) -> list[dict[str, Any]]:
    """Greedy non-maximum suppression by mask IoU over the results of one image.

    Highest score first, a result is kept unless its mask overlaps one already kept by more than `iou`.  One object has
    one class, so results of different classes suppress each other unless `class_aware`.

    Returns the kept results, highest score first.  Raises ValueError if the results are of several images.
    """
    images = {result["image_id"] for result in results}
    if len(images) > 1:
        raise ValueError(f"mask_nms takes the results of one image, found images {sorted(images)[:5]}")
    if not results:
        return []
    ordered = sorted(results, key=lambda result: -float(result["score"]))
    masks = [result["segmentation"] for result in ordered]
    overlap = np.asarray(rle.iou(masks, masks, [0] * len(masks))) > iou
    if class_aware:
        classes = np.array([result["category_id"] for result in ordered])
        overlap &= classes[:, None] == classes[None, :]
    suppressed = np.zeros(len(ordered), dtype=bool)
    kept = []
    for index, result in enumerate(ordered):
        if not suppressed[index]:
            kept.append(result)
            suppressed |= overlap[index]
    return kept


def select_labels(
    results: Sequence[dict[str, Any]],
    thresholds: Mapping[int, float] | float,
    *,
    nms_iou: float,
    max_per_image: int,
) -> list[dict[str, Any]]:
    """The results that are sure enough to train on: score >= the threshold of their class, mask NMS, best few an image.

    thresholds: one score for all, or {category_id: score} as calibrate_thresholds gives it.

    Returns a COCO results list ordered by image id, then by falling score.  Raises ValueError for a category without a
    threshold.
    """
    if isinstance(thresholds, Mapping):
        unknown = sorted({int(r["category_id"]) for r in results} - set(thresholds))
        if unknown:
            raise ValueError(
                f"category {unknown[0]} has no threshold; thresholds are given for {sorted(thresholds)}: "
                "calibrate on ground truth with the same categories"
            )
        sure = [r for r in results if r["score"] >= thresholds[int(r["category_id"])]]
    else:
        sure = [r for r in results if r["score"] >= thresholds]
    labels: list[dict[str, Any]] = []
    for _, of_image in sorted(by_image(sure).items()):
        labels += mask_nms(of_image, nms_iou)[:max_per_image]
    return labels
