"""Comparison of stated areas and boxes with the masks: they are never used, but reveal wrongly encoded masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask

from sskd_fast import scalars
from sskd_fast.data.coco_records import annotation_item
from sskd_fast.data.errors import Findings
from sskd_fast.rle import pixels_of_runs, run_lengths
from sskd_fast.scalars import ScalarError

# A stated area is far off above this factor, a stated box below this IoU; differences of a few pixels never count.
_AREA_FACTOR, _BOX_IOU, _PIXELS = 2.0, 0.5, 4
# A problem needs more than the first share of boxes far off, and the second share of these explained by one encoding.
_MOST, _NEARLY_ALL = 0.5, 0.9
_EITHER = "or, if the masks are right, correct the boxes or take them out."
_READINGS = {
    "x and y swapped": f"Write x before y in every polygon; {_EITHER}",
    "their runs read along the rows": (
        "COCO's runs go down the columns: encode the masks with pycocotools' encode(np.asfortranarray(mask)); "
        + _EITHER
    ),
}


@dataclass(frozen=True)
class Stated:
    """Fields that an annotation states about its mask: its name in messages, and a text on what is far off, or "".

    box: True if it states a box.  box_far: True if that is far from the mask's.  fits: key of _READINGS that explains
    it, or "".
    """

    item: str
    far: str
    box: bool
    box_far: bool = False
    fits: str = ""

    @classmethod
    def of(cls, annotation: Mapping[str, Any], encoded: Mapping[str, Any], area: int) -> Stated:
        """Compares the fields of an annotation with its mask, compressed RLE of `area` >= 1 pixels."""
        item, stated = annotation_item(annotation), annotation.get("bbox")
        far_area = _far_area(annotation.get("area"), area)
        if not stated:
            return cls(item, far_area, box=False)
        own = coco_mask.toBbox(encoded).tolist()
        try:
            x, y, width, height = (scalars.number(value) for value in stated)
        except (ScalarError, TypeError, ValueError):
            return cls(item, far_area or f"a box of {str(stated)[:60]}, the mask has {own}", box=True, box_far=True)
        box = (x, y, width, height)
        if _near(box, own):
            return cls(item, far_area, box=True)
        polygons = isinstance(annotation.get("segmentation"), list)
        name, read = ("x and y swapped", _swapped(own)) if polygons else (list(_READINGS)[1], _along_rows(encoded))
        return cls(item, f"a box of {stated}, the mask has {own}", True, True, name if _near(box, read) else "")


def check_stated(file: Path, stated: Sequence[Stated], findings: Findings) -> None:
    """Adds a problem if most boxes fit masks in a wrong encoding, else a warning of areas and boxes far off."""
    far, boxes = [one for one in stated if one.far], [one for one in stated if one.box]
    off = [one for one in boxes if one.box_far]
    mostly = len(off) > _MOST * len(boxes)
    for name, cure in _READINGS.items():
        fitting = [one for one in off if one.fits == name]
        if mostly and len(fitting) >= _NEARLY_ALL * len(off):
            found = (
                f"{len(off)} of {len(boxes)} boxes are far from their masks, and {len(fitting)} fit them with {name} "
                f"({fitting[0].item}: {fitting[0].far})"
            )
            findings.add(file, "annotations", found, "masks within the boxes that are stated for them", cure)
            return
    if not far:
        return
    end = (
        "either these boxes or the masks are wrong, and the masks are used. Look at some in an annotation tool, and "
        "correct the masks, or take the boxes out"
        if mostly
        else "they are not used, the mask says both"
    )
    findings.warnings.append(
        f"{file}: {len(far)} of {len(stated)} annotations state an area or a box far from their mask "
        f"({(off if mostly else far)[0].item}: {(off if mostly else far)[0].far}): {end}."
    )


def _far_area(stated: object, area: int) -> str:
    """A text on a stated area far from the mask's; "" if there is none or it is close."""
    if stated is None:
        return ""
    try:
        value = scalars.number(stated)
    except ScalarError:
        return f"an area of {scalars.shown(stated)}, the mask has {area} pixels"
    near = area / _AREA_FACTOR <= value <= area * _AREA_FACTOR or abs(value - area) <= _PIXELS
    return "" if near else f"an area of {value:g}, the mask has {area} pixels"


def _near(box: Sequence[float], other: Sequence[float]) -> bool:
    """True if two boxes (x, y, width, height) are about the same."""
    across = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    down = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    shared = max(across, 0.0) * max(down, 0.0)
    union = max(box[2], 0.0) * max(box[3], 0.0) + other[2] * other[3] - shared
    return shared >= _BOX_IOU * union or union - shared <= _PIXELS


def _swapped(box: Sequence[float]) -> list[float]:
    """A box (x, y, width, height) with x and y swapped."""
    return [box[1], box[0], box[3], box[2]]


def _along_rows(encoded: Mapping[str, Any]) -> list[float]:
    """The box that a mask would have if its runs went along the rows."""
    rows, columns = np.divmod(pixels_of_runs(run_lengths(encoded["counts"])), encoded["size"][1])
    left, top = int(columns.min()), int(rows[0])
    return [left, top, int(columns.max()) - left + 1, int(rows[-1]) - top + 1]
