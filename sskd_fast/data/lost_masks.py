"""Masks that miss their images, and the guess why: shares in place of pixels, another size, x and y swapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sskd_fast.data.errors import Findings
from sskd_fast.rle import MaskError
from sskd_fast.rle.polygons import flat_polygons

# Sound data sets lose single masks at the borders of images; a wrong unit loses nearly all.
LOST_SHARE = 0.25
# A mask is lost if less than this share of its box lies in the image.
_INSIDE = 0.5
# Objects from which on it is no chance that all of them lie in one corner, and the corner's side as a share.
_MANY, _CORNER = 20, 0.55


@dataclass(frozen=True)
class Extents:
    """A mask's pixels, its polygons' (left, top, right, bottom), None for RLE, and its image's (height, width)."""

    area: int
    box: tuple[float, float, float, float] | None
    size: tuple[int, int]

    @classmethod
    def of(cls, annotation: Mapping[str, Any], area: int, size: Sequence[int]) -> Extents:
        """Those of an annotation whose mask was decoded."""
        segmentation, box = annotation.get("segmentation"), None
        if isinstance(segmentation, list):
            try:
                points = np.concatenate(flat_polygons(segmentation))
                left, top, right, bottom = (float(v) for v in (*points.min(0), *points.max(0)))
                box = left, top, right, bottom
            except MaskError:  # RLE in a list
                box = None
        return cls(area, box, (size[0], size[1]))


def check_losses(file: Path, extents: Sequence[Extents], findings: Findings) -> bool:
    """Notes a problem if more than a quarter of the masks miss their images; True if so.

    A mask is lost without a pixel, if less than half of its polygons' box is in the image, or if all of its
    coordinates lie between 0 and 1.  Fewer lost ones give a warning.
    """
    drawn = [e for e in extents if e.box is not None]
    boxes = np.array([e.box for e in drawn], dtype=np.float64).reshape(-1, 4)
    sides = np.array([e.size[::-1] for e in drawn], dtype=np.float64).reshape(-1, 2)
    without = sum(e.area == 0 for e in extents if e.box is None)
    missed = _lost(boxes, sides) | np.array([e.area == 0 for e in drawn], dtype=np.bool_)
    lost = without + int(missed.sum())
    if lost > 1 and lost > LOST_SHARE * len(extents):
        found = f"{lost} of {len(extents)} masks have no pixel or lie mostly outside of their images"
        cause, cure = _guess(boxes, sides)
        findings.add(file, "annotations", f"{found}{cause}", f"less than {LOST_SHARE:.0%}", cure)
        return True
    outside = lost - sum(e.area == 0 for e in extents)
    if outside:
        findings.warnings.append(f"{file}: {outside} masks lie mostly outside of their images and are cut to them.")
    _warn_of_corner(file, boxes, sides, findings)
    return False


def _lost(boxes: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.bool_]:
    low, high = boxes[:, :2], boxes[:, 2:]
    extent = np.maximum(high - low, 1e-9)
    inside = np.clip(np.minimum(high, sides) - np.maximum(low, 0), 0, None) / extent
    return (inside.prod(1) < _INSIDE) | _shares(boxes, sides)


def _shares(boxes: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True for coordinates from 0 to 1 in images of more pixels."""
    return (boxes.min(1) >= -0.01) & (boxes.max(1) <= 1.01) & (sides.min(1) > 4)


def _guess(boxes: NDArray[np.float64], sides: NDArray[np.float64]) -> tuple[str, str]:
    """The cause of lost polygons, to go on after what was found, and its cure."""
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
    """The factor, or the whole or half number just above, since no object need reach the border."""
    above = np.ceil(2 * factor) / 2
    return float(above) if above <= 1.1 * factor else round(factor, 2)


def _warn_of_corner(file: Path, boxes: NDArray[np.float64], sides: NDArray[np.float64], findings: Findings) -> None:
    """Coordinates of smaller images lose nothing, but leave most of every image empty."""
    if len(boxes) < _MANY:
        return
    reach = float((boxes[:, 2:] / sides).max())
    if reach < _CORNER:
        unit = (
            "percent of the image"
            if boxes.max() <= 100 < sides.max()
            else f"pixels of images {reach:.2f} times as large"
        )
        findings.warnings.append(
            f"{file}: all {len(boxes)} polygons lie in the upper left {reach:.0%} of their images. If the coordinates "
            f"are {unit}, convert them."
        )
