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
    top, left, bottom, right = max(a.top, b.top), max(a.left, b.left), min(a.box[2], b.box[2]), min(a.box[3], b.box[3])
    if top >= bottom or left >= right:
        return 0.0
    part_a, part_b = (d.mask[top - d.top : bottom - d.top, left - d.left : right - d.left] for d in (a, b))
    shared = int(np.count_nonzero(part_a & part_b))  # many times as fast as a sum
    mask_a, mask_b = a.mask, b.mask
    if on_common_tiles and a.tiles != b.tiles:
        mask_a, mask_b = mask_a & on_tiles(b.tiles, a.box), mask_b & on_tiles(a.tiles, b.box)
    return shared / max(int(np.count_nonzero(mask_a)) + int(np.count_nonzero(mask_b)) - shared, 1)


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
