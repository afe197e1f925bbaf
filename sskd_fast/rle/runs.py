"""Reading run-length codes of masks, and building them from pixel runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from numpy.typing import NDArray


def run_lengths(counts: bytes) -> NDArray[np.int64]:
    """The run lengths of a compressed RLE string, alternating outside and inside; a negative one marks malformed input.

    COCO's code has six bits per character, counted from "0": five of value and one that says that more follow.  The
    last character holds the sign.  From the fourth run on, it stores the difference to the run two before.  COCO's
    decoder trusts the string and would write past the end of the mask.
    """
    bits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(bits & 32 == 0)
    if not len(bits):
        return np.zeros(0, dtype=np.int64)
    if bits.min() < 0 or bits.max() > 63 or not len(last) or last[-1] != len(bits) - 1:
        return np.array([-1])
    first = np.concatenate([[0], last[:-1] + 1])
    shift = 5 * (np.arange(len(bits)) - np.repeat(first, last - first + 1))
    if shift.max() > 55:
        return np.array([-1])
    runs: NDArray[np.int64] = np.add.reduceat((bits & 31) << shift, first)
    runs -= (bits[last] & 16 > 0) * (np.int64(1) << (shift[last] + 5))
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def pixels_of_runs(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pixel indices of a mask, in column-major order, from its run lengths (outside, inside, outside, ...)."""
    lengths = runs[1::2]
    before = np.cumsum(lengths) - lengths
    starts = np.cumsum(runs)[: 2 * len(lengths) : 2]
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum(), dtype=np.int64)


def box_of_rle(encoded: Mapping[str, Any]) -> tuple[NDArray[np.bool_], int, int]:
    """A compressed RLE mask cropped to its box: (h, w) bool, and its first row and column; (0, 0) for an empty mask."""
    counts = encoded["counts"]
    pixels = pixels_of_runs(run_lengths(counts if isinstance(counts, bytes) else counts.encode("ascii")))
    if not len(pixels):
        return np.zeros((0, 0), dtype=np.bool_), 0, 0
    columns, rows = np.divmod(pixels, encoded["size"][0])
    top, left = int(rows.min()), int(columns[0])
    mask = np.zeros((int(rows.max()) - top + 1, int(columns[-1]) - left + 1), dtype=np.bool_)
    mask[rows - top, columns - left] = True
    return mask, top, left


def union_of(codes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The union of one or more compressed RLE masks of one size.

    They are merged in pairs, and the results in pairs again; one after the other would take quadratic time.
    """
    while len(codes) > 1:
        codes = [coco_mask.merge(codes[place : place + 2]) for place in range(0, len(codes), 2)]
    return codes[0]


def rle_of_runs(starts: NDArray[np.int64], ends: NDArray[np.int64], height: int, width: int) -> dict[str, Any]:
    """A mask of height x width as compressed RLE with bytes counts, from its runs of pixels.

    starts, ends: (r,) int64, first pixel of each run and one past its last, in column-major order; runs must not touch.
    """
    borders = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(borders, prepend=0, append=height * width)
    counts = counts if counts[-1] else counts[:-1]
    encoded: dict[str, Any] = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return encoded


def rle_of_box(mask: NDArray[np.bool_], top: int, left: int, height: int, width: int) -> dict[str, Any]:
    """`mask` (h, w) placed at row `top` and column `left` of a height x width image, as RLE with bytes counts.

    The time depends only on the box.  Raises ValueError for a box that leaves the image: runs beyond the end would hang
    readers.
    """
    bottom, right = top + mask.shape[0], left + mask.shape[1]
    if not (top >= 0 and bottom <= height and left >= 0 and right <= width):
        box = f"({top}, {left}, {bottom}, {right})"
        raise ValueError(f"box (top, left, bottom, right): found {box}, expected one within {height} x {width}")
    padded = np.zeros((mask.shape[1], mask.shape[0] + 2), dtype=np.int8)
    padded[:, 1:-1] = mask.T
    columns, rows = np.nonzero(np.diff(padded, axis=1))
    places = (left + columns) * height + top + rows
    starts, ends = places[::2], places[1::2]
    # Merge runs that end in the last row with runs that start in the first row of the next column.
    first = np.r_[True, starts[1:] != ends[:-1]][: len(starts)]
    last = np.r_[first[1:], True][: len(ends)]
    return rle_of_runs(starts[first], ends[last], height, width)
