"""The interval of a gain in AP: exact if images are repeated, wide if they are few."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

from sskd_fast.evaluation import compare_masks, drawn_ap, evaluate_masks, gain_of, gain_over_seeds
from sskd_fast.evaluation.coco_ap import matched_masks
from sskd_fast.evaluation.comparison import _matches_by_class

SIDE = 48


def encoded(top: int, left: int, height: int, width: int) -> dict[str, Any]:
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    record = rle.encode(mask)
    return {"size": [SIDE, SIDE], "counts": record["counts"].decode("ascii")}


def scenes(images: int, seed: int = 0) -> dict[str, Any]:
    """Images with up to four squares of two classes, some of them crowds."""
    random = np.random.default_rng(seed)
    annotations = []
    for image in range(1, images + 1):
        for place in range(random.integers(0, 5)):
            top, left = divmod(place, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(random.integers(1, 3)),
                    "segmentation": encoded(24 * top, 24 * left, 16, 16),
                    "iscrowd": int(random.random() < 0.1),
                }
            )
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE} for i in range(1, images + 1)],
        "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
        "annotations": annotations,
    }


def guesses(truth: dict[str, Any], error: int, missed: float, seed: int) -> list[dict[str, Any]]:
    """All squares shifted by up to `error` pixels, with a share of them missed and as many false ones."""
    random = np.random.default_rng(seed)
    results = []
    for annotation in truth["annotations"]:
        top, left = (int(v) for v in rle.toBbox(annotation["segmentation"])[1::-1])
        if random.random() < missed:
            top, left = (top + 12) % 30, (left + 12) % 30
        shift = random.integers(0, error + 1, 2)
        box = encoded(top + int(shift[0]), left + int(shift[1]), 16, 16)
        keys = ("image_id", "category_id")
        results.append({k: annotation[k] for k in keys} | {"segmentation": box, "score": float(random.random())})
    return results


def repeated(truth: dict[str, Any], results: list[dict[str, Any]], times: np.ndarray) -> tuple[dict[str, Any], list]:
    """Each image with its annotations and results as often as `times` says, under new ids."""
    images, annotations, copies = [], [], []
    for image, count in zip(truth["images"], times, strict=True):
        for number in range(count):
            new = 1000 * number + image["id"]
            images.append({**image, "id": new})
            annotations += [{**a, "image_id": new} for a in truth["annotations"] if a["image_id"] == image["id"]]
            copies += [{**r, "image_id": new} for r in results if r["image_id"] == image["id"]]
    return {**truth, "images": images, "annotations": annotations}, copies


@pytest.mark.parametrize("seed", range(4))
def test_an_image_that_counts_n_times_is_an_image_n_times(seed: int) -> None:
    truth = scenes(12, seed)
    results = guesses(truth, 4, 0.3, seed)
    evaluation = matched_masks(truth, results, max_detections=3)
    times = np.random.default_rng(seed).integers(0, 4, 12)
    aps = [m.ap(times, evaluation.params.recThrs) for m in _matches_by_class(evaluation)]
    more, copies = repeated(truth, results, times)
    assert 100 * np.nanmean(aps) == pytest.approx(evaluate_masks(more, copies, max_detections=3).ap, abs=1e-9)


def test_the_gain_is_the_difference_of_the_two_ap() -> None:
    truth = scenes(30)
    good, bad = guesses(truth, 2, 0.1, 1), guesses(truth, 6, 0.3, 2)
    gain = compare_masks(truth, good, bad)
    assert gain.ap == pytest.approx(evaluate_masks(truth, good).ap - evaluate_masks(truth, bad).ap, abs=1e-9)
    assert 0 < gain.low < gain.ap < gain.high
    back = compare_masks(truth, bad, good)
    assert (back.ap, back.low, back.high) == pytest.approx((-gain.ap, -gain.high, -gain.low))
    assert compare_masks(truth, good, bad) == gain
    assert compare_masks(truth, good, bad, seed=1).low != gain.low


def test_the_same_results_gain_nothing_on_any_images() -> None:
    truth = scenes(10)
    results = guesses(truth, 4, 0.3, 1)
    gain = compare_masks(truth, results, results)
    assert (gain.ap, gain.low, gain.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("size", [1, 3])
def test_the_interval_is_that_of_draws_made_by_hand(size: int) -> None:
    """Every draw as a data set of repeated images, alone or in groups of three, evaluated by pycocotools."""
    truth = scenes(12)
    good, bad = guesses(truth, 2, 0.1, 1), guesses(truth, 4, 0.3, 2)
    groups = {image["id"]: f"slide {(image['id'] - 1) // size}" for image in truth["images"]}
    found = compare_masks(truth, good, bad, draws=40, seed=5, groups=groups)
    random, gains = np.random.default_rng(5), []
    for _ in range(40):
        drawn = random.integers(0, 12 // size, 12 // size).tolist()
        times = np.array([drawn.count(image // size) for image in range(12)])
        ours, theirs = (evaluate_masks(*repeated(truth, results, times)).ap for results in (good, bad))
        gains.append(ours - theirs)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(gains, [0.025, 0.975])), abs=1e-9)
    if size == 1:
        assert found == compare_masks(truth, good, bad, draws=40, seed=5)


def test_seeds_are_drawn_and_images_within_each() -> None:
    """Toy draws: the gain of a seed is a constant, or two values that its images decide between."""
    certain = [np.full(11, value) for value in (1.0, 2.0, 6.0)]
    found = gain_over_seeds(certain, same_images=False)
    assert (found.ap, found.by_seed) == (3.0, [1.0, 2.0, 6.0]) and found.sd == pytest.approx(7**0.5)
    # Of 27 equally likely draws of three seeds one has the smallest mean and one the largest: 3.7 % each, above 2.5 %.
    assert (found.low, found.high) == (1.0, 6.0)
    half = 4.302653 * (7 / 3) ** 0.5  # Student's t of two degrees of freedom
    assert (found.t_low, found.t_high) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    drawn_once = gain_over_seeds([np.array([0.0, 5.0]), np.array([0.0, 7.0])], same_images=True)
    assert (drawn_once.ap, drawn_once.low, drawn_once.high) == (0.0, 5.0, 7.0)
    apart_from_the_whole = gain_over_seeds([np.array([99.0, 5, 5]), np.array([101.0, 7, 7])], same_images=True)
    assert (apart_from_the_whole.ap, apart_from_the_whole.low, apart_from_the_whole.high) == (100.0, 5.0, 7.0)
    uncertain = [np.array([0.0, *[-1.0, 1.0] * 5])] * 8
    apart, same = (gain_over_seeds(uncertain, same_images=shared) for shared in (False, True))
    assert (same.low, same.high) == (-1.0, 1.0)  # what the images decide is the same for all seeds
    assert -0.8 < apart.low < -0.4 and 0.4 < apart.high < 0.8  # and averages out if each has its own


def test_of_one_seed_the_interval_is_that_over_images() -> None:
    truth = scenes(12)
    ours, theirs = drawn_ap(truth, [guesses(truth, 2, 0.1, 1), guesses(truth, 4, 0.3, 2)])
    found, alone = gain_over_seeds([ours - theirs], same_images=True), gain_of(ours - theirs)
    assert found.ap == alone.ap and np.isnan([found.sd, found.t_low, found.t_high]).all()
    assert (found.low, found.high) == (alone.low, alone.high)
    with pytest.raises(ValueError, match="found no seed"):
        gain_over_seeds([], same_images=True)


def test_every_image_needs_a_group() -> None:
    with pytest.raises(ValueError, match="2 images have none, first 2; give every image a group"):
        compare_masks(scenes(3), [], [], groups={1: "a"})


def test_more_images_make_the_interval_narrower() -> None:
    def width(images: int) -> float:
        truth = scenes(images)
        gain = compare_masks(truth, guesses(truth, 3, 0.2, 1), guesses(truth, 3, 0.2, 2), draws=200)
        return gain.high - gain.low

    assert width(160) < 0.5 * width(10)


def test_the_interval_nearly_always_holds_the_truth() -> None:
    """Drawn again and again from one large set: the gain on that set lies in the intervals of small samples."""
    truth = scenes(400)
    good, bad = guesses(truth, 3, 0.2, 1), guesses(truth, 4, 0.25, 2)
    exact = evaluate_masks(truth, good).ap - evaluate_masks(truth, bad).ap
    held = 0
    for first in range(1, 401, 20):
        chosen = range(first, first + 20)
        part = {
            **truth,
            "images": [i for i in truth["images"] if i["id"] in chosen],
            "annotations": [a for a in truth["annotations"] if a["image_id"] in chosen],
        }
        here = [[r for r in results if r["image_id"] in chosen] for results in (good, bad)]
        gain = compare_masks(part, *here, draws=200)
        held += gain.low <= exact <= gain.high
    assert held >= 17  # of 20; 19 are expected


def test_a_class_without_a_right_detection_counts_as_zero() -> None:
    truth = scenes(6, seed=3)
    right = [r for r in guesses(truth, 0, 0.0, 1) if r["category_id"] == 1]
    wrong = [{**r, "segmentation": encoded(30, 30, 4, 4)} for r in guesses(truth, 0, 0.0, 1) if r["category_id"] == 2]
    (aps,) = drawn_ap(truth, [right + wrong], draws=1)
    assert wrong and aps[0] == pytest.approx(evaluate_masks(truth, right + wrong).ap) == pytest.approx(50, abs=0.5)


def test_nothing_to_measure_gives_nan() -> None:
    truth = scenes(3) | {"annotations": []}
    gain = compare_masks(truth, [], [])
    assert np.isnan([gain.ap, gain.low, gain.high]).all()


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="draws is 0"):
        compare_masks(scenes(2), [], [], draws=0)
    with pytest.raises(ValueError, match="max_detections is 0"):
        compare_masks(scenes(2), [], [], max_detections=0)


def test_figures_of_the_coco_api_lie_in_their_own_interval(real_data: Any) -> None:
    folder: Path = real_data("coco_eval_reference")
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakesegm100_results.json").read_text())
    gain = compare_masks(truth, results, [], draws=50)
    assert gain.ap == pytest.approx(evaluate_masks(truth, results).ap, abs=1e-9)
    assert gain.low < gain.ap < gain.high
