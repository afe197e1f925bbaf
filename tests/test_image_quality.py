from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

from sskd_fast.evaluation import ImageQuality, image_qualities


def box(top: int, left: int, height: int, width: int) -> dict[str, Any]:
    mask = np.zeros((20, 20), dtype=np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    return {"size": [20, 20], "counts": rle.encode(mask)["counts"].decode("ascii")}


def annotation(image: int, place: tuple[int, int, int, int], category: int = 1, crowd: int = 0) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": box(*place), "iscrowd": crowd}


def result(image: int, score: float, place: tuple[int, int, int, int], category: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": box(*place), "score": score}


CORNER, FAR, LOW = (0, 0, 4, 5), (10, 10, 4, 5), (15, 0, 3, 3)
OBJECTS = [
    annotation(1, CORNER),
    *(annotation(2, place) for place in (CORNER, FAR)),
    annotation(3, CORNER, category=2),
    *(annotation(4, place) for place in (CORNER, FAR)),
    annotation(7, CORNER, crowd=1),
]
RESULTS = [
    result(1, 0.9, CORNER),
    result(1, 0.95, LOW),  # nothing there
    result(2, 0.85, (0, 0, 4, 3)),  # 12 of 20 pixels
    result(3, 0.95, CORNER),  # of the wrong class
    result(5, 0.1, LOW),  # more false than right from here on
    result(6, 0.95, LOW),
    result(7, 0.95, CORNER),  # on a crowd
]


def truth(objects: list[dict[str, Any]]) -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 20} for i in range(1, 8)]
    return {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}


def test_the_quality_of_each_image_by_hand() -> None:
    found = image_qualities(truth(OBJECTS), RESULTS)
    assert found.score == 0.85  # F1 is 4 / (5 + 6) there, 2 / (4 + 6) at 0.9 and 4 / (6 + 6) at 0.1
    assert found.images == [
        ImageQuality(1, pytest.approx(1 / 1.5), objects=1, missed=0, false=1, poor=0),
        ImageQuality(2, pytest.approx(0.6 / 1.5), objects=2, missed=1, false=0, poor=1),
        ImageQuality(3, 0.0, objects=1, missed=1, false=1, poor=0),
        ImageQuality(4, 0.0, objects=2, missed=2, false=0, poor=0),
        ImageQuality(6, 0.0, objects=0, missed=0, false=1, poor=0),
    ]


def test_the_worst_come_first_and_more_missed_objects_before_fewer() -> None:
    found = image_qualities(truth(OBJECTS), RESULTS)
    assert [image.image_id for image in found.worst(10)] == [4, 3, 6, 2, 1]
    assert [image.image_id for image in found.worst(2)] == [4, 3]


def test_results_of_equal_scores_count_together() -> None:
    found = image_qualities(truth(OBJECTS[:1]), [result(1, 0.5, CORNER), result(1, 0.5, LOW), result(1, 0.4, FAR)])
    assert found.score == 0.5
    assert (found.images[0].false, found.images[0].quality) == (1, pytest.approx(1 / 1.5))
    # Two of four at 0.5, F1 4 / (4 + 2), are as good as 2 / (1 + 2) at 0.9; the first of them alone would be best.
    tied = [result(2, 0.9, CORNER), *(result(2, 0.5, place) for place in (FAR, LOW, (0, 10, 3, 3)))]
    assert image_qualities(truth(OBJECTS[1:3]), tied).score == 0.9


def test_objects_need_not_say_that_they_are_no_crowd() -> None:
    objects = [{key: value for key, value in thing.items() if key != "iscrowd"} for thing in OBJECTS[:1]]
    found = image_qualities(truth(objects), [result(1, 0.9, CORNER), result(1, 0.9, LOW)])
    assert found.images == [ImageQuality(1, pytest.approx(1 / 1.5), objects=1, missed=0, false=1, poor=0)]


def test_a_right_result_may_be_the_last_and_the_only_one() -> None:
    for results in ([result(1, 0.9, LOW), result(1, 0.4, CORNER)], [result(1, 0.4, CORNER)]):
        assert image_qualities(truth(OBJECTS[:1]), results).score == 0.4


def test_a_match_covers_half_of_the_union() -> None:
    half, less = (
        image_qualities(truth(OBJECTS[:1]), [result(1, 0.9, place)]) for place in ((0, 0, 2, 5), (0, 0, 3, 3))
    )
    assert half.images == [ImageQuality(1, 0.5, objects=1, missed=0, false=0, poor=1)]
    assert less.images == [ImageQuality(1, 0.0, objects=1, missed=1, false=1, poor=0)]


def test_without_a_right_result_those_from_one_half_count() -> None:
    found = image_qualities(truth(OBJECTS[:1]), [result(1, 0.6, LOW), result(1, 0.4, FAR)])
    assert found.score == 0.5
    assert found.images == [ImageQuality(1, 0.0, objects=1, missed=1, false=1, poor=0)]
    assert image_qualities(truth([]), []).images == []


def test_a_result_on_an_unknown_image_is_refused() -> None:
    with pytest.raises(ValueError, match="a result is on image 9, not among the 7 images"):
        image_qualities(truth(OBJECTS), [result(9, 0.9, CORNER)])
