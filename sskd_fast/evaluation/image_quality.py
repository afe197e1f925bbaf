"""Quality of the results on each image: panoptic quality at IoU 0.5, and the counts behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sskd_fast.mask_matching import Match, by_image, match_results

MATCH_IOU = 0.5
POOR_IOU = 0.75
# Score threshold if no result is right, so that all thresholds are equally good.
UNDECIDED_SCORE = 0.5


@dataclass(frozen=True)
class ImageQuality:
    """Quality of one image in [0, 1], and its numbers of objects and of missed ones.

    false: number of results that match no object of their class.  poor: number of matches with an IoU under POOR_IOU.
    """

    image_id: int
    quality: float
    objects: int
    missed: int
    false: int
    poor: int


@dataclass(frozen=True)
class ImageQualities:
    """The quality of each image with an object or a result; score: the lowest score that counts."""

    score: float
    images: list[ImageQuality]

    def worst(self, limit: int) -> list[ImageQuality]:
        """The `limit` images of lowest quality; ties go to more missed objects."""
        return sorted(self.images, key=lambda image: (image.quality, -image.missed, image.image_id))[:limit]


def image_qualities(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> ImageQualities:
    """The panoptic quality of each image, at the score threshold with the highest F1 over all images.

    ground_truth: a COCO instances dict.  results: a COCO results list.

    The quality of an image is the sum of the IoU of its matches over a count.  The count is the number of matches plus
    half the missed objects plus half the false results (Kirillov et al., Panoptic Segmentation, 2019).  A match has
    the class of its object and an IoU of at least 0.5.  Crowd regions, and results on them, do not count.  Images
    without objects and results are left out.  Raises ValueError for a result on an image that is not in the ground
    truth.
    """
    # Matching goes by falling score, so results under the threshold change no match above it.
    matches = [m for m in match_results(results, ground_truth, iou=MATCH_IOU, class_aware=True) if not m.ignored]
    objects = by_image(a for a in ground_truth["annotations"] if not a.get("iscrowd", 0))
    score = _best_score(matches, sum(map(len, objects.values())))
    counted: dict[int, list[Match]] = {}
    for match in matches:
        if float(match.result["score"]) >= score:
            counted.setdefault(int(match.result["image_id"]), []).append(match)
    ids = sorted(set(objects) | set(counted))
    return ImageQualities(score, [_quality(i, len(objects.get(i, [])), counted.get(i, [])) for i in ids])


def _best_score(matches: Sequence[Match], objects: int) -> float:
    """The score threshold with the highest F1; the highest one if several tie."""
    scores = np.array([float(match.result["score"]) for match in matches])
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    right = np.cumsum(np.array([match.annotation is not None for match in matches], dtype=bool)[order])
    if not len(right) or not right[-1]:
        return UNDECIDED_SCORE
    last_of_score = np.append(scores[:-1] != scores[1:], True)
    f1 = np.where(last_of_score, 2 * right / (np.arange(1, len(right) + 1) + objects), -1.0)
    return float(scores[int(np.argmax(f1))])


def _quality(image_id: int, objects: int, matches: Sequence[Match]) -> ImageQuality:
    ious = [match.iou for match in matches if match.annotation is not None]
    missed, false = objects - len(ious), len(matches) - len(ious)
    quality = sum(ious) / (len(ious) + missed / 2 + false / 2)
    return ImageQuality(image_id, quality, objects, missed, false, sum(iou < POOR_IOU for iou in ious))
