"""Score thresholds per class, calibrated for a target precision on held-out labelled images."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sskd_fast.mask_matching import match_results

logger = logging.getLogger(__name__)

UNCALIBRATED_THRESHOLD = 0.5


def calibrate_thresholds(
    results: Sequence[dict[str, Any]],
    ground_truth: dict[str, Any],
    *,
    target_precision: float,
    iou: float,
    floor: float,
    minimum_matches: int,
    shrink: float,
    quiet: bool = False,
) -> dict[int, float]:
    """For each category, the lowest score threshold that reaches `target_precision`.

    results: the teacher's predictions on held-out images, low scores included; ground_truth: the annotations of those
    images.  A result is right if it matches a free annotation of its class at IoU >= `iou`, highest score first.
    A threshold is valid only if it keeps at least `minimum_matches` right labels.  A class without a valid threshold at
    the target gets the threshold pooled over all classes.  If the pool misses the target too, its most precise valid
    threshold is used, or 0.5 if there is none.  Both cases are logged unless `quiet`.
    shrink: n0.  The precision of a class's n results from a score on counts n / (n + n0), that of all classes
    n0 / (n + n0).  So the few results of a rare class weigh little.  A single class is not changed.
    No threshold is under `floor`.

    Returns {category_id: score} for all categories of the ground truth.  Raises ValueError for arguments out of range
    or a result on an image that is not in the ground truth.
    """
    for name, value in (("target_precision", target_precision), ("iou", iou), ("floor", floor)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is {value}, expected a number in [0, 1]")
    if minimum_matches < 1:
        raise ValueError(f"minimum_matches is {minimum_matches}, expected at least 1")
    if shrink < 0:
        raise ValueError(f"shrink is {shrink}, expected a number of results, 0 or more")
    judged = [m for m in match_results(results, ground_truth, iou=iou, class_aware=True) if not m.ignored]
    scores = np.array([float(m.result["score"]) for m in judged])
    right = np.array([m.annotation is not None for m in judged], dtype=bool)
    classes = np.array([int(m.result["category_id"]) for m in judged])

    every = PrecisionCurve.of(scores, right)
    pooled, doubt = _pooled_score(every, target_precision, minimum_matches)
    if doubt and not quiet:
        logger.warning(doubt)
    thresholds = {}
    for category in ground_truth["categories"]:
        chosen = classes == int(category["id"])
        curve = PrecisionCurve.of(scores[chosen], right[chosen]).shrunk(every, shrink)
        own = _lowest_score(*curve.usable(minimum_matches), target_precision)
        thresholds[int(category["id"])] = max(floor, pooled if own is None else own)
    return thresholds


def uncalibrated_warning(place: str, group_key: str) -> str:
    """The warning that calibration is impossible because the labels cover only one image, or one group of a field."""
    what = f"one group of {group_key!r}" if group_key else "one image"
    return (
        f"{place}: all labels belong to {what}, so no model can be tested on held-out labels; the "
        f"thresholds of the pseudo-labels stay at {UNCALIBRATED_THRESHOLD:.2f}. Label more images."
    )


def equally_many(
    thresholds: Mapping[int, float],
    results: Sequence[dict[str, Any]],
    of_folds: Sequence[Sequence[dict[str, Any]]],
    *,
    floor: float,
) -> dict[int, float]:
    """Thresholds at which a model keeps as many results of each category as the fold models keep at theirs.

    A model trained on more labels, or for longer, has other scores.  So ranks are comparable and scores are not.
    thresholds: {category_id: score} of the fold models.  results, of_folds: results of the model and of each fold model
    on the same images, low scores included.  The number to keep is the mean over the fold models.

    Returns {category_id: score}, at least `floor`; a score above all results if none is to be kept.
    """
    mapped = {}
    for category, threshold in thresholds.items():
        kept = sum(r["score"] >= threshold for of_fold in of_folds for r in of_fold if r["category_id"] == category)
        wanted = round(kept / len(of_folds))
        scores = sorted((float(r["score"]) for r in results if r["category_id"] == category), reverse=True)
        if wanted == 0:
            mapped[category] = max(threshold, math.nextafter(scores[0], math.inf)) if scores else threshold
        else:
            mapped[category] = max(floor, scores[wanted - 1] if wanted <= len(scores) else floor)
    return mapped


@dataclass(frozen=True)
class PrecisionCurve:
    """For each distinct score, falling: the number of results with at least that score, how many are right, and their
    precision."""

    scores: NDArray[np.float64]
    matches: NDArray[np.int64]
    results: NDArray[np.int64]
    precision: NDArray[np.float64]

    @classmethod
    def of(cls, scores: np.ndarray, right: np.ndarray) -> PrecisionCurve:
        """The curve of results with scores (D,) and right (D,) bool."""
        order = np.argsort(-scores, kind="stable")
        falling, matches = scores[order], np.cumsum(right[order])
        # A threshold keeps all results of one score or none of them.
        last = np.flatnonzero(np.append(falling[:-1] != falling[1:], True)) if len(falling) else np.zeros(0, np.int64)
        return cls(falling[last], matches[last], last + 1, matches[last] / (last + 1))

    def shrunk(self, every: PrecisionCurve, prior: float) -> PrecisionCurve:
        """This curve with its precision drawn towards that of `every` at the same score.

        It is the posterior mean under a beta prior that weighs as much as `prior` results.
        """
        at = np.searchsorted(-every.scores, -self.scores)  # all scores occur in `every`
        # As a difference, so that a curve equal to `every` stays the same bit by bit.
        drawn = (every.precision[at] - self.precision) * (prior / (self.results + prior))
        return replace(self, precision=self.precision + drawn)

    def usable(self, minimum_matches: int) -> tuple[np.ndarray, np.ndarray]:
        """The falling scores that keep at least `minimum_matches` right results, and the precision at each."""
        enough = self.matches >= minimum_matches
        return self.scores[enough], self.precision[enough]


def _lowest_score(usable: np.ndarray, precision: np.ndarray, target: float) -> float | None:
    """The lowest score with cumulative precision >= target; None if there is none."""
    reached = usable[precision >= target]
    return float(reached[-1]) if len(reached) else None


def _pooled_score(every: PrecisionCurve, target: float, minimum_matches: int) -> tuple[float, str]:
    """The threshold over all classes, and a note on its weakness ("" if it reaches the target).

    The lowest score that reaches the target, else the most precise one, else 0.5.
    """
    usable, precision = every.usable(minimum_matches)
    score = _lowest_score(usable, precision, target)
    if score is not None:
        return score, ""
    if len(usable):
        best = int(np.argmax(precision))
        return float(usable[best]), (
            f"no score reaches precision {target:.2f} on held-out labelled images; the threshold "
            f"{usable[best]:.2f} gives {precision[best]:.2f}"
        )
    return UNCALIBRATED_THRESHOLD, (
        f"the predictions on held-out labelled images have {every.matches.max(initial=0)} right ones, fewer than "
        f"pseudo_labels.minimum_matches = {minimum_matches}: thresholds stay at {UNCALIBRATED_THRESHOLD:.2f}; "
        "label more images or train the teacher longer"
    )
