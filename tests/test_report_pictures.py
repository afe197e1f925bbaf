"""Rims of masks, and pictures that are drawn once for the same content."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from sskd_fast.report import pictures
from sskd_fast.report.pictures import Patch, drawn_once


def test_the_line_is_the_rim_of_a_mask_and_the_shadow_lies_around_it() -> None:
    solid = np.zeros((12, 11), dtype=np.uint8)
    solid[2:10, 1:11] = 255  # up to the right edge of the crop, beyond which it goes on
    patch = Patch(solid, 0, 0)
    inside, around = np.zeros_like(solid), np.zeros_like(solid)
    inside[4:8, 3:11] = 255
    around[1:11, 0:11] = 255
    assert np.array_equal(patch.line, solid - inside)
    assert np.array_equal(patch.shadow, around - solid)
    thin = Patch(np.where(np.arange(49).reshape(7, 7) == 24, 255, 0).astype(np.uint8), 0, 0)
    assert np.array_equal(thin.line, thin.solid) and (thin.shadow > 0).sum() == 8


def test_the_same_picture_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_sources", {})
    monkeypatch.setattr(pictures, "_KEPT_SOURCES", 3)
    calls = []
    base = Image.new("RGB", (8, 6), (1, 2, 3))

    def source(base: Image.Image, number: int) -> str:
        def draw() -> Image.Image:
            calls.append(number)
            return Image.new("RGB", base.size, (number, 0, 0))

        return drawn_once(base, [number], draw)

    first = source(base, 1)
    assert first.startswith("data:image/webp;base64,") and source(base.copy(), 1) == first and calls == [1]
    assert source(base, 200) != first
    source(Image.new("RGB", (8, 6), (1, 2, 4)), 1)
    source(Image.new("RGB", (6, 8), (1, 2, 3)), 1)
    assert calls == [1, 200, 1, 1] and len(pictures._sources) == 3, "the oldest is dropped"
    source(base, 200)
    assert calls[4:] == []
    source(base, 1)
    assert calls[4:] == [1]


@pytest.mark.parametrize("size", [(64, 6000), (6000, 64), (2, 4000), (1, 100_000)])
def test_a_long_strip_becomes_a_picture_that_a_page_can_hold(size: tuple[int, int]) -> None:
    """Its short side would ask for more pixels along it than WebP allows, 16,383."""
    for kept in (0, 1600):
        picture = pictures.enlarged(np.zeros((*size, 3), dtype=np.uint8), kept=kept)
        longest = max(kept, 16 * pictures.LONG_SIDE)
        assert max(picture.size) == longest and min(picture.size) >= 1
        assert abs(min(picture.size) - longest * min(size) / max(size)) <= 1
        picture.save(io.BytesIO(), "webp")


def test_the_short_side_still_counts_for_usual_images() -> None:
    picture = pictures.enlarged(np.zeros((100, 200), dtype=np.uint8), short_side=300, long_side=200)
    assert picture.size == (600, 300)
