"""Mask AP of touching objects: which objects touch, and which results count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

from sskd_fast.evaluation import evaluate_masks, evaluate_touching
from sskd_fast.evaluation.touching import touching_masks
from tests.test_coco_ap import Box, result, truth_of

PAIR: list[tuple[int, int, Box]] = [(1, 10, (4, 4, 10, 10)), (1, 20, (4, 15, 10, 10))]
LONELY: tuple[int, int, Box] = (1, 10, (40, 40, 10, 10))


def naive(masks: list[np.ndarray], within: int) -> list[bool]:
    """Every pixel of a mask against every pixel of the others."""
    places = [np.argwhere(mask) for mask in masks]
    return [
        any(
            len(own) and len(other) and np.abs(own[:, None] - other[None]).max(-1).min() <= within
            for j, other in enumerate(places)
            if j != i
        )
        for i, own in enumerate(places)
    ]


def test_touching_masks_are_those_of_a_comparison_pixel_by_pixel() -> None:
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        masks = [np.zeros((20, 24), dtype=np.uint8) for _ in range(4)]
        for mask in masks[:3]:
            top, left = generator.integers(0, 17), generator.integers(0, 21)
            mask[top : top + 4, left : left + 4] = generator.random((4, 4))[: 20 - top, : 24 - left] < 0.6
        encoded = [rle.encode(np.asfortranarray(mask)) for mask in masks]
        for within in (1, 2, 3):
            expected = naive(masks, within)
            assert touching_masks(encoded, np.ones(4, dtype=np.bool_), within).tolist() == expected
            seen |= set(expected)
    assert seen == {False, True}


def test_an_object_that_lies_alone_counts_neither_found_nor_missed() -> None:
    truth = truth_of([*PAIR, LONELY])
    found = [result(*thing, score=0.9) for thing in PAIR]
    poor = result(1, 10, (40, 40, 10, 3), 0.95)
    assert evaluate_touching(truth, found).ap == pytest.approx(100.0)
    assert evaluate_touching(truth, [poor, *found]).ap == pytest.approx(100.0)
    assert evaluate_masks(truth, [poor, *found]).ap < 80


def test_objects_that_overlap_touch() -> None:
    ring = np.ones((12, 12), dtype=np.uint8)
    ring[2:10, 2:10] = 0
    core = np.zeros((12, 12), dtype=np.uint8)
    core[5:7, 5:7] = 1
    for masks, within, expected in (((ring, ring), 1, True), ((ring, core), 3, False), ((ring, core), 4, True)):
        codes = [rle.encode(np.asfortranarray(mask)) for mask in masks]
        assert touching_masks(codes, np.ones(2, dtype=np.bool_), within).tolist() == [expected] * 2


def test_missed_and_false_results_count() -> None:
    truth = truth_of([*PAIR, LONELY])
    found = [result(*thing, score=0.9) for thing in PAIR]
    assert evaluate_touching(truth, found[:1]).ap == pytest.approx(50.0)
    nowhere = result(1, 10, (50, 4, 8, 8), 0.95)
    assert evaluate_touching(truth, [nowhere, *found]).ap == pytest.approx(75.0, abs=0.1)
    assert evaluate_touching(truth, []).ap == 0.0
    same_class = truth_of([(1, 10, box) for _, _, box in PAIR], classes=1)
    both = [result(1, 10, box, 0.9) for _, _, box in PAIR]
    assert evaluate_touching(same_class, both).max_detections == 100
    assert evaluate_touching(same_class, both, max_detections=1).ap == pytest.approx(100 * 51 / 101)


def test_further_apart_than_asked_nothing_touches_and_there_is_nothing_to_measure() -> None:
    truth = truth_of(PAIR)
    assert np.isnan(evaluate_touching(truth, [], within=1).ap)
    assert evaluate_touching(truth, [], within=2).ap == 0.0
    alone = truth_of([(1, 10, (4, 4, 10, 10)), (2, 10, (4, 4, 10, 10))])
    assert np.isnan(evaluate_touching(alone, []).ap), "one object an image"


def test_crowd_regions_touch_nothing() -> None:
    truth = truth_of([*PAIR, LONELY])
    truth["annotations"][1]["iscrowd"] = 1
    assert np.isnan(evaluate_touching(truth, []).ap)
    beside = truth_of([*PAIR, (2, 10, (4, 4, 10, 10)), (2, 20, (4, 15, 10, 10))])
    for annotation in beside["annotations"][2:]:
        annotation["iscrowd"] = 1
    found = [result(*thing, score=0.9) for thing in PAIR]
    in_crowd = result(2, 10, (4, 4, 10, 10), 0.95)
    assert evaluate_touching(beside, [in_crowd, *found]).ap == pytest.approx(100.0)
    assert touching_masks([], np.zeros(0, dtype=np.bool_), 2).shape == (0,)


def test_arguments_are_checked_and_stay_as_they_were() -> None:
    truth: dict[str, Any] = truth_of([*PAIR, LONELY])
    with pytest.raises(ValueError, match="within: expected at least 1 pixel, found 0"):
        evaluate_touching(truth, [], within=0)
    with pytest.raises(ValueError, match="is on image 9"):
        evaluate_touching(truth, [result(9, 10, (0, 0, 5, 5), 0.5)])
    assert len(truth["annotations"]) == 3
