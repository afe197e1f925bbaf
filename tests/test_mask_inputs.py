"""Broken segmentations never crash or hang the process, nor give a mask that leaves its image."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from sskd_fast.data.lost_masks import Extents
from sskd_fast.rle import MaskError, encode_segmentation
from sskd_fast.rle.polygons import flat_polygons, has_inner_ring

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("count", [300, pytest.param(30_000, marks=pytest.mark.slow)])
def test_inputs_at_random_are_masks_or_refused(count: int, tmp_path: Path) -> None:
    note, at_once = tmp_path / "input.txt", 5_000
    for start in range(0, count, at_once):
        command = [sys.executable, "-m", "tests.mask_inputs", str(min(at_once, count)), str(start), str(note)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
        read = note.read_bytes()[:2000] if note.exists() else b""
        assert done.returncode == 0, f"exit code {done.returncode} after {read!r}: {done.stderr[-2000:]}"
        assert int(done.stdout) > min(at_once, count) // 30  # a fifteenth are masks


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0, 0, 4e8, 0, 4e8, 4e8]], r"the coordinate 4e\+08; expected pixels of the image"),
        ([[0, 0, 10**400, 0, 5, 5]], "a value that is not a number"),
        ({"size": [8, 9], "counts": [2**64 - 72, 144]}, "not valid run lengths"),
        ({"size": [8, 9], "counts": "oooooooooo1"}, "RLE counts that cover|not valid run lengths"),
        ({"size": [8, 9], "counts": [True, 71]}, "not valid run lengths"),
        ([[0, 0] * 3 + [9, 8, 0, 0] * 250_000], "an outline of"),
    ],
)
def test_numbers_that_would_overflow_in_c_are_refused_at_once(segmentation: object, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(MaskError, match=message):
        encode_segmentation(segmentation, 8, 9)
    assert time.monotonic() - start < 20


def circle(radius: float, count: int) -> list[float]:
    """A polygon of `count` vertices about the middle of an image of 1024 x 1024 pixels."""
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    values: list[float] = np.stack([512 + radius * np.cos(turn), 512 + radius * np.sin(turn)], 1).ravel().tolist()
    return values


def squares(count: int) -> list[list[float]]:
    """Squares of 2 x 2 pixels side by side, from the upper left corner of an image of 1024 x 1024 pixels on."""
    corners = [(3 * (n % 300), 3 * (n // 300)) for n in range(count)]
    return [[x, y, x + 2, y, x + 2, y + 2, x, y + 2] for x, y in corners]


@pytest.mark.parametrize(
    ("segmentation", "ringed", "area"),
    [
        ([circle(400, 30_000), circle(200, 30_000)], True, np.pi * 400**2),
        ([circle(400, 30_000), [v + 300 for v in circle(200, 30_000)]], False, None),
        (squares(20_000), False, 80_000),
    ],
)
def test_many_vertices_and_parts_are_checked_in_seconds_and_little_memory(
    segmentation: list[list[float]], ringed: bool, area: float | None
) -> None:
    start = time.process_time()
    pixels = int(coco_mask.area(encode_segmentation(segmentation, 1024, 1024)))
    assert Extents.of({"segmentation": segmentation}, pixels, (1024, 1024)).ringed == ringed
    assert time.process_time() - start < 5
    assert area is None or pixels == pytest.approx(area, rel=1e-3)
    rings = flat_polygons(segmentation)
    tracemalloc.start()
    has_inner_ring(rings)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6


def test_an_image_of_more_pixels_than_c_counts_is_refused() -> None:
    with pytest.raises(MaskError, match="an image of 100000 x 100000 pixels"):
        encode_segmentation({"size": [100_000, 100_000], "counts": [10**10]}, 100_000, 100_000)


@pytest.mark.parametrize("counts", [[0, 5, 0, 3, 64], [3, 0, 2, 0, 67], [0, 0, 0, 72], [5, 3, 64, 0], [12.0, 60.0]])
def test_runs_without_a_pixel_change_nothing(counts: list[float]) -> None:
    encoded = encode_segmentation({"size": [8, 9], "counts": counts}, 8, 9)
    inside = np.repeat(np.arange(len(counts)) % 2, [int(n) for n in counts]).reshape(9, 8).T
    assert np.array_equal(coco_mask.decode(encoded), inside)
    assert encoded["counts"] == coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))["counts"]
