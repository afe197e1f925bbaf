"""Stated boxes reveal wrongly encoded masks, or leave open if box or mask is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sskd_fast.data.errors import Findings
from sskd_fast.data.stated_fields import Stated, check_stated
from sskd_fast.rle import encode_segmentation

FILE = Path("labels.json")
ROWS = "their runs read along the rows"
SWAPPED = "x and y swapped"
SQUARE = [[5, 30, 25, 30, 25, 50, 5, 50]]


def stated(segmentation: Any, box: list[float] | None, height: int = 60, width: int = 60) -> Stated:
    encoded = encode_segmentation(segmentation, height, width)
    annotation = {"id": 1, "image_id": 1, "segmentation": segmentation, "bbox": box}
    return Stated.of(annotation, encoded, 400)


def runs_along_rows(height: int, width: int) -> dict[str, Any]:
    """RLE of rows 2 to 11 and columns 20 to 39 whose runs go along the rows."""
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[2:12, 20:40] = True
    borders = np.flatnonzero(np.diff(mask.ravel())) + 1
    return {"size": [height, width], "counts": np.diff(borders, prepend=0, append=mask.size).tolist()}


@pytest.mark.parametrize(("height", "width"), [(60, 60), (30, 70), (90, 45)])
def test_runs_along_the_rows_are_told_in_images_of_any_shape(height: int, width: int) -> None:
    code = runs_along_rows(height, width)
    assert stated(code, [20, 2, 20, 10], height, width).fits == ROWS
    assert stated(code, [0, 0, 3, 3], height, width).fits == ""


def test_a_box_that_fits_swapped_polygons_is_told_from_others() -> None:
    assert stated(SQUARE, [30, 5, 20, 20]).fits == SWAPPED
    assert (stated(SQUARE, [5, 30, 20, 20]).box_far, stated(SQUARE, [5, 30, 20, 20]).far) == (False, "")
    assert (stated(SQUARE, [0, 0, 9, 9]).box_far, stated(SQUARE, [0, 0, 9, 9]).fits) == (True, "")
    assert not stated(SQUARE, None).box


@pytest.mark.parametrize(("right", "swapped", "other", "said"), [
    (4, 5, 0, SWAPPED), (5, 5, 0, "they are not used"), (0, 9, 1, SWAPPED), (0, 8, 2, "either these boxes or"),
    (9, 1, 0, "they are not used"), (3, 0, 4, "either these boxes or"), (3, 0, 0, ""),
])  # fmt: skip
def test_most_boxes_decide_what_is_said(right: int, swapped: int, other: int, said: str) -> None:
    boxes = [[5, 30, 20, 20]] * right + [[30, 5, 20, 20]] * swapped + [[0, 0, 9, 9]] * other
    findings = Findings()
    check_stated(FILE, [stated(SQUARE, box) for box in boxes], findings)
    if said == SWAPPED:
        (problem,) = findings.problems
        assert f"{swapped + other} of {len(boxes)} boxes are far from their masks, and {swapped} fit" in problem.found
        assert problem.cure.startswith("Write x before y") and not findings.warnings
    else:
        assert not findings.problems and all(said in warning for warning in findings.warnings)
        assert len(findings.warnings) == bool(said)
