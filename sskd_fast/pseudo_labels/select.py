"""Selection of pseudo-labels among a teacher's predictions: score thresholds, mask NMS, a limit per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sskd_fast.mask_matching import by_image, mask_nms


@dataclass(frozen=True)
class Selection:
    """Rules that select labels among a teacher's predictions, image by image.

    sure_from: category id -> lowest score of a label.  unsure_from: lowest score of an unsure region, at most that of
    `sure_from`; None for no such regions.  nms_iou, max_per_image: see `select_labels`.
    """

    sure_from: Mapping[int, float]
    unsure_from: Mapping[int, float] | None
    nms_iou: float
    max_per_image: int

    @classmethod
    def of_dict(cls, fields: Mapping[str, Any]) -> Selection:
        """A choice from its fields as JSON keeps them, with categories as texts."""
        sure_from, unsure_from = (
            None if scores is None else {int(category): score for category, score in scores.items()}
            for scores in (fields["sure_from"], fields["unsure_from"])
        )
        assert sure_from is not None, "written by this package"
        return cls(sure_from, unsure_from, fields["nms_iou"], fields["max_per_image"])

    def objects(self, predictions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The predictions of any score after NMS and the limit per image."""
        return select_labels(predictions, 0.0, nms_iou=self.nms_iou, max_per_image=self.max_per_image)

    def labels(self, predictions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Confident labels with "iscrowd": 0 by image, then unsure regions with "iscrowd": 1."""
        limits: Any = {"nms_iou": self.nms_iou, "max_per_image": self.max_per_image}
        labels = [r | {"iscrowd": 0} for r in select_labels(predictions, self.sure_from, **limits)]
        if self.unsure_from is None:
            return labels
        every = select_labels(predictions, self.unsure_from, **limits)
        return labels + [r | {"iscrowd": 1} for r in every if r["score"] < self.sure_from[r["category_id"]]]


def select_labels(
    results: Sequence[dict[str, Any]],
    thresholds: Mapping[int, float] | float,
    *,
    nms_iou: float,
    max_per_image: int,
) -> list[dict[str, Any]]:
    """The results confident enough to train on: score >= threshold of the class, mask NMS, then the best few per image.

    thresholds: one score for all, or {category_id: score} from calibrate_thresholds.

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
