"""Conversion of any COCO segmentation to compressed RLE, with checks before C code reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sskd_fast.rle.errors import MaskError
from sskd_fast.rle.polygons import drawn_polygons, unknown_form
from sskd_fast.rle.runs import rle_of_runs, run_lengths, union_of
from sskd_fast.scalars import LARGEST_IMAGE, ScalarError, integer


def encode_segmentation(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Converts polygons or RLE of a height x width image to compressed RLE with bytes counts.

    Polygons come in the forms of `flat_polygons`.  RLE may be compressed or not; the parts of a list are joined.
    Raises MaskError for any other form, or for RLE that has another size or does not cover the image.
    """
    if not (height > 0 and width > 0 and height * width <= LARGEST_IMAGE):
        expected = f"1 to {LARGEST_IMAGE} pixels"
        raise MaskError(f"an image of {height} x {width} pixels", expected, "Correct the size of the image.")
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, (str, bytes)):
        if segmentation and all(isinstance(part, Mapping) and "counts" in part for part in segmentation):
            parts = [_run_length_code(part, height, width) for part in segmentation]
            return union_of(parts)
        return drawn_polygons(segmentation, height, width)
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= segmentation.keys():
        found, cure = unknown_form(segmentation)
        raise MaskError(found, 'polygons or RLE {"size": [height, width], "counts": ...}', cure)
    return _run_length_code(segmentation, height, width)


def _run_length_code(code: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = code.get("size"), code["counts"]
    if not isinstance(size, (list, tuple)) or _whole(size) != [height, width]:
        raise MaskError(
            f"RLE of size {str(size)[:60]}",
            f"[{height}, {width}], the height and width of the image",
            "Write the height first, then the width."
            if isinstance(size, (list, tuple)) and _whole(size) == [width, height]
            else "Export the masks again at the size of the image.",
        )
    if isinstance(counts, (list, tuple)):
        whole = _whole(counts)
        runs = (
            None if whole is None or not all(0 <= run <= LARGEST_IMAGE for run in whole) else np.array(whole, np.int64)
        )
        text = None
    else:
        text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
        runs = run_lengths(text) if isinstance(text, bytes) else None
    # A sum of overlong runs could wrap around to the right number.
    wrong = runs is None or not len(runs) or int(runs.min()) < 0
    covered = -1 if wrong or runs is None else int(runs.astype(np.float64).sum())
    if runs is None or covered != height * width or int(runs.max()) > height * width:
        raise MaskError(
            f"RLE counts that cover {covered} pixels" if covered >= 0 else "RLE counts that are not valid run lengths",
            f"{height} x {width} = {height * width} pixels",
            "Export the masks again at the size of the image.",
        )
    if text is not None and (runs[1:] > 0).all():
        return {"size": [height, width], "counts": text}
    return _canonical(runs, height, width)


def _canonical(runs: NDArray[np.int64], height: int, width: int) -> dict[str, Any]:
    """The RLE of run lengths, with empty runs removed because COCO's box code cannot handle them."""
    ends = np.cumsum(runs)[1::2]
    starts = ends - runs[1::2]
    inside = starts < ends
    starts, ends = starts[inside], ends[inside]
    first = np.r_[True, starts[1:] != ends[:-1]][: len(starts)]
    last = np.r_[first[1:], True][: len(ends)]
    return rle_of_runs(starts[first], ends[last], height, width)


def _whole(values: Sequence[Any]) -> list[int] | None:
    """The values as integers; None if one is not an integer."""
    try:
        return [value if type(value) is int else integer(value) for value in values]
    except ScalarError:
        return None
