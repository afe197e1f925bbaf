"""Masks cropped to their boxes, as a model predicts them in tiles: box overlap and mask IoU.

Shape letters: n boxes, h x w pixels of a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Box = tuple[int, int, int, int]  # top, left, bottom, right; the last two are exclusive


class BoxedMask(Protocol):
    """A mask (h, w) bool cropped to its box, from row `top` and column `left` on, and the tiles that show it."""

    mask: Bools
    top: int
    left: int
    tiles: tuple[Box, ...]

    @property
    def box(self) -> Box:
        """The box of the mask in the image."""


def mask_iou(a: BoxedMask, b: BoxedMask, *, on_common_tiles: bool = False) -> float:
    """Intersection over union of two masks in [0, 1]; 0 if their boxes share no pixel.

    on_common_tiles: count only pixels on tiles of both masks; elsewhere one of them was not visible.
    """
    box_a, box_b = a.box, b.box
    top, left, bottom, right = *map(max, box_a[:2], box_b[:2]), *map(min, box_a[2:], box_b[2:])
    if top >= bottom or left >= right:
        return 0.0
    part_a, part_b = (d.mask[top - d.top : bottom - d.top, left - d.left : right - d.left] for d in (a, b))
    shared = area(part_a & part_b)
    mask_a, mask_b = a.mask, b.mask
    if on_common_tiles and a.tiles != b.tiles:
        mask_a, mask_b = mask_a & on_tiles(b.tiles, box_a), mask_b & on_tiles(a.tiles, box_b)
    return shared / max(area(mask_a) + area(mask_b) - shared, 1)


def area(mask: Bools) -> int:
    """The number of pixels of a mask."""
    return int(np.count_nonzero(mask))  # faster than a sum


def highest_iou(boxes: NDArray[np.int64], areas: NDArray[np.int64], box: Box, own: int) -> NDArray[np.float64]:
    """(n,) float64 that the IoU of masks cannot exceed: n with boxes (4, n) and areas (n,), one with `box`, area `own`.

    Equal to it if the smaller mask lies in the other, or fills the pixels that the boxes share.
    """
    height = np.minimum(boxes[2], box[2]) - np.maximum(boxes[0], box[0])
    width = np.minimum(boxes[3], box[3]) - np.maximum(boxes[1], box[1])
    shared = np.minimum(np.maximum(height, 0) * np.maximum(width, 0), np.minimum(areas, own))
    bound: NDArray[np.float64] = shared / np.maximum(areas + own - shared, 1)
    return bound


def on_tiles(tiles: Sequence[Box], box: Box) -> Bools:
    """(h, w) bool: True for the pixels of a box that lie on at least one tile."""
    inside = np.zeros((box[2] - box[0], box[3] - box[1]), dtype=np.bool_)
    for top, left, bottom, right in tiles:
        inside[max(top - box[0], 0) : max(bottom - box[0], 0), max(left - box[1], 0) : max(right - box[1], 0)] = True
    return inside


@overload
def boxes_meet(a: Box, b: Box) -> bool: ...
@overload
def boxes_meet(a: NDArray[np.int64], b: Box) -> Bools: ...
def boxes_meet(a: Any, b: Box) -> Any:
    """True if box `a` shares a pixel with box `b`. A (4, n) array `a` holds n boxes and gives (n,) bool."""
    return (a[0] < b[2]) & (b[0] < a[2]) & (a[1] < b[3]) & (b[1] < a[3])
