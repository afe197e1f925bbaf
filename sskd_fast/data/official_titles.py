"""Titles of the figures of official evaluations, in a module of their own so that reports need no torch."""

from __future__ import annotations

from collections.abc import Mapping

# Name of the evaluation -> its figures in percent that tables show beside COCO's -> their titles.
OFFICIAL_TITLES: Mapping[str, Mapping[str, str]] = {
    "cityscapes": {"ap": "Cityscapes AP", "ap50": "Cityscapes AP50"},
}
