"""Disagreement of two models on an image, from 0 (same instances) to 1 (none in common)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sskd_fast.mask_matching import Match, match_results

Results = Sequence[dict[str, Any]]

# Masks of one class with at least this IoU are the same object.
SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True)
class Comparison:
    """Labels of two models on one image as COCO results, and the pairs that describe the same object.

    pairs: matches of a student's result to a teacher's result, which takes the role of the annotation.
    """

    teacher: Results
    student: Results
    pairs: Sequence[Match]

    @property
    def disagreement(self) -> float:
        """1 - F1 of one model's labels against the other's, in [0, 1], each label weighted by its score s:

            1 - sum over pairs (t, s) of IoU(t, s) (score t + score s) / sum of all scores of both.

        0 if both are empty; 1 if only one is, or if there are no pairs.  A confident unpaired label counts more than an
        unconfident one, and a pair counts by the IoU of its masks.
        """
        total = math.fsum(_score(label) for label in (*self.teacher, *self.student))
        if not total:
            return 0.0
        agreed = math.fsum(
            pair.iou * _score(label)
            for pair in self.pairs
            for label in (pair.result, pair.annotation)
            if label is not None
        )
        return max(0.0, 1.0 - agreed / total)

    @property
    def prelabels(self) -> list[dict[str, Any]]:
        """Labels to start annotation from, best score first: the teacher's, or the better-scored label of a pair."""
        student_of = {id(pair.annotation): pair.result for pair in self.pairs}
        chosen = [max(label, student_of.get(id(label), label), key=_score) for label in self.teacher]
        return sorted(chosen, key=_score, reverse=True)


def _score(label: dict[str, Any]) -> float:
    return float(label["score"])


def compare(teacher: Results, student: Results, size: tuple[int, int]) -> Comparison:
    """Compares the labels of both models on one image of (H, W) pixels.

    Each label of the student, best score first, is paired with the free label of the teacher that it overlaps most. The
    two must have the same class and an IoU of at least 0.5.
    """
    image_ids = {label["image_id"] for label in (*teacher, *student)}
    images = [{"id": image_id, "height": size[0], "width": size[1]} for image_id in image_ids]
    truth = {"images": images, "annotations": list(teacher)}
    matches = match_results(student, truth, iou=SAME_OBJECT_IOU, class_aware=True)
    return Comparison(teacher, student, [match for match in matches if match.annotation is not None])
