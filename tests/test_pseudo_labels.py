from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from sskd_fast.pseudo_labels import (
    cache_key,
    calibrate_thresholds,
    equally_many,
    label_images,
    label_statistics,
    read_labels,
    select_labels,
)

Box = tuple[int, int, int, int]
CATEGORIES = {3: "disc", 7: "ring"}


def box_rle(box: Box, size: tuple[int, int] = (32, 32)) -> dict[str, Any]:
    top, left, height, width = box
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    encoded = rle.encode(mask)
    return {"size": list(size), "counts": encoded["counts"].decode("ascii")}


def result(image: int, category: int, box: Box, score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": box_rle(box), "score": score}


def truth_of(objects: list[tuple[int, int, Box]], images: int) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 32} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "segmentation": box_rle(box), "iscrowd": 0}
            for n, (image, category, box) in enumerate(objects, start=1)
        ],
    }


OBJECT: Box = (2, 2, 8, 8)
ELSEWHERE: Box = (20, 20, 8, 8)


def graded(category: int, grades: list[tuple[float, bool]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One result an image with the given (score, right) and one object an image, so that right results match."""
    truth = truth_of([(i, category, OBJECT) for i in range(1, len(grades) + 1)], images=len(grades))
    results = [result(i, category, OBJECT if ok else ELSEWHERE, s) for i, (s, ok) in enumerate(grades, start=1)]
    return results, truth


def calibrated(results: list[dict[str, Any]], truth: dict[str, Any], **settings: Any) -> dict[int, float]:
    """Thresholds at IoU 0.5 with a low floor, if a test sets nothing else."""
    return calibrate_thresholds(
        results, truth, **{"iou": 0.5, "floor": 0.05, "minimum_matches": 10, "shrink": 0.0, **settings}
    )


def test_threshold_is_the_lowest_score_at_which_the_target_holds() -> None:
    # Precision by rank: 1, 1/2, 2/3, 3/4, 4/5, 4/6: it dips and recovers, so 0.75 holds down to the score 0.5.
    results, truth = graded(3, [(0.9, True), (0.8, False), (0.7, True), (0.6, True), (0.5, True), (0.4, False)])
    for target, expected in ((0.75, 0.5), (0.6, 0.4), (0.9, 0.9)):
        thresholds = calibrated(results, truth, target_precision=target, minimum_matches=1)
        assert thresholds[3] == expected


def test_threshold_keeps_all_results_of_one_score_or_none() -> None:
    results, truth = graded(3, [(0.9, True), (0.5, True), (0.5, False), (0.5, False)])
    assert calibrated(results, truth, target_precision=0.9, minimum_matches=1)[3] == 0.9


def test_a_class_with_few_matches_takes_the_pooled_threshold() -> None:
    results, truth = graded(3, [(0.9, True), (0.8, True), (0.7, True), (0.6, False), (0.55, False)])
    results.append(result(1, 7, ELSEWHERE, 0.95))
    thresholds = calibrated(results, truth, target_precision=0.75, minimum_matches=3)
    # Pooled, one wrong at 0.95 comes first: 3/4 holds down to 0.7 only.
    assert thresholds == {3: 0.6, 7: 0.7}


def test_a_rare_class_shrinks_towards_the_precision_of_all() -> None:
    results, truth = graded(3, [(0.9, True), (0.8, True), (0.7, False), (0.6, False), (0.5, False)])
    wrong = result(1, 7, ELSEWHERE, 0.3)
    rare = result(5, 7, OBJECT, 0.6)
    truth["annotations"].append(truth["annotations"][4] | {"id": 99, "category_id": 7})
    rows = [*results, rare, wrong]
    settings: dict[str, Any] = {"target_precision": 0.75, "minimum_matches": 1}
    assert calibrated(rows, truth, **settings)[7] == 0.6
    # At 0.6 three of five are right: alone 1/1; for n0 = 1 half of both, 0.8; for 2 a third and two thirds, 0.73.
    assert calibrated(rows, truth, **settings, shrink=1.0)[7] == 0.6
    assert calibrated(rows, truth, **settings, shrink=2.0)[7] == 0.8, "the threshold of all"
    few = calibrated(rows, truth, target_precision=0.5, minimum_matches=2, shrink=50.0)
    assert few == {3: 0.6, 7: 0.5}, "one match is too few, whatever those of others: the threshold of all"
    with pytest.raises(ValueError, match=r"shrink is -1.0, expected a number of results, 0 or more"):
        calibrated(rows, truth, **settings, shrink=-1.0)


def test_thresholds_of_a_single_class_do_not_shrink() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(1, 40, 120) / 40
    results, truth = graded(3, [(float(score), bool(generator.random() < score)) for score in scores])
    for target in np.arange(0.3, 1.0, 0.01).tolist():
        alone = calibrated(results, truth, target_precision=target, minimum_matches=4)
        assert calibrated(results, truth, target_precision=target, minimum_matches=4, shrink=20.0) == alone, target


def test_an_unreachable_target_takes_the_most_precise_threshold_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    results, truth = graded(3, [(0.9, False), (0.8, True), (0.7, True), (0.6, False), (0.5, False)])
    with caplog.at_level(logging.WARNING):
        thresholds = calibrated(results, truth, target_precision=0.95, minimum_matches=1)
    assert thresholds[3] == 0.7
    assert "no score reaches precision 0.95 on held-out labelled images" in caplog.text
    assert "the threshold 0.70 gives 0.67" in caplog.text


def test_a_class_that_misses_the_target_takes_the_pooled_threshold() -> None:
    """Its only score with enough matches may be very low and would let in all wrong labels of the class."""
    results, truth = graded(3, [(0.9, True), (0.8, True), (0.7, True), (0.6, True)])
    wrong, other = graded(7, [(0.5, True), (0.4, False), (0.3, False), (0.02, True)])
    for record in (*wrong, *other["annotations"]):
        record["image_id"] += 100
    for image in other["images"]:
        image["id"] += 100
    truth["images"] += other["images"]
    truth["annotations"] += [a | {"id": 1000 + i} for i, a in enumerate(other["annotations"])]
    thresholds = calibrated(results + wrong, truth, target_precision=0.8, minimum_matches=2)
    assert thresholds == {3: 0.6, 7: 0.4}


def test_without_evidence_the_threshold_stays_at_a_half_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert calibrated([], truth_of([], 1), target_precision=0.8) == {3: 0.5, 7: 0.5}
    assert "pseudo_labels.minimum_matches = 10" in caplog.text and "label more images" in caplog.text
    caplog.clear()
    calibrated([], truth_of([], 1), target_precision=0.8, quiet=True)
    assert caplog.text == ""


def test_thresholds_of_equal_rank_by_hand() -> None:
    def of(category: int, *scores: float) -> list[dict[str, Any]]:
        return [{"category_id": category, "score": score} for score in scores]

    own = [*of(3, 0.9, 0.99, 0.95, 0.3), *of(7, 0.8, 0.7)]
    folds = [[*of(3, 0.6, 0.5, 0.4), *of(7, 0.4)], of(3, 0.7, 0.45), of(3, 0.5, 0.5, 0.5, 0.5)]
    # Of class 3 the fold models keep 2, 1 and 4 at 0.5, of class 7 none.
    assert equally_many({3: 0.5, 7: 0.5}, own, folds, floor=0.1) == {3: 0.95, 7: math.nextafter(0.8, 1)}
    assert equally_many({3: 0.4, 7: 0.9}, own, folds, floor=0.1) == {3: 0.9, 7: 0.9}
    assert equally_many({3: 0.5}, own[-2:], folds, floor=0.1) == {3: 0.1}, "fewer results than are wanted: all of them"
    assert equally_many({9: 0.5}, own, folds, floor=0.1) == {9: 0.5}, "a class that nobody finds"


def test_no_threshold_is_under_the_floor() -> None:
    results, truth = graded(3, [(0.2, True), (0.01, True)])
    assert calibrated(results, truth, target_precision=0.5, floor=0.1, minimum_matches=1)[3] == 0.1


def test_a_second_result_on_one_object_is_wrong_and_one_on_a_crowd_is_ignored() -> None:
    truth = truth_of([(1, 3, OBJECT), (1, 3, (16, 16, 16, 16))], images=1)
    truth["annotations"][1]["iscrowd"] = 1
    twice = [result(1, 3, OBJECT, 0.9), result(1, 3, OBJECT, 0.8)]
    assert calibrated(twice, truth, target_precision=0.9, minimum_matches=1)[3] == 0.9
    on_crowd = [result(1, 3, ELSEWHERE, 0.9), result(1, 3, OBJECT, 0.8)]
    assert calibrated(on_crowd, truth, target_precision=1.0, minimum_matches=1)[3] == 0.8


@pytest.mark.parametrize("name", ["target_precision", "iou", "floor"])
def test_calibration_names_an_argument_out_of_range(name: str) -> None:
    arguments: dict[str, float] = {"target_precision": 0.8, name: 1.5}
    with pytest.raises(ValueError, match=f"{name} is 1.5"):
        calibrated([], truth_of([], 1), **arguments)  # type: ignore[arg-type]


def test_calibration_needs_a_right_label_at_least() -> None:
    with pytest.raises(ValueError, match="minimum_matches is 0, expected at least 1"):
        calibrated([], truth_of([], 1), target_precision=0.8, minimum_matches=0)
    assert calibrated([], truth_of([], 1), target_precision=0.8, minimum_matches=1) == {3: 0.5, 7: 0.5}


def test_calibration_names_a_foreign_image() -> None:
    with pytest.raises(ValueError, match="image 5"):
        calibrated([result(5, 3, OBJECT, 0.9)], truth_of([], 1), target_precision=0.8)


def test_select_labels_applies_class_thresholds_nms_and_the_limit() -> None:
    results = [
        result(2, 3, (0, 0, 8, 8), 0.6),
        result(2, 3, (0, 0, 8, 8), 0.55),  # suppressed
        result(2, 7, (16, 0, 8, 8), 0.7),  # under the threshold of its class
        result(1, 7, (0, 0, 8, 8), 0.8),
        result(1, 3, (16, 16, 8, 8), 0.9),
    ]
    assert [r["score"] for r in select_labels(results, {3: 0.5, 7: 0.75}, nms_iou=0.7, max_per_image=100)] == [
        0.9,
        0.8,
        0.6,
    ]
    assert [r["score"] for r in select_labels(results, 0.5, nms_iou=0.7, max_per_image=1)] == [0.9, 0.7]
    with pytest.raises(ValueError, match="category 7 has no threshold"):
        select_labels(results, {3: 0.5}, nms_iou=0.7, max_per_image=100)


class Teacher:
    """Labels image i with i % 3 boxes, notes the images, and stops at one if told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[int] = []
        self.stop_at = stop_at

    def __call__(self, image_ids: Sequence[int]) -> list[dict[str, Any]]:
        if self.stop_at in image_ids:
            raise KeyboardInterrupt
        self.calls += image_ids
        return [result(i, 3, (4 * n, 0, 3, 3), 0.5) for i in reversed(image_ids) for n in range(i % 3)]


IDS = [5, 2, 9, 4, 7]


def interrupted(path: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        label_images(Teacher(stop_at=4), IDS, path, key="a", chunk=1)
    assert not path.exists()
    return path.with_name(path.name + ".partial")


def test_labelling_resumes_and_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = label_images(Teacher(), IDS, tmp_path / "whole.json", key="a")
    path = tmp_path / "labels" / "cut.json"
    partial = interrupted(path)
    assert partial.exists()
    second = Teacher()
    assert label_images(second, IDS, path, key="a") == whole == read_labels(path)
    assert second.calls == [4, 7]
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["cut.json"]


def torn_line(data: bytes) -> bytes:
    return data[:-7]


def zeroed_tail(data: bytes) -> bytes:
    return data[:-20] + bytes(20) + b"\n"


@pytest.mark.parametrize("damage", [torn_line, zeroed_tail])
def test_a_damaged_last_line_is_labelled_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "labels.json"
    partial = interrupted(path)
    partial.write_bytes(damage(partial.read_bytes()))
    second = Teacher()
    label_images(second, IDS, path, key="a")
    assert second.calls == [9, 4, 7]
    assert path.read_bytes() == _labelled(tmp_path / "other.json").read_bytes()


def _labelled(path: Path) -> Path:
    label_images(Teacher(), IDS, path, key="a")
    return path


def test_labels_of_another_key_or_other_images_are_not_reused(tmp_path: Path) -> None:
    path = _labelled(tmp_path / "labels.json")
    for ids, key, calls in ((IDS, "a", []), (IDS, "b", IDS), (IDS[:2], "b", IDS[:2])):
        teacher = Teacher()
        label_images(teacher, ids, path, key=key)
        assert teacher.calls == calls
    partial = interrupted(tmp_path / "cut.json")
    assert json.loads(partial.read_text().splitlines()[0]) == {"key": "a"}
    teacher = Teacher()
    label_images(teacher, IDS, tmp_path / "cut.json", key="b")
    assert teacher.calls == IDS


def test_progress_counts_images_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = tmp_path / "labels.json"
    interrupted(path)
    label_images(Teacher(), IDS, path, key="a", chunk=1, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(4, 5), (5, 5)]


@pytest.mark.parametrize("chunk", [1, 2, 5, 32])
def test_labels_do_not_depend_on_the_chunk(tmp_path: Path, chunk: int) -> None:
    labels = label_images(Teacher(), IDS, tmp_path / "labels.json", key="a", chunk=chunk)
    assert [r["image_id"] for r in labels] == [5, 5, 2, 2, 4, 7]


def test_a_chunk_has_32_images_if_nothing_else_is_asked(tmp_path: Path) -> None:
    seen: list[int] = []
    label_images(Teacher(), range(70), tmp_path / "x.json", key="a", progress=lambda done, of: seen.append(done))
    assert seen == [32, 64, 70]


def test_a_result_on_an_image_not_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image 3, asked for \\[5, 2\\]"):
        label_images(lambda ids: [result(3, 3, OBJECT, 0.5)], IDS, tmp_path / "labels.json", key="a", chunk=2)


def test_read_labels_names_a_file_of_another_form(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match=r"x\.json: expected a JSON object"):
        read_labels(tmp_path / "x.json")


def test_cache_key_changes_with_weights_and_settings() -> None:
    weights = {"w": torch.zeros(2, 3), "scale": torch.tensor(1.0, dtype=torch.bfloat16)}
    key = cache_key(weights, {"size": 64})
    assert key == cache_key(dict(reversed(weights.items())), {"size": 64})
    folder = cache_key(weights, {"root": Path("a"), "size": 64})
    assert folder == cache_key(weights, {"size": 64, "root": Path("a")}) != cache_key(weights, {"root": Path("b")})
    nudged = {**weights, "w": torch.zeros(2, 3).index_fill(0, torch.tensor([1]), 1e-6)}
    transposed = {**weights, "w": torch.zeros(3, 2)}
    assert len({key, cache_key(weights, {"size": 65}), cache_key(nudged, {"size": 64}), cache_key(transposed, {})}) == 4


def test_statistics_count_labels_and_compare_with_hidden_truth() -> None:
    truth = truth_of([(1, 3, (0, 0, 10, 10)), (1, 7, ELSEWHERE), (2, 3, OBJECT)], images=4)
    labels = [
        result(1, 3, (0, 0, 10, 8), 0.9),  # right, IoU 0.8
        result(1, 3, ELSEWHERE, 0.8),  # mask right, class wrong
        result(3, 7, OBJECT, 0.4),  # nothing there
    ]
    stats = label_statistics(labels, [1, 2, 3, 4], CATEGORIES, truth, thresholds={3: 0.5, 7: 0.3})
    assert (stats.images, stats.labels, stats.labels_per_image) == (4, 3, 0.75)
    assert stats.images_with == [2, 1, 1]
    assert stats.by_class == {"disc": 2, "ring": 1}
    assert stats.empty_share == 0.5
    assert stats.mean_score == pytest.approx(0.7)
    assert stats.thresholds == {"disc": 0.5, "ring": 0.3}
    assert stats.precision == pytest.approx(1 / 3)
    assert stats.recall == pytest.approx(1 / 3)
    assert stats.class_accuracy == 0.5
    assert stats.mean_iou == pytest.approx(0.9)
    assert stats.warnings == []
    assert json.loads(json.dumps(asdict(stats))) == asdict(stats)


def test_annotations_that_say_nothing_of_crowds_are_objects_to_be_found() -> None:
    truth = truth_of([(1, 3, OBJECT), (2, 3, OBJECT), (2, 3, ELSEWHERE), (3, 3, OBJECT)], images=3)
    del truth["annotations"][0]["iscrowd"]
    truth["annotations"][1]["iscrowd"] = 1
    labels = [result(1, 3, OBJECT, 0.9), result(2, 3, OBJECT, 0.9)]
    stats = label_statistics(labels, [1, 2], CATEGORIES, truth)
    assert (stats.recall, stats.precision) == (0.5, 1.0), "of two objects on these images one is found, a crowd is none"


def test_statistics_without_hidden_truth_leave_precision_unknown() -> None:
    stats = label_statistics([result(1, 3, OBJECT, 0.9)], [1], CATEGORIES)
    assert stats.precision is stats.recall is stats.class_accuracy is stats.mean_iou is None


def test_statistics_warn_of_no_labels_nearly_none_and_absent_classes() -> None:
    ids = list(range(1, 21))
    none = label_statistics([], ids, CATEGORIES, truth_of([(1, 3, OBJECT)], 20))
    assert none.empty_share == 1.0 and none.precision is None and none.recall == 0.0
    assert "No pseudo-label on any of 20" in none.warnings[0] and "Lower the score thresholds" in none.warnings[0]
    few = label_statistics([result(1, 3, OBJECT, 0.9)], ids, CATEGORIES)
    assert "95 % of 20 unlabelled images have no pseudo-label" in few.warnings[0]
    assert "1 of 2 classes (ring)" in few.warnings[1]


def test_statistics_name_what_does_not_belong() -> None:
    with pytest.raises(ValueError, match="image 9"):
        label_statistics([result(9, 3, OBJECT, 0.9)], [1], CATEGORIES)
    with pytest.raises(ValueError, match="category 4"):
        label_statistics([result(1, 4, OBJECT, 0.9)], [1], CATEGORIES)
    with pytest.raises(ValueError, match="image_ids is empty"):
        label_statistics([], [], CATEGORIES)
