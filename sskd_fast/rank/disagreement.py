"""Disagreement of two models on an image, from 0 (the same instances) to 1 (none in common)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sskd_fast.mask_matching import Match, match_results

Results = Sequence[dict[str, Any]]

# Masks of a class that overlap at least this much are the same object.
SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True)
class Comparison:
    """Labels of two models on one image as COCO results, and the pairs that stand for the same object.

    pairs: a result of the student matched to one of the teacher as its annotation.
    """

    teacher: Results
    student: Results
    pairs: Sequence[Match]

    @property
    def disagreement(self) -> float:
        """1 - F1 of one model's labels against the other's, in [0, 1], each label weighted by its score s:

            1 - sum over pairs (t, s) of IoU(t, s) (score t + score s) / sum of all scores of both.

        0 if both are empty; 1 if one is, or nothing is paired.  A sure label without a partner counts more than an
        unsure one, and a pair counts as far as its masks overlap.
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
        """Labels to start annotating from, best score first: the teacher's; of a pair, the one of better score."""
        student_of = {id(pair.annotation): pair.result for pair in self.pairs}
        chosen = [max(label, student_of.get(id(label), label), key=_score) for label in self.teacher]
        return sorted(chosen, key=_score, reverse=True)


def _score(label: dict[str, Any]) -> float:
    return float(label["score"])


def compare(teacher: Results, student: Results, size: tuple[int, int]) -> Comparison:
    """The labels of both models on one image of (H, W) pixels.

    Each label of the student, best score first, is paired with the free one of the teacher of the same class that it
    overlaps most, at an IoU of at least 0.5.
    """
    image_ids = {label["image_id"] for label in (*teacher, *student)}
    images = [{"id": image_id, "height": size[0], "width": size[1]} for image_id in image_ids]
    truth = {"images": images, "annotations": list(teacher)}
    matches = match_results(student, truth, iou=SAME_OBJECT_IOU, class_aware=True)
    return Comparison(teacher, student, [match for match in matches if match.annotation is not None])
