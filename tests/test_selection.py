"""Which predictions become labels: sure ones, unsure regions, and the limits of the settings."""

from __future__ import annotations

import math

import pytest

from sskd_fast.pseudo_labels.select import Selection
from sskd_fast.pseudo_labels.settings import PseudoLabelConfig
from tests.test_pseudo_labels import result

PREDICTIONS = [
    result(2, 7, (0, 0, 8, 8), 0.79),
    result(2, 3, (16, 0, 8, 8), 0.3),
    result(1, 3, (0, 0, 8, 8), 0.6),
    result(1, 3, (0, 16, 8, 8), 0.59),
    result(1, 7, (16, 0, 8, 8), 0.8),
    result(1, 3, (16, 1, 8, 7), 0.9),
    result(1, 3, (16, 16, 8, 8), 0.29),
    result(3, 7, (0, 0, 8, 8), 0.0),
]


def selected(unsure: dict[int, float] | None, limit: int) -> list[tuple[int, float, int]]:
    rules = Selection({3: 0.6, 7: 0.8}, unsure, nms_iou=0.9, max_per_image=limit)
    return [(r["image_id"], r["score"], r["iscrowd"]) for r in rules.labels(PREDICTIONS)]


def test_labels_are_sure_from_their_threshold_on_and_regions_unsure_below_it() -> None:
    sure = [(1, 0.9, 0), (1, 0.8, 0), (1, 0.6, 0)]
    assert selected(None, 10) == sure
    assert selected({3: 0.3, 7: 0.8}, 10) == [*sure, (1, 0.59, 1), (2, 0.3, 1)]
    assert selected({3: 0.3, 7: 0.79}, 3) == [*sure, (2, 0.79, 1), (2, 0.3, 1)], "three an image, the best first"
    assert all("iscrowd" not in prediction for prediction in PREDICTIONS), "the predictions stay as they are"


def test_overlapping_labels_are_suppressed_by_the_same_rules() -> None:
    rules = Selection({3: 0.6, 7: 0.8}, {3: 0.1, 7: 0.1}, nms_iou=0.5, max_per_image=10)
    assert [(r["score"], r["iscrowd"]) for r in rules.labels(PREDICTIONS) if r["image_id"] == 1] == [
        (0.9, 0),
        (0.6, 0),
        (0.59, 1),
        (0.29, 1),
    ]


def test_objects_are_the_best_of_every_score() -> None:
    rules = Selection({3: 0.6, 7: 0.8}, None, nms_iou=0.9, max_per_image=2)
    assert [(r["image_id"], r["score"]) for r in rules.objects(PREDICTIONS)] == [
        (1, 0.9),
        (1, 0.8),
        (2, 0.79),
        (2, 0.3),
        (3, 0.0),
    ]
    assert len(Selection({}, None, nms_iou=0.5, max_per_image=9).objects(PREDICTIONS)) == 7


def test_the_most_labels_of_an_image_are_set_or_follow_the_detections() -> None:
    assert [PseudoLabelConfig().labels_limit(detections) for detections in (100, 300, 301)] == [300, 300, 301]
    assert PseudoLabelConfig(max_per_image=5).labels_limit(1000) == 5


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("folds", 1, "folds: expected at least 2, found 1"),
        ("fold_steps", 0.0, r"fold_steps: expected a share in \(0, 1\], such as 0.5, found 0.0"),
        ("fold_steps", 1.1, r"fold_steps: expected a share in \(0, 1\], such as 0.5, found 1.1"),
        ("shrink", -0.5, "shrink: expected a number of results, 0 for none, found -0.5"),
        ("shrink", math.nan, "shrink: expected a number of results, 0 for none, found nan"),
        ("shard", -1, "shard: expected images per file, such as 10000, or 0 for one file, found -1"),
    ],
)
def test_settings_out_of_range_are_named(setting: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PseudoLabelConfig(**{setting: value})  # type: ignore[arg-type]


def test_settings_at_the_ends_of_their_ranges_are_taken() -> None:
    config = PseudoLabelConfig(folds=2, fold_steps=1.0, shrink=0.0, shard=0)
    assert (config.folds, config.fold_steps, config.shrink, config.shard) == (2, 1.0, 0.0, 0)
