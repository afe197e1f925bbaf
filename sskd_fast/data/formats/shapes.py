"""Shapes of annotation tools, drawn as compressed RLE with bytes counts.  Raise MaskError for invalid shapes.

Points are (x, y) in pixels from the image's upper left corner; pixel (row, column) covers a unit square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from numpy.typing import NDArray

from sskd_fast.rle import MaskError, encode_segmentation, rle_of_box

Points = Sequence[tuple[float, float]]


def polygon(points: Points, height: int, width: int) -> dict[str, Any]:
    """The inside of a closed polygon by the even-odd rule, clipped to the image."""
    _check_points(points, height, width)
    return encode_segmentation([[value for point in points for value in point]], height, width)


def rectangle(points: Points, height: int, width: int) -> dict[str, Any]:
    """A rectangle given by two opposite corners, or by four corners in order."""
    if len(points) == 4:
        return polygon(points, height, width)
    if len(points) != 2:
        cure = "Annotate the object again."
        raise MaskError(f"a rectangle of {len(points)} points", "two opposite corners, or four", cure)
    (left, top), (right, bottom) = points
    return polygon([(left, top), (right, top), (right, bottom), (left, bottom)], height, width)


def circle(points: Points, height: int, width: int) -> dict[str, Any]:
    """The pixels with centres in a circle, given its centre and a point on it."""
    if len(points) != 2:
        cure = "Annotate the object again."
        raise MaskError(f"a circle of {len(points)} points", "its centre and a point on it", cure)
    _check_points(points, height, width)
    (x, y), on_it = points
    radius = math.dist((x, y), on_it)
    top, left = (min(size, max(0, math.floor(at - radius))) for at, size in ((y, height), (x, width)))
    bottom, right = (min(size, max(0, math.ceil(at + radius))) for at, size in ((y, height), (x, width)))
    rows, columns = np.ogrid[top:bottom, left:right]
    inside = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2
    return rle_of_box(inside, top, left, height, width)


def bitmap(mask: NDArray[np.bool_], top: int, left: int, height: int, width: int) -> dict[str, Any]:
    """A mask (h, w) bool with its first pixel at row `top` and column `left` of the image."""
    bottom, right = top + mask.shape[0], left + mask.shape[1]
    if not (0 <= top <= bottom <= height and 0 <= left <= right <= width):
        raise MaskError(
            f"a mask of {mask.shape[0]} x {mask.shape[1]} pixels (height x width) at row {top} and column {left}",
            f"one within the {height} x {width} pixels of the image",
            "Export the masks again at the size of the image.",
        )
    return rle_of_box(mask, top, left, height, width)


def union(drawn: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The union of the parts of an instance."""
    merged: dict[str, Any] = drawn[0] if len(drawn) == 1 else coco_mask.merge(list(drawn))
    return merged


def _check_points(points: Points, height: int, width: int) -> None:
    """Raises MaskError for points too far outside the image to be a slip of the annotator's hand."""
    for x, y in points:
        if not (-width <= x <= 2 * width and -height <= y <= 2 * height):
            raise MaskError(
                f"the point ({x:g}, {y:g})",
                f"points in an image of {height} x {width} pixels (height x width)",
                "Use the image that was annotated, or annotate the object again.",
            )
