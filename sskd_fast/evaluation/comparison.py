"""How far the difference in AP between two models rests on which images they were measured on: a paired bootstrap.

Images, or groups of images that belong together, are drawn with replacement, the same for both models, and AP is
computed anew for every draw.  An image drawn n times counts as n images (but for the order of detections with equal
scores); what was matched on it stays matched, so that a draw costs two cumulative sums a class.  A class without an
object in a draw does not count in it.

Shape letters: T IoU thresholds, R recall levels, D detections of a class, I images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from sskd_fast.evaluation.coco_ap import matched_masks

# Share of the draws that the interval holds.
_LEVEL = 0.95


@dataclass(frozen=True)
class Gain:
    """The AP of one model less that of another, in percent, and its 95 % confidence interval as far as the choice of
    images goes; another training run may change it by more."""

    ap: float
    low: float
    high: float


@dataclass(frozen=True)
class _ClassMatches:
    """The detections of a class, best score first: right, wrong (T, D) bool, image (D,); objects (I,) a class has on
    each image."""

    right: np.ndarray
    wrong: np.ndarray
    image: np.ndarray
    objects: np.ndarray

    def ap(self, times: np.ndarray, levels: np.ndarray) -> float:
        """AP over the IoU thresholds, 0 to 1, where image i counts times[i] times; nan without an object.

        levels (R,): recalls at which precision is read, as COCO does.
        """
        objects = float(self.objects @ times)
        if objects == 0:
            return math.nan
        counts = times[self.image]
        right, wrong = np.cumsum(self.right * counts, axis=1), np.cumsum(self.wrong * counts, axis=1)
        precision = right / (right + wrong + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        total = 0.0
        for recall, at in zip(right / objects, precision, strict=True):
            place = np.searchsorted(recall, levels, side="left")
            total += float(at[place[place < len(at)]].sum())
        return total / (len(self.right) * len(levels))


def compare_masks(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    others: Sequence[dict[str, Any]],
    *,
    max_detections: int = 100,
    draws: int = 400,
    seed: int = 0,
    groups: Mapping[int, object] | None = None,
) -> Gain:
    """By how much `results` are better than `others`, in COCO mask AP, and how well the images tell.

    Arguments and errors as of `evaluate_masks`; draws: how often images are drawn; seed: of the draws.  groups: image
    id -> what it belongs to (slide, video, city), where images of a group are alike: whole groups are drawn then, since
    images drawn one by one would make the interval too narrow.  Source of the interval: the percentile bootstrap
    (Efron).  All three are nan where there is no ground truth.  Raises ValueError for an image without a group.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}, expected at least 1")
    ours, theirs = (matched_masks(ground_truth, r, max_detections=max_detections) for r in (results, others))
    matches, levels = [_matches_by_class(evaluation) for evaluation in (ours, theirs)], ours.params.recThrs
    group_of, count = _groups(ours.params.imgIds, groups)
    generator = np.random.default_rng(seed)

    def gain(times: np.ndarray) -> float:
        aps = [np.array([of_class.ap(times, levels) for of_class in of_model]) for of_model in matches]
        measured = np.isfinite(aps[0])
        return 100.0 * float((aps[0] - aps[1])[measured].mean()) if measured.any() else math.nan

    def drawn() -> np.ndarray:
        return np.bincount(generator.integers(0, count, count), minlength=count)[group_of]

    gains = [value for _ in range(draws if count else 0) if math.isfinite(value := gain(drawn()))]
    low, high = np.quantile(gains, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]) if gains else (math.nan, math.nan)
    return Gain(gain(np.ones(len(group_of))), float(low), float(high))


def _groups(image_ids: Sequence[int], groups: Mapping[int, object] | None) -> tuple[np.ndarray, int]:
    """The number of each image's group, (I,) int64, and how many groups there are; every image alone without groups."""
    if groups is None:
        return np.arange(len(image_ids)), len(image_ids)
    without = [i for i in image_ids if i not in groups]
    if without:
        raise ValueError(f"groups: {len(without)} images have none, first {without[0]}; give every image a group")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups[i] for i in image_ids))}
    return np.array([numbers[groups[i]] for i in image_ids], dtype=np.int64), len(numbers)


def _matches_by_class(evaluation: COCOeval) -> list[_ClassMatches]:
    """What COCOeval has matched, objects of all sizes, as one record a class."""
    p = evaluation.params
    count, sizes = len(p.imgIds), len(p.areaRng)
    classes = []
    for number in range(len(p.catIds)):
        first = number * sizes * count
        found = [(i, e) for i, e in enumerate(evaluation.evalImgs[first : first + count]) if e is not None]
        objects = np.zeros(count)
        for i, e in found:
            objects[i] = np.count_nonzero(np.asarray(e["gtIgnore"]) == 0)
        scores = np.concatenate([[], *(e["dtScores"] for _, e in found)])
        order = np.argsort(-scores, kind="stable")
        image = np.repeat([i for i, _ in found], [len(e["dtScores"]) for _, e in found]).astype(np.int64)
        empty = np.zeros((len(p.iouThrs), 0), dtype=bool)
        matched = np.concatenate([empty, *(e["dtMatches"] != 0 for _, e in found)], axis=1)
        ignored = np.concatenate([empty, *(np.asarray(e["dtIgnore"], dtype=bool) for _, e in found)], axis=1)
        right, wrong = matched & ~ignored, ~matched & ~ignored
        classes.append(_ClassMatches(right[:, order], wrong[:, order], image[order], objects))
    return classes
