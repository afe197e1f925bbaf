"""Instance masks of an image as a few id maps: windows of hundreds of instances cost little more than windows of one.

Shape letters: n instances, L layers, H x W pixels of the image, h x w of a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from numpy.typing import NDArray


class MaskError(ValueError):
    """A segmentation that cannot be decoded; says what was found, what was expected and the cure."""

    def __init__(self, found: str, expected: str, cure: str) -> None:
        self.found, self.expected, self.cure = found, expected, cure
        super().__init__(f"{found}; expected {expected}. {cure}")


def _polygons_to_rle(polygons: Sequence[Any], height: int, width: int) -> dict[str, Any]:
    if not polygons:
        raise MaskError(
            "the segmentation is an empty list (a box without a mask)",
            "polygons or RLE",
            "Annotate masks: boxes alone cannot train instance segmentation.",
        )
    for polygon in polygons:
        if not isinstance(polygon, Sequence) or isinstance(polygon, str) or len(polygon) % 2 or len(polygon) < 6:
            size = len(polygon) / 2 if isinstance(polygon, Sequence) and not isinstance(polygon, str) else 0
            raise MaskError(
                f"a polygon of {size:g} points",
                "a flat list [x1, y1, x2, y2, ...] of at least 3 points",
                "Remove the polygon or annotate the object again.",
            )
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in polygon):
            raise MaskError("a polygon with a value that is no number", "finite numbers", "Correct the polygon.")
    encoded = coco_mask.frPyObjects([[float(value) for value in polygon] for polygon in polygons], height, width)
    merged: dict[str, Any] = coco_mask.merge(encoded)
    return merged


def encode_segmentation(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Polygons, uncompressed or compressed RLE of a height x width image as compressed RLE with bytes counts.

    Raises MaskError where the form is none of these, the RLE has another size or does not cover the image.
    """
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, str):
        return _polygons_to_rle(segmentation, height, width)
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= segmentation.keys():
        found = "no segmentation" if segmentation is None else f"a segmentation of type {type(segmentation).__name__}"
        raise MaskError(
            found + " (a box without a mask)" * (segmentation is None),
            'polygons or RLE {"size": [height, width], "counts": ...}',
            "Annotate masks: boxes alone cannot train instance segmentation.",
        )
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, Sequence) or list(size) != [height, width]:
        raise MaskError(
            f"RLE of size {size}",
            f"[{height}, {width}], the height and width of the image",
            "Export the masks again at the size of the image.",
        )
    if isinstance(counts, (list, tuple)):
        valid = all(isinstance(count, int) and count >= 0 for count in counts)
        _check_cover(sum(counts) if valid else -1, height, width)
        encoded: dict[str, Any] = coco_mask.frPyObjects(
            {"size": [height, width], "counts": list(counts)}, height, width
        )
        return encoded
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    _check_cover(_covered_pixels(text) if isinstance(text, bytes) else -1, height, width)
    return {"size": [height, width], "counts": text}


def _check_cover(covered: int, height: int, width: int) -> None:
    """Raises MaskError where run lengths that cover `covered` pixels (-1: none can be read) do not fill the image."""
    if covered != height * width:
        raise MaskError(
            f"RLE counts that cover {covered} pixels" if covered >= 0 else "RLE counts that are no valid run lengths",
            f"{height} x {width} = {height * width} pixels",
            "Export the masks again at the size of the image.",
        )


def _covered_pixels(counts: bytes) -> int:
    """Sum of the run lengths of a compressed RLE string, -1 where it is malformed.

    The string is COCO's: six bits a character from "0", five of value and one that says that more follow, sign in the
    last; from the third run on, the difference to the run two before.  The C decoder trusts it and would write past the
    end of the mask.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in counts:
        bits = byte - 48
        if not 0 <= bits < 64:
            return -1
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            return -1
        runs.append(value)
        value = shift = 0
    return -1 if shift else sum(runs)


@dataclass(frozen=True)
class MaskLayers:
    """All instances of an image, packed into id maps in which they do not overlap.

    ids: (L, H, W) uint16, 0 where there is none, else 1 + the instance.  layer: (n,) int64, the id map of each
    instance. labels: (n,) int64.  scores: (n,) float32.  crowd: (n,) bool.
    """

    ids: NDArray[np.uint16]
    layer: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    crowd: NDArray[np.bool_]

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return int(self.ids.nbytes + 21 * len(self.labels))

    def window(
        self,
        rows: NDArray[np.int64] | slice,
        columns: NDArray[np.int64] | slice,
        min_pixels: int = 1,
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The instances seen through a grid of pixels.

        rows, columns: the h rows and w columns of the grid, indices or slices.  Returns the instances with at least
        `min_pixels` pixels on the grid, in order, (m,) int64, and their masks (m, h, w) bool.
        """
        grid = self.ids[:, rows][:, :, columns]
        count = np.bincount(grid.ravel(), minlength=len(self.labels) + 1)[1:]
        kept = np.flatnonzero(count >= max(min_pixels, 1))
        maps = grid if len(grid) == 1 else grid[self.layer[kept]]
        if not len(kept):
            return kept, np.zeros((0, *grid.shape[1:]), dtype=np.bool_)
        return kept, maps == (kept + 1).astype(np.uint16)[:, None, None]


def pack_layers(
    encoded: Sequence[Mapping[str, Any]],
    labels: Sequence[int],
    scores: Sequence[float],
    crowd: Sequence[bool],
    height: int,
    width: int,
) -> MaskLayers:
    """n compressed RLE masks as id maps, each instance on the first map where nothing lies under it.

    Masks of no pixel are dropped.  Raises MaskError for more than 65535 instances.
    """
    if len(encoded) > np.iinfo(np.uint16).max:
        raise MaskError(f"{len(encoded)} instances on one image", "at most 65535", "Cut the image into tiles.")
    maps: list[NDArray[np.uint16]] = []
    layer: list[int] = []
    kept: list[int] = []
    for index, rle in enumerate(encoded):
        left, top, box_width, box_height = (int(value) for value in coco_mask.toBbox(rle))
        box = np.s_[top : top + box_height, left : left + box_width]
        mask = coco_mask.decode(rle)[box].view(np.bool_)
        if not mask.any():
            continue
        kept.append(index)
        number = next((number for number, ids in enumerate(maps) if not ids[box][mask].any()), len(maps))
        if number == len(maps):
            maps.append(np.zeros((height, width), dtype=np.uint16))
        maps[number][box][mask] = len(kept)
        layer.append(number)
    return MaskLayers(
        ids=np.stack(maps) if maps else np.zeros((1, height, width), dtype=np.uint16),
        layer=np.array(layer, dtype=np.int64),
        labels=np.array([labels[index] for index in kept], dtype=np.int64),
        scores=np.array([scores[index] for index in kept], dtype=np.float32),
        crowd=np.array([crowd[index] for index in kept], dtype=np.bool_),
    )
