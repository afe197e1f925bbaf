"""Titles of the figures by data sets' own evaluations, apart from the evaluations so that a report needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

# Name of the evaluation -> its figures, in percent, that stand in the tables beside COCO's -> their titles.
OFFICIAL_TITLES: Mapping[str, Mapping[str, str]] = {
    "cityscapes": {"ap": "Cityscapes AP", "ap50": "Cityscapes AP50"},
}
