"""Confidence intervals for the difference in AP between two models, over images and over seeds.

A paired bootstrap draws images, or whole groups of images, with replacement and computes AP for each draw.  Both models
get the same draws.  An image drawn n times counts as n images, except for the order of detections with equal scores.
Matches on an image do not change, so a draw costs two cumulative sums per class.  A class without objects in a draw
does not count there.

Shape letters: T IoU thresholds, R recall levels, D detections of a class, I images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval
from scipy.special import stdtrit

from sskd_fast.evaluation.coco_ap import matched_masks

# Confidence level of the intervals.
_LEVEL = 0.95


@dataclass(frozen=True)
class Gain:
    """The AP of one model minus that of another, in percent, with its 95 % confidence interval.

    The interval covers only the choice of images; another training run may change the gain by more.
    """

    ap: float
    low: float
    high: float


@dataclass(frozen=True)
class SeedGain:
    """The mean gain of several seeds in percent, its sample standard deviation, and 95 % confidence intervals.

    low, high: interval over seeds and images.  t_low, t_high: Student's t interval over seeds only.  by_seed: the gain
    of each seed.  sd, t_low and t_high are NaN for a single seed.
    """

    ap: float
    sd: float
    low: float
    high: float
    t_low: float
    t_high: float
    by_seed: list[float]


@dataclass(frozen=True)
class _ClassMatches:
    """The detections of a class, best score first.

    right, wrong: (T, D) bool, both False for ignored ones.  image: (D,) index of the image.  objects: (I,) number of
    objects of the class on each image.
    """

    right: np.ndarray
    wrong: np.ndarray
    image: np.ndarray
    objects: np.ndarray

    def ap(self, times: np.ndarray, levels: np.ndarray) -> float:
        """AP in [0, 1] over the IoU thresholds if image i counts times[i] times; NaN without objects.

        levels: (R,) recalls at which precision is read, as in COCO.
        """
        objects = float(self.objects @ times)
        if objects == 0:
            return math.nan
        if not self.right.any():
            return 0.0
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
    """The gain in COCO mask AP of `results` over `others`, with a percentile bootstrap interval (Efron).

    Arguments and errors are those of `evaluate_masks`; draws, seed and groups those of `drawn_ap`.  All three figures
    are NaN without ground truth.
    """
    ours, theirs = drawn_ap(
        ground_truth, [results, others], max_detections=max_detections, draws=draws, seed=seed, groups=groups
    )
    return gain_of(ours - theirs)


def drawn_ap(
    ground_truth: dict[str, Any],
    models: Sequence[Sequence[dict[str, Any]]],
    *,
    max_detections: int = 100,
    draws: int = 400,
    seed: int = 0,
    groups: Mapping[int, object] | None = None,
) -> list[NDArray[np.float64]]:
    """The AP in percent of each model's results, (1 + draws,) float64: on the images as they are, then on each draw.

    All models get the same draws.  seed: seed of the draws.  groups: image id -> group of similar images (slide, video,
    city).  Whole groups are drawn then, since drawing their images one by one would make the interval too narrow.
    A draw without ground truth gives NaN.  Raises ValueError for an image without a group.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}, expected at least 1")
    evaluations = [matched_masks(ground_truth, results, max_detections=max_detections) for results in models]
    if not evaluations:
        return []
    group_of, count = _groups(evaluations[0].params.imgIds, groups)
    generator = np.random.default_rng(seed)
    times = [np.ones(len(group_of))]
    for _ in range(draws):
        drawn = np.bincount(generator.integers(0, count, count) if count else np.zeros(0, int), minlength=count)
        times.append(drawn[group_of])
    return [_ap_of_draws(evaluation, times) for evaluation in evaluations]


def _ap_of_draws(evaluation: COCOeval, draws: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """AP in percent over the classes with objects, for each draw; draws: how often each image counts."""
    classes, levels = _matches_by_class(evaluation), evaluation.params.recThrs
    aps = np.full(len(draws), math.nan)
    for number, times in enumerate(draws):
        of_classes = np.array([of_class.ap(times, levels) for of_class in classes])
        if np.isfinite(of_classes).any():
            aps[number] = 100.0 * np.nanmean(of_classes)
    return aps


def gain_of(differences: NDArray[np.float64]) -> Gain:
    """The gain from differences of `drawn_ap`, (1 + draws,), with its percentile interval over the draws."""
    low, high = _interval(differences[1:])
    return Gain(float(differences[0]), low, high)


def gain_over_seeds(
    differences: Sequence[NDArray[np.float64]], *, same_images: bool, draws: int = 2000, seed: int = 0
) -> SeedGain:
    """The mean of the gains of several seeds, with its interval over seeds and images.

    differences: differences of `drawn_ap`, (1 + draws,) for each seed.  same_images: True if all seeds were measured on
    the same images with the same draws.  A draw then has the same images for all seeds, since their choice does not
    average out.

    Source: the hierarchical bootstrap (Davison and Hinkley, 1997, section 3.8).  Seeds are drawn with replacement, and
    one draw of images for each.  For a single seed the interval is over images only.  Raises ValueError without seeds.
    """
    if not differences:
        raise ValueError("differences: found no seed, expected at least 1")
    table = np.stack(differences)  # (seeds, 1 + draws)
    seeds, of_images = len(table), table.shape[1] - 1
    generator = np.random.default_rng(seed)
    drawn_seeds = generator.integers(0, seeds, (draws, seeds))
    drawn_images = generator.integers(0, of_images, (draws, 1 if same_images else seeds)) + 1
    drawn = table[drawn_seeds, drawn_images].mean(axis=1) if seeds > 1 else table[0, 1:]
    low, high = _interval(drawn)
    values = table[:, 0]
    mean, sd = float(values.mean()), float(values.std(ddof=1)) if seeds > 1 else math.nan
    half = float(stdtrit(seeds - 1, (1 + _LEVEL) / 2)) * sd / math.sqrt(seeds) if seeds > 1 else math.nan
    return SeedGain(mean, sd, low, high, mean - half, mean + half, values.tolist())


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The central interval of the finite values at the confidence level; NaN if there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return math.nan, math.nan
    low, high = np.quantile(finite, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def _groups(image_ids: Sequence[int], groups: Mapping[int, object] | None) -> tuple[np.ndarray, int]:
    """The group number of each image, (I,) int64, and the number of groups; by default each image is its own group."""
    if groups is None:
        return np.arange(len(image_ids)), len(image_ids)
    without = [i for i in image_ids if i not in groups]
    if without:
        raise ValueError(f"groups: {len(without)} images have none, first {without[0]}; give every image a group")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups[i] for i in image_ids))}
    return np.array([numbers[groups[i]] for i in image_ids], dtype=np.int64), len(numbers)


def _matches_by_class(evaluation: COCOeval) -> list[_ClassMatches]:
    """The matches of COCOeval for objects of all sizes, one record per class."""
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
