"""Units of coordinates are recognised from the extent of polygons, even of a few, and despite outliers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sskd_fast.data.errors import Findings
from sskd_fast.data.lost_masks import Extents, check_losses

FILE = Path("labels.json")


def scattered(count: int, seed: int = 0) -> NDArray[np.float64]:
    """Boxes (count, 4) with sides of a tenth, all over the image, as shares of it."""
    corner = np.random.default_rng(seed).uniform(0, 0.9, (count, 2))
    return np.hstack([corner, corner + 0.1])


def said(boxes: NDArray[np.float64], side: int) -> Findings:
    """The messages on polygons with these boxes, in images of side x side pixels."""
    findings = Findings()
    check_losses(FILE, [Extents(9, (x, y, right, low), (side, side)) for x, y, right, low in boxes], findings)
    return findings


@pytest.mark.parametrize("count", [6, 12, 40])
def test_percent_are_told_by_few_polygons(count: int) -> None:
    boxes = 100 * scattered(count)
    reaches = np.sort(boxes[:, 2:].max(1) / 640)
    number = int(0.95 * (count - 1)) + 1
    assert said(boxes, 640).warnings == [
        f"{FILE}: {number} of {count} polygons lie in the upper left {reaches[number - 1]:.0%} of their images. If the "
        "coordinates are percent of the image, convert them."
    ]


def test_a_right_object_does_not_hide_a_wrong_unit() -> None:
    boxes = np.vstack([100 * scattered(39), [[300, 300, 600, 600]]])
    (warning,) = said(boxes, 640).warnings
    assert "38 of 40 polygons lie in the upper left" in warning and "percent of the image, convert them" in warning


def test_shares_are_refused_beside_right_objects() -> None:
    boxes = np.vstack([scattered(12), [[300, 300, 600, 600]]])
    (problem,) = said(boxes, 640).problems
    assert problem.found == (
        "12 of 13 masks have no pixel or lie mostly outside of their images: coordinates from 0 to 1"
    )


def test_a_lone_mask_can_be_lost() -> None:
    (problem,) = said(scattered(1), 640).problems
    assert problem.found == "1 of 1 masks have no pixel or lie mostly outside of their images: coordinates from 0 to 1"
    findings = said(np.vstack([scattered(1), [[300, 300, 600, 600]]]), 640)
    assert not findings.problems and "1 masks lie mostly outside of their images" in findings.warnings[0]


def test_sound_sets_are_left_alone_wherever_their_objects_lie() -> None:
    for seed in range(20):
        assert said(640 * scattered(8, seed), 640) == Findings()
    corner = np.tile([[20.0, 20.0, 200.0, 200.0]], (4, 1))
    assert said(corner, 640) == Findings() and said(100 * scattered(30), 640).problems == []


def test_lost_masks_of_an_unknown_cause_are_counted_with_what_to_check() -> None:
    """Empty RLE masks have no coordinates; polygons left and right of their images fit no unit and no order."""
    found = "3 of 3 masks have no pixel or lie mostly outside of their images"
    findings = Findings()
    assert check_losses(FILE, [Extents(0, None, (640, 640))] * 3, findings)
    (problem,) = findings.problems
    assert (problem.found, problem.expected) == (found, "less than 25%")
    assert problem.cure == "Check that the masks were exported, at the size of the images."
    for boxes in ([[-300, -300, -200, -200]] * 3, [[-300, 9, -200, 99], [-300, 9, -200, 99], [3000, 9, 3200, 99]]):
        (problem,) = said(np.array(boxes, dtype=np.float64), 640).problems
        assert problem.found == found and problem.cure == (
            "Use the images that were annotated, and check the unit and the order of the coordinates."
        )
