"""Polygons brought to flat lists of numbers and cut to the image, before COCO's rasteriser sees them.

The rasteriser walks every edge in steps of a fifth of a pixel and counts them in 32 bits: a vertex far away would take
all memory or write past its end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from numpy.typing import NDArray

from sskd_fast.rle.errors import MaskError
from sskd_fast.scalars import LARGEST_SIDE, is_number

# Pixels of outline that one object may have; more would take gigabytes to draw.
LONGEST_OUTLINE = 4_000_000
_NO_BOX = "Annotate masks: boxes alone cannot train instance segmentation."


def drawn_polygons(polygons: Sequence[Any], height: int, width: int) -> dict[str, Any]:
    """The union of polygons in any of the forms of `flat_polygons`, as compressed RLE with bytes counts.

    What lies beyond the image is cut off.  Raises MaskError for what is no polygon.
    """
    cut = [cut_to_image(points, height, width) for points in flat_polygons(polygons)]
    outline = sum(
        float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()) for points in cut if len(points)
    )
    if outline > LONGEST_OUTLINE:
        found = f"polygons with an outline of {outline:.0f} pixels"
        raise MaskError(found, f"at most {LONGEST_OUTLINE}", "Annotate the object again.")
    rings = [points.ravel().tolist() for points in cut if len(points) >= 3] or [[0.0] * 6]
    merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(rings, height, width))
    return merged


def flat_polygons(polygons: Sequence[Any]) -> list[NDArray[np.float64]]:
    """Polygons as (n, 2) arrays of x and y, n >= 3.

    Taken are lists of flat lists, [[x1, y1, x2, y2, ...], ...], COCO's form; one flat list; points as pairs, as OpenCV
    and Shapely give them; {"x", "y"} objects; and each of these in one list too many.  Raises MaskError otherwise.
    """
    if not polygons:
        raise MaskError("the segmentation is an empty list (a box without a mask)", "polygons or RLE", _NO_BOX)
    return [_points(polygon) for polygon in _polygons(polygons, 0)]


def _polygons(value: Sequence[Any], depth: int) -> list[Any]:
    """The polygons in a nested list, each a flat list or a list of pairs."""
    first = value[0] if value else None
    if depth > 8 or not value or not isinstance(first, (list, tuple, Mapping)):
        return [value]
    pairs = [_pair(point) for point in value]
    if all(pair is not None for pair in pairs) and len(pairs) >= 3:
        return [pairs]
    return [
        ring for part in value for ring in (_polygons(part, depth + 1) if isinstance(part, (list, tuple)) else [part])
    ]


def _pair(point: Any) -> tuple[Any, Any] | None:
    """A point as [x, y], [[x, y]] or {"x": x, "y": y}; None if it is none."""
    if isinstance(point, Mapping):
        return (point["x"], point["y"]) if {"x", "y"} <= point.keys() else None
    if isinstance(point, (list, tuple)) and len(point) == 1:
        return _pair(point[0])
    fits = isinstance(point, (list, tuple)) and len(point) == 2 and not isinstance(point[0], (list, tuple, Mapping))
    return (point[0], point[1]) if fits else None


def _points(polygon: Any) -> NDArray[np.float64]:
    pairs = isinstance(polygon, list) and bool(polygon) and isinstance(polygon[0], tuple)
    flat = [value for pair in polygon for value in pair] if pairs else polygon
    if not isinstance(flat, Sequence) or isinstance(flat, str) or len(flat) % 2 or len(flat) < 6:
        size = len(flat) / 2 if isinstance(flat, Sequence) and not isinstance(flat, str) else 0
        expected = "a flat list [x1, y1, x2, y2, ...] of at least 3 points"
        raise MaskError(f"a polygon of {size:g} points", expected, "Remove the polygon or annotate the object again.")
    if not set(map(type, flat)) <= {int, float} and not all(map(is_number, flat)):
        raise MaskError("a polygon with a value that is no number", "finite numbers", "Correct the polygon.")
    try:
        values = np.array(flat, dtype=np.float64)
    except OverflowError:
        values = np.array([np.inf])
    if not np.isfinite(values).all():
        raise MaskError("a polygon with a value that is no number", "finite numbers", "Correct the polygon.")
    far = values[np.abs(values).argmax()]
    if abs(far) > LARGEST_SIDE:
        found, expected = f"a polygon with the coordinate {far:g}", "pixels of the image"
        raise MaskError(found, expected, "Correct the polygon, or annotate the object again.")
    return values.reshape(-1, 2)


def cut_to_image(points: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """A polygon (n, 2) without what lies more than a few pixels beyond the image; as it is if nothing does.

    The method of Sutherland and Hodgman: the cut edges run outside of the image, so that its pixels stay the same.
    """
    margin = 8.0
    for axis, side in ((0, width), (1, height)):
        for sign, bound in ((1.0, side + margin), (-1.0, margin)):
            points = _cut(points, axis, sign, bound)
    return points


def _cut(points: NDArray[np.float64], axis: int, sign: float, bound: float) -> NDArray[np.float64]:
    """The part of a polygon with sign * coordinate <= bound."""
    beyond = sign * points[:, axis] - bound
    if not len(points) or beyond.max() <= 0:
        return points
    after, further = np.roll(points, -1, axis=0), np.roll(beyond, -1)
    crosses = (beyond > 0) != (further > 0)
    share = np.where(crosses, beyond, 0.0) / np.where(crosses, beyond - further, 1.0)
    crossing = points + share[:, None] * (after - points)
    both = np.stack([points, crossing], axis=1).reshape(-1, 2)
    return both[np.stack([beyond <= 0, crosses], axis=1).ravel()]


def unknown_form(segmentation: Any) -> tuple[str, str]:
    """The name of a segmentation that is neither polygons nor RLE, and the cure of the tool that writes it."""
    if segmentation is None:
        return "no segmentation (a box without a mask)", _NO_BOX
    keys = segmentation.keys() if isinstance(segmentation, Mapping) else set()
    if {"all_points_x", "all_points_y"} <= keys:
        return "a polygon of VIA (all_points_x)", "Export from VIA in COCO's format."
    if {"format", "rle"} <= keys or "brushlabels" in keys:
        return "a brush stroke of Label Studio", "Export the project as JSON and read it with --format label_studio."
    if {"points", "shape_type"} & keys:
        return "a shape of LabelMe", "Read LabelMe's own files with --format labelme."
    if "counts" in keys:
        return "RLE without a size", 'Add "size": [height, width].'
    if isinstance(segmentation, str):
        return _text_form(segmentation)
    return f"a segmentation of type {type(segmentation).__name__}", _NO_BOX


def _text_form(text: str) -> tuple[str, str]:
    try:
        inner = json.loads(text)
    except (ValueError, RecursionError):
        inner = None
    if isinstance(inner, (list, dict)):
        return "a segmentation written as text (a column of a table)", "Parse the text, and write its value."
    numbers = text.split()
    if len(numbers) > 1 and all(part.isdigit() for part in numbers):
        cure = "Turn the pairs of start and length, as Kaggle's tables have them, into COCO's counts."
        return "run lengths as text, without a size", cure
    return "a segmentation of type str", _NO_BOX
