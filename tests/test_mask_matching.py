"""Masks against masks: IoU, matching and suppression, with values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sskd_fast.boxed_masks import Bools, Box, area, boxes_meet, highest_iou, mask_iou, on_tiles
from sskd_fast.mask_matching import Match, by_image, greedy_groups, greedy_matches, mask_nms, match_results, rle_iou
from sskd_fast.models.inference import Detection
from sskd_fast.rle import rle_of_box

SIZE = (32, 32)
WHOLE: Box = (0, 0, 64, 96)


def boxed(box: Box, tile: Box = WHOLE, mask: Bools | None = None) -> Detection:
    """The full box, or the mask in it, seen in a tile."""
    top, left, bottom, right = box
    filled = np.ones((bottom - top, right - left), dtype=np.bool_) if mask is None else mask
    return Detection(filled, top, left, 0, 0.5, (tile,))


def encoded(box: Box) -> dict[str, Any]:
    top, left, bottom, right = box
    return rle_of_box(np.ones((bottom - top, right - left), dtype=np.bool_), top, left, *SIZE)


def result(box: Box, score: float, category: int = 3, image: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": encoded(box), "score": score}


def truth_of(*objects: tuple[Box, int, int]) -> dict[str, Any]:
    """Ground truth of image 1: (box, category, iscrowd)."""
    return {
        "images": [{"id": 1, "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": category, "segmentation": encoded(box), "iscrowd": crowd}
            for n, (box, category, crowd) in enumerate(objects, 1)
        ],
    }


# IoU


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0, 0, 10, 40), 1.0),
        ((5, 20, 15, 60), 100 / 700),  # 5 x 20 of 400 + 400 - 100
        ((2, 10, 6, 20), 40 / 400),  # inside
        ((10, 0, 20, 40), 0.0),  # the next row
        ((0, 40, 10, 50), 0.0),  # the next column
    ],
)
def test_iou_is_the_shared_area_over_that_of_both(other: Box, expected: float) -> None:
    a, b = boxed((0, 0, 10, 40)), boxed(other)
    assert mask_iou(a, b) == mask_iou(b, a) == expected


def test_iou_counts_pixels_of_the_masks_not_of_their_boxes() -> None:
    ring = np.ones((4, 4), dtype=np.bool_)
    ring[1:3, 1:3] = False
    assert mask_iou(boxed((2, 2, 6, 6), mask=ring), boxed((2, 2, 6, 4))) == 6 / (12 + 8 - 6)
    assert mask_iou(boxed((2, 2, 6, 6), mask=ring), boxed((3, 3, 5, 5))) == 0.0
    empty = np.zeros((4, 4), dtype=np.bool_)
    assert mask_iou(boxed((2, 2, 6, 6), mask=empty), boxed((2, 2, 6, 6), mask=empty)) == 0.0


def test_no_iou_exceeds_what_boxes_and_areas_allow() -> None:
    rng = np.random.default_rng(0)
    masks = []
    for _ in range(60):
        (top, bottom), (left, right) = (sorted(rng.choice(14, 2, replace=False)) for _ in range(2))
        masks.append(boxed((top, left, bottom, right), mask=rng.random((bottom - top, right - left)) < rng.random()))
    boxes, areas = np.array([mask.box for mask in masks]).T, np.array([area(mask.mask) for mask in masks])
    assert areas.tolist() == [int(mask.mask.sum()) for mask in masks]
    close = 0
    for mask, own in zip(masks, areas.tolist(), strict=True):
        bounds = highest_iou(boxes, areas, mask.box, own).tolist()
        found = [mask_iou(mask, other) for other in masks]
        assert all(iou <= bound <= 1 for iou, bound in zip(found, bounds, strict=True))
        meeting = [boxes_meet(other.box, mask.box) for other in masks]
        assert all(bound == 0 for bound, meets in zip(bounds, meeting, strict=True) if not meets)
        close += sum(iou == bound > 0 for iou, bound in zip(found, bounds, strict=True))
    assert close > 60, "of masks that fill the pixels that the boxes share, among others each with itself"


def test_iou_on_common_tiles_leaves_out_what_only_one_could_see() -> None:
    left, right = (0, 0, 64, 64), (0, 32, 64, 96)
    a, b = boxed((0, 0, 10, 40), left), boxed((5, 32, 15, 60), right)
    # Columns 32 to 39 of a, 80 pixels; 280 of b, all before column 64; 5 x 8 are shared.
    assert mask_iou(a, b, on_common_tiles=True) == mask_iou(b, a, on_common_tiles=True) == 40 / (80 + 280 - 40)
    assert mask_iou(a, b) == 40 / (400 + 280 - 40)
    beyond = boxed((5, 32, 15, 90), right)
    assert mask_iou(a, beyond, on_common_tiles=True) == 40 / (80 + 320 - 40)
    same_tile = boxed((5, 32, 15, 60), left)
    assert mask_iou(a, same_tile, on_common_tiles=True) == mask_iou(a, same_tile) == 40 / 640
    assert mask_iou(a, boxed((40, 80, 50, 90), right), on_common_tiles=True) == 0.0


def test_pixels_on_tiles_are_those_of_any_tile_in_the_box() -> None:
    found = on_tiles([(0, 0, 4, 4), (5, 5, 9, 9), (20, 20, 30, 30)], (2, 3, 7, 7))
    assert found.astype(int).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_boxes_meet_if_they_share_a_pixel() -> None:
    box: Box = (4, 4, 8, 8)
    others: list[Box] = [(7, 7, 9, 9), (8, 4, 9, 8), (4, 8, 8, 9), (0, 0, 4, 4), (0, 0, 5, 5), (5, 5, 6, 6)]
    expected = [True, False, False, False, True, True]
    assert [boxes_meet(other, box) for other in others] == expected
    assert boxes_meet(np.array(others).T, box).tolist() == expected


def test_iou_of_rle_masks_takes_a_crowd_region_by_the_area_of_the_result() -> None:
    found, wanted = [encoded((0, 0, 4, 4)), encoded((0, 2, 4, 6))], [encoded((0, 0, 8, 4))]
    assert rle_iou(found, wanted).tolist() == [[16 / 32], [8 / 40]]
    assert rle_iou(found, wanted, np.array([True])).tolist() == [[1.0], [0.5]]
    assert rle_iou([], wanted).shape == (0, 1) and rle_iou(found, []).shape == (2, 0)


# Groups and suppression


def test_groups_take_what_is_free_around_the_best() -> None:
    pairs = {(0, 2), (1, 2), (1, 3), (2, 4)}  # 2 belongs to 0 and is free for nobody; so it gathers no 4
    asked: list[tuple[int, list[int]]] = []

    def overlapping(first: int, later: np.ndarray) -> list[int]:
        asked.append((first, later.tolist()))
        return [i for i in later.tolist() if (first, i) in pairs]

    assert list(greedy_groups(5, overlapping)) == [[0, 2], [1, 3], [4]]
    assert asked == [(0, [1, 2, 3, 4]), (1, [3, 4]), (4, [])]
    assert list(greedy_groups(0, overlapping)) == []


def test_nms_keeps_the_best_of_overlapping_masks() -> None:
    best, shifted, apart = (
        result((0, 0, 10, 10), 0.9),
        result((0, 1, 10, 11), 0.95, category=7),  # IoU with best: 90 / 110
        result((20, 20, 25, 25), 0.1),
    )
    assert mask_nms([best, shifted, apart], 0.7) == [shifted, apart]
    assert mask_nms([best, shifted, apart], 0.9) == [shifted, best, apart]
    assert mask_nms([best, shifted, apart], 90 / 110) == [shifted, best, apart]  # more than it, not as much
    assert mask_nms([best, shifted, apart], 0.7, class_aware=True) == [shifted, best, apart]
    assert mask_nms([], 0.7) == mask_nms([], 0.7, class_aware=True) == []
    with pytest.raises(ValueError, match=r"mask_nms takes the results of one image, found images \[1, 2\]"):
        mask_nms([best, result((2, 2, 10, 10), 0.5, image=2)], 0.7)


def test_a_suppressed_mask_suppresses_nothing() -> None:
    chain = [result((0, 3 * i, 10, 3 * i + 10), 0.9 - 0.1 * i) for i in range(3)]  # IoU 7/13 next, 4/16 after that
    assert mask_nms(chain, 0.5) == [chain[0], chain[2]]


# Matching


def test_each_result_takes_the_free_object_it_overlaps_most() -> None:
    overlap = np.array([[0.6, 0.9, 0.5], [0.7, 0.95, 0.0], [0.6, 0.9, 0.4], [0.0, 0.0, 0.5]])
    assert greedy_matches(overlap, 0.5) == [1, 0, None, 2]
    assert greedy_matches(overlap, 0.5, np.array([True, False, True])) == [0, None, None, 2]
    assert greedy_matches(overlap, 0.75) == [1, None, None, None]
    assert greedy_matches(np.array([[0.5, 0.5]]), 0.5) == [0]


def test_matching_without_objects_or_results_gives_no_match() -> None:
    assert greedy_matches(np.zeros((2, 0)), 0.5) == [None, None]
    assert greedy_matches(np.zeros((0, 2)), 0.5) == []
    assert greedy_matches(np.ones((1, 2)), 0.5, np.array([False, False])) == [None]
    assert greedy_matches(np.zeros((2, 1)), 0.0) == [0, None]


def test_allowed_objects_stay_as_they_were() -> None:
    allowed = np.array([True, True])
    greedy_matches(np.eye(2), 0.5, allowed)
    assert allowed.tolist() == [True, True]


def test_results_match_by_score_and_by_class_if_asked() -> None:
    truth = truth_of(((0, 0, 10, 10), 3, 0), ((0, 12, 10, 22), 7, 0))
    exact, loose = result((0, 0, 10, 10), 0.4), result((0, 0, 8, 10), 0.6)
    other = result((0, 12, 10, 22), 0.5)  # the place of the 7, called a 3
    first, second = truth["annotations"]
    expected = [Match(loose, first, 0.8, False), Match(other, second, 1.0, False), Match(exact, None, 0.0, False)]
    assert match_results([exact, loose, other], truth, iou=0.5, class_aware=False) == expected
    expected[1] = Match(other, None, 0.0, False)
    assert match_results([exact, loose, other], truth, iou=0.5, class_aware=True) == expected
    assert match_results([loose], truth, iou=0.81, class_aware=False) == [Match(loose, None, 0.0, False)]


def test_a_result_in_a_crowd_region_is_ignored_and_never_matched() -> None:
    truth = truth_of(((0, 0, 20, 20), 3, 1))
    inside, half, outside = result((2, 2, 6, 6), 0.9), result((18, 0, 22, 4), 0.8), result((19, 0, 23, 4), 0.7)
    found = match_results([inside, half, outside], truth, iou=0.5, class_aware=True)
    assert [(m.annotation, m.ignored) for m in found] == [(None, True), (None, True), (None, False)]
    stranger = result((2, 2, 6, 6), 0.9, category=7)
    assert not match_results([stranger], truth, iou=0.5, class_aware=True)[0].ignored


def test_an_image_without_objects_has_wrong_results_and_a_foreign_image_is_named() -> None:
    lone = result((0, 0, 4, 4), 0.5)
    for class_aware in (False, True):
        assert match_results([lone], truth_of(), iou=0.5, class_aware=class_aware) == [Match(lone, None, 0.0, False)]
    with pytest.raises(ValueError, match="a result is on image 5, not among the 1 images of the ground truth"):
        match_results([result((0, 0, 4, 4), 0.5, image=5)], truth_of(), iou=0.5, class_aware=True)


def test_records_are_grouped_in_their_order() -> None:
    records = [{"image_id": 2, "n": 0}, {"image_id": 1, "n": 1}, {"image_id": 2, "n": 2}]
    groups = by_image(records)
    assert list(groups) == [2, 1] and [r["n"] for r in groups[2]] == [0, 2]
