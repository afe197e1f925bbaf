"""Masks at a coarser stride: by hand, against whole blocks, and the AP of perfect masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

from sskd_fast.evaluation import at_stride, evaluate_masks, stride_ceiling
from sskd_fast.models.inference import InferenceConfig


def result(mask: np.ndarray) -> dict[str, Any]:
    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    segmentation = {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}
    return {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": segmentation}


def rectangle(top: int, left: int, height: int, width: int, size: tuple[int, int] = (12, 16)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def brought(mask: np.ndarray, stride: float, zoom: float = 1.0) -> np.ndarray:
    (found,) = at_stride([result(mask)], stride, zoom) or [result(np.zeros_like(mask))]
    return np.asarray(rle.decode(found["segmentation"])).astype(bool)


def test_a_pixel_vanishes_and_an_aligned_square_stays() -> None:
    assert at_stride([result(rectangle(4, 8, 1, 1))], 4) == []
    square = result(rectangle(4, 8, 4, 4))
    assert at_stride([square], 4) == [square]
    assert at_stride([square], 1) == [square]
    assert at_stride([result(np.zeros((12, 16)))], 2) == []


def test_a_cell_belongs_to_a_mask_that_covers_half_of_it() -> None:
    assert (brought(rectangle(4, 8, 2, 4), 4) == rectangle(4, 8, 4, 4)).all()
    assert not brought(rectangle(4, 8, 2, 3), 4).any()
    # Of its six columns the first two fill half of the cells to their left in the second row of cells alone.
    assert (brought(rectangle(2, 6, 6, 6), 4) == rectangle(0, 8, 8, 4) | rectangle(4, 4, 4, 4)).all()


@pytest.mark.parametrize("seed", range(20))
def test_whole_blocks_are_averaged(seed: int) -> None:
    """Images whose sides are no multiples of the stride too: the last cells are smaller."""
    random = np.random.default_rng(seed)
    height, width, stride = *random.integers(5, 30, 2), int(random.integers(1, 6))
    mask = random.random((height, width)) < 0.6
    mask[: random.integers(0, height)] = False
    expected = np.zeros_like(mask)
    for y in range(0, height, stride):
        for x in range(0, width, stride):
            expected[y : y + stride, x : x + stride] = mask[y : y + stride, x : x + stride].mean() >= 0.5
    assert (brought(mask, stride) == expected).all()


def test_the_stride_counts_in_pixels_of_the_zoomed_image() -> None:
    mask = np.random.default_rng(0).random((24, 40)) < 0.6
    assert (brought(mask, 2, zoom=0.5) == brought(mask, 4)).all()
    assert (brought(mask, 4, zoom=2.0) == brought(mask, 2)).all()
    # 9 pixels seen as 6: cells of 3 pixels each, which 2 pixels of the network cover.
    odd = rectangle(3, 3, 3, 3, size=(9, 9))
    assert (brought(odd, 2, zoom=2 / 3) == odd).all()


def test_images_may_be_seen_at_different_scales() -> None:
    """Whole images scaled into 12 x 12: one of 24 x 40 pixels by 0.3, one of 12 x 6 as it is."""
    seen = InferenceConfig(tile=(12, 12), overlap=0, fit=True)
    random = np.random.default_rng(0)
    large, small = random.random((24, 40)) < 0.6, random.random((12, 6)) < 0.6
    found = at_stride([result(large), result(small)], 2, seen.zoom_of)
    assert found == [*at_stride([result(large)], 2, 0.3), *at_stride([result(small)], 2, 1.0)]
    assert found != at_stride([result(large), result(small)], 2, 1.0)


def test_the_ceiling_is_the_ap_of_perfect_masks_at_the_stride() -> None:
    masks = [rectangle(4, 8, 4, 4), rectangle(0, 0, 1, 1)]
    truth = {
        "images": [{"id": 1, "height": 12, "width": 16}],
        "categories": [{"id": 1, "name": "one"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "segmentation": result(mask)["segmentation"], "iscrowd": 0}
            for n, mask in enumerate(masks, 1)
        ],
    }
    assert stride_ceiling(truth, 1) == stride_ceiling(truth, 4, zoom=4.0) == 100
    assert stride_ceiling(truth, 1, max_detections=1) == pytest.approx(100 * 51 / 101)
    # One of two objects vanishes: precision is 1 up to a recall of one half, 51 of 101 levels.
    assert stride_ceiling(truth, 4) == pytest.approx(100 * 51 / 101)
    assert stride_ceiling(truth, 4) == evaluate_masks(truth, [result(masks[0])]).ap
