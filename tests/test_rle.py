"""Run-length codes from boxes, runs and id maps: byte for byte equal to COCO's own encoder."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from sskd_fast.data.masks import pack_layers
from sskd_fast.rle import box_of_rle, rle_of_box, run_lengths


def encoded(mask: np.ndarray) -> dict[str, object]:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


@pytest.mark.parametrize("seed", range(60))
def test_a_box_is_encoded_as_the_whole_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(1, 9, 2))
    h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    mask = rng.random((h, w)) < rng.choice([0.0, 0.3, 0.7, 1.0])
    full = np.zeros((height, width), dtype=bool)
    full[top : top + h, left : left + w] = mask
    code = rle_of_box(mask, top, left, height, width)
    assert code == encoded(full)
    found, first_row, first_column = box_of_rle(code)
    again = np.zeros_like(full)
    again[first_row : first_row + found.shape[0], first_column : first_column + found.shape[1]] = found
    np.testing.assert_array_equal(again, full)
    assert not found.size or (found.any(1)[[0, -1]].all() and found.any(0)[[0, -1]].all())


@pytest.mark.parametrize("seed", range(40))
def test_id_maps_give_back_the_masks_that_were_packed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width, count = (int(v) for v in rng.integers(1, 8, 3))
    masks = rng.random((count, height, width)) < rng.choice([0.05, 0.3, 0.9])
    codes = [encoded(mask) for mask in masks]
    layers = pack_layers(codes, list(range(count)), [1.0] * count, [False] * count, height, width)
    kept = [index for index, mask in enumerate(masks) if mask.any()]
    assert layers.encoded() == [codes[index] for index in kept] and layers.labels.tolist() == kept
    found, seen = layers.window(slice(None), slice(None))
    assert found.tolist() == list(range(len(kept)))
    np.testing.assert_array_equal(seen, masks[kept])


def test_more_than_255_instances_keep_their_ids() -> None:
    masks = np.zeros((300, 20, 20), dtype=bool)
    masks[np.arange(300), np.arange(300) // 20, np.arange(300) % 20] = True
    layers = pack_layers([encoded(m) for m in masks], [0] * 300, [1.0] * 300, [False] * 300, 20, 20)
    assert layers.ids.dtype == np.uint16
    np.testing.assert_array_equal(layers.window(slice(None), slice(None))[1], masks)


@pytest.mark.parametrize("runs", [[0, 12], [5, 7], [5000, 3, 40000, 2, 1, 300000, 7], [1, 1, 1, 1, 1, 1], [12]])
def test_run_lengths_are_read_back(runs: list[int]) -> None:
    code = coco_mask.frPyObjects({"size": [1, sum(runs)], "counts": runs}, 1, sum(runs))
    assert run_lengths(code["counts"]).tolist() == runs


@pytest.mark.parametrize("counts", [b"\x01", b"~", b"0Q", b"0PPPPPPPPPPPPP0"])
def test_malformed_codes_have_a_negative_run(counts: bytes) -> None:
    assert run_lengths(counts).min() < 0


@pytest.mark.parametrize(("top", "left"), [(-1, 0), (0, -1), (39, 0), (0, 58)])
def test_a_box_that_leaves_the_image_is_refused(top: int, left: int) -> None:
    with pytest.raises(ValueError, match=rf"found \({top}, {left}, .*expected one within 40 x 60"):
        rle_of_box(np.ones((2, 3), dtype=np.bool_), top, left, 40, 60)
