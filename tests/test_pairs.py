"""Pairs of models: the strides at which they are compared, and their AP on shared draws of images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sskd_fast.evaluation import at_stride, drawn_ap
from sskd_fast.evaluation.pairs import compared_pairs, drawn_pairs, image_groups
from tests.test_comparison import guesses, scenes

STRIDES: Mapping[str, float | None] = {"student": 4.0, "twin": 4.0, "teacher": 8.0, "foreign": None}


def test_pairs_are_compared_again_at_the_coarser_of_two_strides() -> None:
    assert compared_pairs(STRIDES, [("student", "teacher"), ("teacher", "student")]) == [
        ("student", "teacher", None),
        ("student", "teacher", 8.0),
        ("teacher", "student", None),
        ("teacher", "student", 8.0),
    ]
    alike = [("student", "twin"), ("student", "foreign"), ("foreign", "teacher"), ("foreign", "foreign")]
    assert compared_pairs(STRIDES, alike) == [(*pair, None) for pair in alike]


def test_only_the_finer_masks_are_brought_to_the_stride_and_all_models_share_the_draws() -> None:
    truth, zoom = scenes(6), 0.5
    for number, image in enumerate(truth["images"]):
        image["slide"] = number // 2
    results = {name: guesses(truth, 2 + seed, 0.2, seed) for seed, name in enumerate(("fine", "coarse", "foreign"))}
    strides = {"fine": 1.0, "coarse": 3.0, "foreign": None}
    pairs = [("fine", "coarse", None), ("fine", "coarse", 3.0), ("coarse", "fine", 3.0), ("foreign", "coarse", 3.0)]
    found = drawn_pairs(truth, results, strides, pairs, zoom=zoom, max_detections=2, group_key="slide")
    brought = at_stride(results["fine"], 3.0, zoom)
    fine, coarse, foreign, blurred = drawn_ap(
        truth, [*results.values(), brought], max_detections=2, groups={i: (i - 1) // 2 for i in range(1, 7)}
    )
    for both, expected in zip(
        found, [(fine, coarse), (blurred, coarse), (coarse, blurred), (foreign, coarse)], strict=True
    ):
        np.testing.assert_array_equal(both, expected)
    assert not np.array_equal(fine, blurred)
    alone = drawn_pairs(truth, results, strides, pairs[:1], zoom=zoom, max_detections=2)[0][0]
    np.testing.assert_array_equal(alone, drawn_ap(truth, [results["fine"]], max_detections=2)[0])
    assert not np.array_equal(alone, fine), "whole slides are drawn with a group key, single images without"


def test_images_have_groups_if_all_of_them_have_the_field() -> None:
    truth = {"images": [{"id": 3, "city": "Ulm"}, {"id": 9, "city": 7}]}
    assert image_groups(truth, "city") == {3: "Ulm", 9: "7"}
    assert image_groups(truth, "") is None
    truth["images"].append({"id": 10})
    assert image_groups(truth, "city") is None
