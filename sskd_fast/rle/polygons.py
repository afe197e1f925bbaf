"""Polygons normalised to flat lists and clipped to the image before COCO's rasteriser draws them.

The rasteriser walks each edge in steps of a fifth of a pixel and counts them in 32 bits.  A distant vertex would use up
all memory or write past its end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from numpy.typing import NDArray

from sskd_fast.rle.errors import MaskError
from sskd_fast.rle.runs import union_of
from sskd_fast.scalars import LARGEST_SIDE, is_number, shown

# Longest outline of an object in pixels; a longer one would take gigabytes to draw.
LONGEST_OUTLINE = 4_000_000
# Pairs of edge and point compared at once.
_AT_ONCE = 1 << 18
_NO_BOX = "Annotate masks: boxes alone cannot train instance segmentation."
_WRITE = "Write the polygons as a list of flat lists, [[x1, y1, x2, y2, ...], ...], in pixels."


def drawn_polygons(polygons: Sequence[Any], height: int, width: int) -> dict[str, Any]:
    """The union of polygons in any of the forms of `flat_polygons`, as compressed RLE with bytes counts.

    Parts beyond the image are clipped.  Raises MaskError for anything that is not a polygon.
    """
    cut = [cut_to_image(points, height, width) for points in flat_polygons(polygons)]
    outline = sum(
        float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()) for points in cut if len(points)
    )
    if outline > LONGEST_OUTLINE:
        found = f"polygons with an outline of {outline:.0f} pixels"
        raise MaskError(found, f"at most {LONGEST_OUTLINE}", "Annotate the object again.")
    rings = [points.ravel().tolist() for points in cut if len(points) >= 3] or [[0.0] * 6]
    return union_of(coco_mask.frPyObjects(rings, height, width))


def flat_polygons(polygons: Sequence[Any]) -> list[NDArray[np.float64]]:
    """Polygons as (n, 2) float64 arrays of x and y, n >= 3.

    Accepts COCO's lists of flat lists, [[x1, y1, x2, y2, ...], ...], or one flat list.  Points may be pairs, as in
    OpenCV and Shapely, or {"x", "y"} objects.  Each of these may be in an extra list.  Raises MaskError otherwise.
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
    """The x and y of a point given as [x, y], [[x, y]] or {"x": x, "y": y}; None for anything else."""
    if isinstance(point, Mapping):
        return (point["x"], point["y"]) if {"x", "y"} <= point.keys() else None
    if isinstance(point, (list, tuple)) and len(point) == 1:
        return _pair(point[0])
    fits = isinstance(point, (list, tuple)) and len(point) == 2 and not isinstance(point[0], (list, tuple, Mapping))
    return (point[0], point[1]) if fits else None


def _points(polygon: Any) -> NDArray[np.float64]:
    pairs = isinstance(polygon, list) and bool(polygon) and isinstance(polygon[0], tuple)
    flat = [value for pair in polygon for value in pair] if pairs else polygon
    if not isinstance(flat, (list, tuple)):
        raise _no_polygon(flat)
    wrong = [] if set(map(type, flat)) <= {int, float} else [value for value in flat if not is_number(value)]
    try:
        values = np.array([] if wrong else flat, dtype=np.float64)
    except OverflowError:
        wrong, values = [math.inf], np.array([])
    wrong = wrong or values[~np.isfinite(values)].tolist()
    if wrong:
        found = f"a polygon with a value that is not a number ({shown(wrong[0])})"
        raise MaskError(found, "finite numbers", "Correct the polygon.")
    if len(flat) % 2 or len(flat) < 6:
        expected = "a flat list [x1, y1, x2, y2, ...] of at least 3 points"
        size = f"{len(flat)} numbers" if len(flat) % 2 else f"{len(flat) // 2} points"
        raise MaskError(f"a polygon of {size}", expected, "Remove the polygon or annotate the object again.")
    far = values[np.abs(values).argmax()]
    if abs(far) > LARGEST_SIDE:
        found, expected = f"a polygon with the coordinate {far:g}", "pixels of the image"
        raise MaskError(found, expected, "Correct the polygon, or annotate the object again.")
    return values.reshape(-1, 2)


def _no_polygon(entry: Any) -> MaskError:
    """The error for an entry in a list of polygons that is not a polygon."""
    expected = "only lists [x1, y1, x2, y2, ...]"
    if isinstance(entry, Mapping) and "counts" in entry:
        return MaskError("RLE in a list of polygons", expected, "Encode the whole object as one RLE.")
    found, cure = unknown_form(entry) if isinstance(entry, Mapping) else (shown(entry), "Remove the entry.")
    return MaskError(f"{found} in a list of polygons", expected, cure)


def has_inner_ring(rings: Sequence[NDArray[np.float64]]) -> bool:
    """True if all vertices of one polygon (n, 2) lie inside another one.

    For speed, it tests only polygons whose box lies in another's box, and all vertices only if a few are inside.
    """
    low, high = (np.array([bound(ring, axis=0) for ring in rings]) for bound in (np.min, np.max))
    order = np.argsort(low[:, 0], kind="stable")
    low, high = low[order], high[order]
    begins = np.searchsorted(low[:, 0], low[:, 0], side="right")
    ends = np.searchsorted(low[:, 0], high[:, 0])
    for outer in np.flatnonzero(begins < ends).tolist():
        of_left = slice(begins[outer], ends[outer])
        within = (high[of_left] < high[outer]).all(1) & (low[of_left, 1] > low[outer, 1])
        inner = [rings[place] for place in order[of_left][within]]
        if inner and _has_ring_inside(inner, rings[order[outer]]):
            return True
    return False


def _has_ring_inside(inner: Sequence[NDArray[np.float64]], outer: NDArray[np.float64]) -> bool:
    """True if all vertices of one of the polygons `inner` lie inside `outer`."""
    few = _are_inside([ring[:: len(ring) // 16 + 1] for ring in inner], outer)
    kept = [inner[place] for place in np.flatnonzero(few).tolist()]
    return bool(kept) and bool(_are_inside(kept, outer).any())


def _are_inside(rings: Sequence[NDArray[np.float64]], outer: NDArray[np.float64]) -> NDArray[np.bool_]:
    """For each list of points (n, 2), True if all of them lie inside a ring."""
    ends = np.cumsum([len(ring) for ring in rings])
    all_of: NDArray[np.bool_] = np.logical_and.reduceat(_inside(np.concatenate(rings), outer), np.r_[0, ends[:-1]])
    return all_of


def enclosed_area(ring: NDArray[np.float64]) -> float:
    """The area of a polygon (n, 2) in square pixels by the shoelace formula; 0 for points on a line."""
    x, y = (ring - ring[0]).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _inside(points: NDArray[np.float64], ring: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) bool: True for points (n, 2) whose ray to the right crosses a ring (m, 2) an odd number of times.

    Each edge is compared only with the points at its height, found in order of y, so fine outlines take n + m steps.
    """
    order = np.argsort(points[:, 1], kind="stable")
    x, y = points[order].T
    (x1, y1), (x2, y2) = ring.T, np.roll(ring, -1, axis=0).T
    first, last = (np.searchsorted(y, bound(y1, y2)) for bound in (np.minimum, np.maximum))
    pairs = np.cumsum(last - first)
    crossings = np.zeros(len(points), dtype=np.int64)
    begin = 0
    while begin < len(ring):
        done = pairs[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(pairs, done + max(_AT_ONCE, len(points)), side="right")))
        edge = np.repeat(np.arange(begin, end), (last - first)[begin:end])
        place = np.arange(done, pairs[end - 1]) - (pairs - last)[edge]
        at = x1[edge] + (y[place] - y1[edge]) * (x2[edge] - x1[edge]) / (y2[edge] - y1[edge])
        crossings += np.bincount(place[x[place] < at], minlength=len(points))
        begin = end
    odd = np.empty(len(points), dtype=np.bool_)
    odd[order] = crossings % 2 == 1
    return odd


def cut_to_image(points: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """A polygon (n, 2) clipped a few pixels beyond the image; unchanged if it does not reach that far.

    Sutherland-Hodgman clipping. The new edges run outside the image, so that its pixels stay the same.
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
    """A description of a segmentation that is neither polygons nor RLE, and the cure for the tool that wrote it."""
    if segmentation is None:
        return "no segmentation (a box without a mask)", _NO_BOX
    if isinstance(segmentation, Mapping):
        return _object_form(segmentation)
    if isinstance(segmentation, str) and (form := _text_form(segmentation)):
        return form
    return f"a segmentation of type {type(segmentation).__name__} ({shown(segmentation)})", _WRITE


def _object_form(segmentation: Mapping[str, Any]) -> tuple[str, str]:
    keys = segmentation.keys()
    if {"all_points_x", "all_points_y"} <= keys:
        return "a polygon of VIA (all_points_x)", "Export from VIA in COCO's format."
    if {"format", "rle"} <= keys or "brushlabels" in keys:
        return "a brush stroke of Label Studio", "Export the project as JSON and read it with --format label_studio."
    if {"coordinates", "geometry", "geometries"} & keys:
        cure = 'Write the outer rings of "coordinates" as flat lists, in pixels; encode masks with holes as RLE.'
        return "a geometry of GeoJSON (coordinates)", cure
    if "bitmap" in keys or (isinstance(segmentation.get("points"), Mapping) and "exterior" in segmentation["points"]):
        return "an object of Supervisely", "Export from Supervisely in COCO's format."
    if {"points", "shape_type"} & keys:
        return "a shape of LabelMe", "Read LabelMe's own files with --format labelme."
    if {"polygon", "polygons"} & keys:
        return 'polygons in an object with the key "polygon", as V7 and Labelbox write them', _WRITE
    if "counts" in keys:
        return "RLE without a size", 'Add "size": [height, width].'
    if {"width", "height"} <= keys or "bbox" in keys:
        return "a box", _NO_BOX
    return f"an object with the keys {', '.join(map(str, keys))[:80]}" if keys else "an empty object", _WRITE


def _text_form(text: str) -> tuple[str, str] | None:
    """The description and the cure for a segmentation in a text; None for other text."""
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
    return None
