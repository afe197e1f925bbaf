"""Masks as polygons along pixel edges, and several polygons joined to one by cuts of zero width.

Coordinates are COCO's: pixel (row, column) covers [column, column + 1] x [row, row + 1], and points enclosed by an odd
number of outlines are inside. COCO's rasteriser restores exactly the same mask from either form.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Loop = NDArray[np.int64]


def outlines(mask: NDArray[np.bool_]) -> list[Loop]:
    """The closed outlines of a mask (H, W) bool around parts and holes, each (n, 2) int64 corners (x, y).

    Pixels that touch only at a corner belong to different outlines.
    """
    rows, columns, falling = _corners(mask)
    # From left to right, corners of a row are alternately starts and ends of horizontal edges; likewise in a column.
    number = np.arange(len(rows))
    order = np.lexsort((np.where(falling, number, -number), rows, columns))
    below = np.empty_like(number)
    below[order[::2]], below[order[1::2]] = order[1::2], order[::2]
    partner: list[int] = below.tolist()
    corners = np.stack([columns, rows], axis=1)
    seen = bytearray(len(number))
    loops = []
    for start in range(0, len(partner), 2):
        walked: list[int] = []
        corner = start
        while not seen[corner]:
            seen[corner] = seen[corner ^ 1] = 1
            walked += (corner, corner ^ 1)
            corner = partner[corner ^ 1]
        if walked:
            loops.append(corners[walked])
    return loops


def _corners(mask: NDArray[np.bool_]) -> tuple[Loop, Loop, NDArray[np.bool_]]:
    """Rows and columns of the outlines' corners, row by row, and True for those with pixels above left and below right.

    A point at which two pixels touch diagonally counts as two corners.
    """
    padded = np.pad(mask, 1)
    above_left, above_right = padded[:-1, :-1], padded[:-1, 1:]
    below_left, below_right = padded[1:, :-1], padded[1:, 1:]
    turning = above_left ^ above_right ^ below_left ^ below_right
    touching = (above_left == below_right) & (above_right == below_left) & (above_left != above_right)
    places = np.repeat(np.arange(turning.size), (turning + 2 * touching).ravel())
    rows, columns = np.divmod(places, turning.shape[1])
    return rows, columns, above_left[rows, columns]


def is_hole(loop: Loop, mask: NDArray[np.bool_]) -> bool:
    """True if an outline encloses a hole: the pixel inside its upper left corner is not set."""
    x, y = min(loop.tolist(), key=lambda corner: (corner[1], corner[0]))
    return not mask[y, x]


def joined(loops: Sequence[Loop]) -> Loop:
    """Joins outlines to one closed polygon: a cut connects each to the nearest corner so far."""
    first, *others = sorted(loops, key=len, reverse=True)
    path = first
    for loop in others:
        found = cKDTree(loop).query(path)
        distance, nearest = np.asarray(found[0]), np.asarray(found[1])
        leave = int(np.argmin(distance))
        turned = np.roll(loop, -int(nearest[leave]), axis=0)
        path = np.concatenate([path[: leave + 1], turned, turned[:1], path[leave:]])
    return path
