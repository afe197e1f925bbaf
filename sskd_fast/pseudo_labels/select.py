"""Which of a teacher's predictions become labels: score thresholds, mask NMS, a limit per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sskd_fast.mask_matching import by_image, mask_nms


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
