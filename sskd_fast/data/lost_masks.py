"""Detection of masks that miss their images, and the likely cause: relative units, another size, swapped x and y."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sskd_fast.data.errors import Findings
from sskd_fast.rle import MaskError
from sskd_fast.rle.polygons import enclosed_area, flat_polygons, has_inner_ring

# A sound data set loses single masks at image borders; a wrong unit loses nearly all.
LOST_SHARE = 0.25
# A mask is lost if less than this share of its box lies in the image.
_INSIDE = 0.5
_FLAT = ": the points of each polygon lie on a line", "Annotate the objects again: a line encloses no pixel."
# _MOST: quantile of polygons that measures their extent, robust to outliers. _CORNER: side of the corner as a
# share of the image. _CHANCE: the probability, under uniform placement, below which polygons in the corner count
# as a wrong unit.
_MOST, _CORNER, _CHANCE = 0.95, 0.55, 1e-6


@dataclass(frozen=True)
class Extents:
    """A mask's pixels, its polygons' (left, top, right, bottom) or None for RLE, and its image's (height, width).

    flat: True if the polygons enclose no area.  ringed: True if one polygon lies inside another.
    """

    area: int
    box: tuple[float, float, float, float] | None
    size: tuple[int, int]
    flat: bool = False
    ringed: bool = False

    @classmethod
    def of(cls, annotation: Mapping[str, Any], area: int, size: Sequence[int]) -> Extents:
        """The extents of an annotation with a decoded mask."""
        segmentation, sides = annotation.get("segmentation"), (size[0], size[1])
        if not isinstance(segmentation, list):
            return cls(area, None, sides)
        try:
            rings = flat_polygons(segmentation)
        except MaskError:  # RLE in a list
            return cls(area, None, sides)
        points = np.concatenate(rings)
        left, top, right, bottom = (float(v) for v in (*points.min(0), *points.max(0)))
        flat = not area and not any(map(enclosed_area, rings))
        return cls(area, (left, top, right, bottom), sides, flat, len(rings) > 1 and has_inner_ring(rings))


def check_losses(file: Path, extents: Sequence[Extents], findings: Findings) -> bool:
    """Adds a problem, and returns True, if more than a quarter of the masks miss their images.

    A mask is lost if it has no pixel, or if less than half of its polygons' box is in the image.  It is also lost if
    all its coordinates lie between 0 and 1.  Fewer lost masks, or a single one among others, give a warning.
    """
    drawn = [e for e in extents if e.box is not None]
    boxes = np.array([e.box for e in drawn], dtype=np.float64).reshape(-1, 4)
    sides = np.array([e.size[::-1] for e in drawn], dtype=np.float64).reshape(-1, 2)
    flat = np.array([e.flat for e in drawn], dtype=np.bool_)
    without = sum(e.area == 0 for e in extents if e.box is None)
    missed = _lost(boxes, sides) | np.array([e.area == 0 for e in drawn], dtype=np.bool_)
    lost = without + int(missed.sum())
    if lost > LOST_SHARE * len(extents) and (lost > 1 or lost == len(extents)):
        found = f"{lost} of {len(extents)} masks have no pixel or lie mostly outside of their images"
        cause, cure = _FLAT if len(drawn) and flat.all() else _guess(boxes[~flat], sides[~flat])
        findings.add(file, "annotations", f"{found}{cause}", f"less than {LOST_SHARE:.0%}", cure)
        return True
    outside = lost - sum(e.area == 0 for e in extents)
    if outside:
        findings.warnings.append(f"{file}: {outside} masks lie mostly outside of their images and are cut to them.")
    _warn_of_corner(file, boxes[~flat], sides[~flat], findings)
    return False


def _lost(boxes: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.bool_]:
    low, high = boxes[:, :2], boxes[:, 2:]
    extent = np.maximum(high - low, 1e-9)
    inside = np.clip(np.minimum(high, sides) - np.maximum(low, 0), 0, None) / extent
    return (inside.prod(1) < _INSIDE) | _shares(boxes, sides)


def _shares(boxes: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True for coordinates from 0 to 1 in images larger than a pixel."""
    return (boxes.min(1) >= -0.01) & (boxes.max(1) <= 1.01) & (sides.min(1) > 4)


def _guess(boxes: NDArray[np.float64], sides: NDArray[np.float64]) -> tuple[str, str]:
    """The likely cause of lost polygons, as the end of a message, and its cure."""
    if not len(boxes):
        return "", "Check that the masks were exported, at the size of the images."
    if _shares(boxes, sides).mean() > 0.9:
        return ": coordinates from 0 to 1", "Multiply x by the width of the image and y by its height."
    if _lost(boxes[:, [1, 0, 3, 2]], sides).mean() <= 0.05:
        return ": they fit with x and y swapped", "Write x before y in every polygon."
    factor = float(np.quantile((boxes[:, 2:] / sides).max(1), 0.99))
    if factor > 1 and _lost(boxes / factor, sides).mean() <= 0.05:
        found = f": coordinates of images at least {_nice(factor):g} times as large"
        cure = (
            "Use the images that were annotated, or multiply all coordinates by the width of these over that of those."
        )
        return found, cure
    return "", "Use the images that were annotated, and check the unit and the order of the coordinates."


def _nice(factor: float) -> float:
    """The factor rounded up to a whole or half number if close, since no object need reach the border."""
    above = np.ceil(2 * factor) / 2
    return float(above) if above <= 1.1 * factor else round(factor, 2)


def _warn_of_corner(file: Path, boxes: NDArray[np.float64], sides: NDArray[np.float64], findings: Findings) -> None:
    """Warns of coordinates for smaller images: they lose no mask but leave most of each image empty."""
    reaches = (boxes[:, 2:] / sides).max(1)
    reach = float(np.quantile(reaches, _MOST, method="lower")) if len(boxes) else 1.0
    within = reaches <= reach
    count = int(within.sum())
    if reach >= _CORNER or reach ** (2 * count) > _CHANCE:
        return
    unit = (
        "percent of the image"
        if boxes[within].max() <= 100 < sides.max()
        else f"pixels of images {reach:.2f} times as large"
    )
    findings.warnings.append(
        f"{file}: {count} of {len(boxes)} polygons lie in the upper left {reach:.0%} of their images. If the "
        f"coordinates are {unit}, convert them."
    )
