from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

from sskd_fast.evaluation import evaluate_masks

Box = tuple[int, int, int, int]


def box_rle(box: Box, size: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    top, left, height, width = box
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    encoded = rle.encode(mask)
    return {"size": list(size), "counts": encoded["counts"].decode("ascii")}


def truth_of(objects: list[tuple[int, int, Box]], classes: int = 2, images: int = 2) -> dict[str, Any]:
    """Ground truth with the given (image id, category id, box) objects; category ids are 10, 20, ..."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in range(1, images + 1)],
        "categories": [{"id": 10 * c, "name": f"class{c}"} for c in range(1, classes + 1)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "segmentation": box_rle(box), "iscrowd": 0}
            for n, (image, category, box) in enumerate(objects)
        ],
    }


def result(image: int, category: int, box: Box, score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": box_rle(box), "score": score}


TWO_OBJECTS: list[tuple[int, int, Box]] = [(1, 10, (4, 4, 16, 16)), (2, 20, (8, 8, 40, 40))]


def published_figures(text: str) -> list[float]:
    """The six AP figures of the mask part, in the order AP, AP50, AP75, small, medium, large."""
    mask_part = text.split("type=segm")[1].split("type=bbox")[0]
    return [float(value) for value in re.findall(r"Average Precision.*= (\d\.\d+)", mask_part)]


def test_reproduces_published_figures_of_the_coco_api(real_data: Any) -> None:
    folder: Path = real_data("coco_eval_reference")
    ground_truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakesegm100_results.json").read_text())
    ap = evaluate_masks(ground_truth, results)
    found = [ap.ap, ap.ap50, ap.ap75, ap.ap_small, ap.ap_medium, ap.ap_large]
    expected = published_figures((folder / "expected_instances_val2014_fake100.txt").read_text())
    assert [round(value / 100, 3) for value in found] == expected
    present = {a["category_id"] for a in ground_truth["annotations"] if not a["iscrowd"]}
    assert len(ap.per_class) == len(present) < len(ground_truth["categories"])
    assert np.mean(list(ap.per_class.values())) == pytest.approx(ap.ap)


def test_ground_truth_as_results_is_perfect_and_small_and_large_are_told_apart() -> None:
    truth = truth_of(TWO_OBJECTS)
    ap = evaluate_masks(truth, [result(image, category, box, 0.9) for image, category, box in TWO_OBJECTS])
    assert [ap.ap, ap.ap50, ap.ap75, ap.ap_small, ap.ap_medium] == pytest.approx([100.0] * 5)
    assert math.isnan(ap.ap_large)
    assert ap.per_class == pytest.approx({"class1": 100.0, "class2": 100.0})


def test_each_figure_has_an_overlap_and_a_size_of_its_own() -> None:
    """The small object is missed, the medium one found with 33 of its 40 rows."""
    ap = evaluate_masks(truth_of(TWO_OBJECTS), [result(2, 20, (8, 8, 33, 40), 0.9)])
    assert [ap.ap50, ap.ap75, ap.ap_small, ap.ap_medium] == pytest.approx([50.0, 50.0, 0.0, 70.0])
    assert ap.ap == pytest.approx(35.0) and ap.per_class == pytest.approx({"class1": 0.0, "class2": 70.0})
    loose = evaluate_masks(truth_of(TWO_OBJECTS), [result(2, 20, (8, 8, 26, 40), 0.9)])
    assert (loose.ap50, loose.ap75) == pytest.approx((50.0, 0.0))


def test_a_class_without_ground_truth_does_not_count() -> None:
    truth = truth_of(TWO_OBJECTS[:1])
    results = [result(1, 10, (4, 4, 16, 16), 0.5), result(2, 20, (0, 0, 9, 9), 0.9)]
    ap = evaluate_masks(truth, results)
    assert ap.ap == pytest.approx(100.0)
    assert ap.per_class == pytest.approx({"class1": 100.0})


def test_classes_of_one_name_are_told_apart_by_their_ids() -> None:
    truth = truth_of([*TWO_OBJECTS, (1, 30, (40, 40, 16, 16))], classes=3)
    truth["categories"][2]["name"] = "class1"
    ap = evaluate_masks(truth, [result(1, 10, (4, 4, 16, 16), 0.5)])
    assert ap.per_class == pytest.approx({"class1 (10)": 100.0, "class2": 0.0, "class1 (30)": 0.0})


def test_no_results_give_zero_and_no_ground_truth_gives_nan() -> None:
    assert evaluate_masks(truth_of(TWO_OBJECTS), []).ap == 0.0
    assert evaluate_masks(truth_of(TWO_OBJECTS), []).max_detections == 100
    assert math.isnan(evaluate_masks(truth_of([]), [result(1, 10, (0, 0, 4, 4), 0.5)]).ap)


@pytest.mark.parametrize("limit", [1, 100, 1000])
def test_max_detections_limits_what_counts(limit: int) -> None:
    boxes: list[Box] = [(y, x, 4, 4) for y in range(0, 64, 4) for x in range(0, 64, 4)]
    assert len(boxes) == 256
    truth = truth_of([(1, 10, box) for box in boxes], classes=1, images=1)
    ap = evaluate_masks(truth, [result(1, 10, box, 1 - i / 1000) for i, box in enumerate(boxes)], max_detections=limit)
    # All results are right, so AP is the share of the 101 recall levels that the limit lets one reach.
    reached = sum(level <= min(limit, 256) / 256 + 1e-9 for level in np.linspace(0, 1, 101))
    assert ap.ap == pytest.approx(100.0 * reached / 101)
    assert ap.max_detections == limit


def test_a_subset_of_images_leaves_the_others_aside() -> None:
    truth = truth_of(TWO_OBJECTS)
    results = [result(1, 10, (4, 4, 16, 16), 0.9), result(2, 20, (0, 0, 4, 4), 0.9)]
    assert evaluate_masks(truth, results).ap == pytest.approx(50.0)
    assert evaluate_masks(truth, results, image_ids=[1]).ap == pytest.approx(100.0)
    assert evaluate_masks(truth, results, image_ids=[2]).ap == 0.0


def test_arguments_stay_as_they_were() -> None:
    truth = truth_of(TWO_OBJECTS)
    results = [result(1, 10, (4, 4, 16, 16), 0.9)]
    before = copy.deepcopy((truth, results))
    evaluate_masks(truth, results)
    assert (truth, results) == before


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_masks(truth_of(TWO_OBJECTS), [])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 77}, "image 77, which the ground truth does not have"),
        ({"category_id": 1}, "original COCO category ids"),
        ({"score": math.nan}, "score nan"),
    ],
)
def test_a_wrong_result_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_masks(truth_of(TWO_OBJECTS), [{**result(1, 10, (4, 4, 8, 8), 0.5), **change}])


def test_a_missing_field_and_a_foreign_subset_are_named() -> None:
    with pytest.raises(ValueError, match="result 0 has no 'score'"):
        evaluate_masks(truth_of(TWO_OBJECTS), [{"image_id": 1, "category_id": 10, "segmentation": {}}])
    with pytest.raises(ValueError, match="first 9"):
        evaluate_masks(truth_of(TWO_OBJECTS), [], image_ids=[1, 9])
    with pytest.raises(ValueError, match="max_detections is 0"):
        evaluate_masks(truth_of(TWO_OBJECTS), [], max_detections=0)
