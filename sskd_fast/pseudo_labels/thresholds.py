"""Score thresholds by class, calibrated for a wanted precision on held-out labelled images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

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
    quiet: bool = False,
) -> dict[int, float]:
    """For each category, the lowest score from which on the labels kept are right with at least `target_precision`.

    results: the teacher's predictions on held-out images, low scores included; ground_truth: the annotations of those
    images.  A result is right where it matches a free annotation of its class at IoU >= `iou`, highest score first.
    A threshold counts only if it keeps at least `minimum_matches` right labels; a class that does not reach the target
    with one takes the threshold pooled over all classes.  Where these do not reach it either, their most precise
    threshold is taken, where even they are too few, 0.5; both are logged, unless `quiet`.
    No threshold is under `floor`.

    Returns {category_id: score} for every category of the ground truth.  Raises ValueError for values outside their
    range or a result on an image that the ground truth does not have.
    """
    for name, value in (("target_precision", target_precision), ("iou", iou), ("floor", floor)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is {value}, expected a number in [0, 1]")
    if minimum_matches < 1:
        raise ValueError(f"minimum_matches is {minimum_matches}, expected at least 1")
    judged = [m for m in match_results(results, ground_truth, iou=iou, class_aware=True) if not m.ignored]
    scores = np.array([float(m.result["score"]) for m in judged])
    right = np.array([m.annotation is not None for m in judged], dtype=bool)
    classes = np.array([int(m.result["category_id"]) for m in judged])

    pooled, doubt = _pooled_score(scores, right, target_precision, minimum_matches)
    if doubt and not quiet:
        logger.warning(doubt)
    thresholds = {}
    for category in ground_truth["categories"]:
        of_class = classes == int(category["id"])
        own = _lowest_score(scores[of_class], right[of_class], target_precision, minimum_matches)
        thresholds[int(category["id"])] = max(floor, pooled if own is None else own)
    return thresholds


def _usable(scores: np.ndarray, right: np.ndarray, minimum_matches: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores, falling, that keep at least `minimum_matches` right results, and the precision at each."""
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    matches = np.cumsum(right[order])
    precision = matches / np.arange(1, len(scores) + 1)
    # A threshold keeps all results of one score or none of them.
    last_of_score = np.append(scores[:-1] != scores[1:], True) if len(scores) else np.zeros(0, dtype=bool)
    usable = np.flatnonzero(last_of_score & (matches >= minimum_matches))
    return scores[usable], precision[usable]


def _lowest_score(scores: np.ndarray, right: np.ndarray, target: float, minimum_matches: int) -> float | None:
    """The lowest score with cumulative precision >= target; None where none has it on enough matches."""
    usable, precision = _usable(scores, right, minimum_matches)
    reached = usable[precision >= target]
    return float(reached[-1]) if len(reached) else None


def _pooled_score(scores: np.ndarray, right: np.ndarray, target: float, minimum_matches: int) -> tuple[float, str]:
    """The threshold over all classes: the lowest that reaches the target, else the most precise, else 0.5; and what is
    wrong with it, "" for nothing."""
    score = _lowest_score(scores, right, target, minimum_matches)
    if score is not None:
        return score, ""
    usable, precision = _usable(scores, right, minimum_matches)
    if len(usable):
        best = int(np.argmax(precision))
        return float(usable[best]), (
            f"no score gives precision {target:.2f} on the held-out images; the threshold {usable[best]:.2f} gives "
            f"{precision[best]:.2f}"
        )
    return UNCALIBRATED_THRESHOLD, (
        f"the held-out images hold {int(right.sum())} right predictions, fewer than pseudo_labels.minimum_matches = "
        f"{minimum_matches}: thresholds stay at {UNCALIBRATED_THRESHOLD:.2f}; hold out more labelled images or train "
        "the teacher longer"
    )
