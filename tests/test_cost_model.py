"""The cost model's formulas: counted by hand at small sizes, how they grow, and what bounds an operator."""

from __future__ import annotations

import pytest

from benchmarks.cost_model import (
    A100,
    DEVICES,
    H100,
    UNSETTLED,
    Cost,
    dense_is_as_fast,
    dense_negative_sampling,
    of_case,
)
from benchmarks.cost_model import expected_pixel_contrast as expected
from benchmarks.cost_model import negative_sampling as sampling
from benchmarks.cost_model import pixel_contrast as contrast
from benchmarks.cost_model import score_fusion as fusion


def test_counted_by_hand():
    """One pixel, two queries, three classes: 2 logits in, 5 scores out, 6 multiply-adds of the mix."""
    forward = fusion(1, 2, 3)["forward"]
    assert forward.bytes == 4 * (2 + 5) and forward.operations == 2 * 6 + 8 * 5
    one = expected(1, 1, 8, 4)["forward"]
    assert one.products == 2 * (8 + 4) and one.bytes == 2 * (4 * 8 + 4 * 4)
    assert contrast(2, 5, 3, 8)["forward"].bytes == 6 * (32 + 4 + 32) + 3 * 64 + 3 * 24


def test_sampling_and_contrast_grow_with_the_anchors_and_hardly_with_the_candidates():
    few, many = sampling(1000, 1000, 200, 109)["forward"], sampling(1000, 100_000, 200, 109)["forward"]
    in_bytes = 4 * 109 + 109 + 12
    assert many.operations == few.operations and many.bytes - few.bytes == 99_000 * (8 * 109 + 52 + 48 + in_bytes)
    assert sampling(2000, 0, 200, 109)["forward"].bytes == 2 * sampling(1000, 0, 200, 109)["forward"].bytes
    assert contrast(1000, 1, 200, 128)["forward"] == contrast(1000, 10**6, 200, 128)["forward"]
    half = contrast(1000, 1000, 200, 128, element=2)["forward"].bytes / contrast(1000, 1000, 200, 128)["forward"].bytes
    assert 0.5 < half < 0.6
    few, many = (contrast(1000, m, 200, 128)["backward"].bytes for m in (255, 256))
    assert many - few == 200_000 * 4 * 4 + 2 * 128 * 4  # one more pass of the sort, and one more candidate


def test_trials_read_rows_in_bytes_and_few_exact_ones():
    one = sampling(1, 0, 1, 100, acceptance=1)["forward"]
    assert one.bytes == pytest.approx(100 + 12 + UNSETTLED * 400 + 12 + 2 * 400 + 4 + 100 + 12)
    assert one.operations == pytest.approx(80 + UNSETTLED * 300)


def test_a_perfect_dense_sampler_gives_every_pair_a_random_number_and_wins_for_few_pixels():
    one = dense_negative_sampling(2, 5, 3, 7)
    assert one == Cost(4 * 7 * (2 + 5) + 2 * 3 * 4, 60 * 10, 2 * 10 * 7)
    for device in DEVICES:
        for element in (2, 4):
            pixels = dense_is_as_fast(200, 109, device, element)
            for count, faster in ((pixels - 1, False), (pixels, True), (4 * pixels, True)):
                drawn = sampling(count, count, 200, 109, element)["forward"].seconds(device, element)
                dense = dense_negative_sampling(count, count, 200, 109, element).seconds(device, element)
                assert (drawn < dense) is faster
    assert dense_is_as_fast(200, 109, A100, 4) > dense_is_as_fast(200, 109, A100, 2) > 9_000


def test_the_expected_form_grows_with_the_pairs():
    one, four = (expected(n, n, 128, 109) for n in (4096, 8192))
    for mode in ("forward", "backward"):
        assert four[mode].products == 4 * one[mode].products
    assert one["backward"].products == 4 * one["forward"].products


def test_the_roofline_is_the_slowest_of_the_three():
    assert Cost(H100.bandwidth, 0).seconds(H100) == 1 and Cost(H100.bandwidth, 0).bound(H100) == "memory"
    assert Cost(0, 2 * A100.float32).seconds(A100) == 2 and Cost(0, 1).bound(A100) == "arithmetic"
    assert Cost(0, 0, H100.half).seconds(H100, element=2) == 1
    assert Cost(0, 0, H100.half).seconds(H100) == pytest.approx(3)


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_what_bounds_the_operators_at_the_sizes_of_the_benchmarks(device):
    costs = of_case(65536, 100, 9, 200, 128, 4)
    for operator in ("score_fusion", "negative_sampling", "pixel_contrast"):
        assert all(cost.bound(device) == "memory" for cost in costs[operator].values())
    assert expected(65536, 65536, 128, 109, tile=256)["forward"].bound(device) == "tensor cores"
