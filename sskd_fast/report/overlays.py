"""Pictures of instances on validation images. An object keeps its colour and number in every column.

Shape letters: n instances of the ground truth, m instances shown, H x W pixels of the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sskd_fast.data.errors import DataError
from sskd_fast.data.pixels import read_pixels
from sskd_fast.mask_matching import greedy_matches, rle_iou
from sskd_fast.report.pictures import DARK, Color, badge, drawn_once, enlarged, patch
from sskd_fast.rle import encode_segmentation

COLORS: tuple[Color, ...] = (
    (255, 176, 0),
    (0, 205, 175),
    (255, 92, 122),
    (96, 165, 255),
    (160, 220, 60),
    (218, 112, 255),
    (255, 136, 51),
    (64, 224, 255),
    (255, 160, 205),
    (212, 200, 90),
)
UNMATCHED: Color = (235, 235, 235)
MOST_NUMBERED = 12
SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True)
class Shown:
    """An instance in a picture.

    number: the ground-truth object that it covers at IoU >= 0.5, counted from 1; None if it covers none.
    score: None for ground truth.  right: True if its class is that of the object.
    """

    mask: Mapping[str, Any]
    name: str
    score: float | None
    number: int | None
    right: bool

    @property
    def color(self) -> Color:
        """The colour of the object it covers."""
        return UNMATCHED if self.number is None else COLORS[(self.number - 1) % len(COLORS)]


@dataclass(frozen=True)
class Overlay:
    """One picture. column: "ground_truth" or a row name; source: a data URI; summary, alt: its content in words."""

    column: str
    source: str
    width: int
    height: int
    summary: str
    alt: str
    shown: list[Shown]


@dataclass(frozen=True)
class OverlayRow:
    """The pictures of one validation image; problem: the reason why it could not be read, or ""."""

    file_name: str
    overlays: list[Overlay]
    problem: str


def overlay_rows(
    ground_truth: Mapping[str, Any],
    images_dir: Path,
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    titles: Mapping[str, str],
    image_ids: Sequence[int] | None = None,
    limit: int = 6,
    minimum_score: float = 0.5,
) -> list[OverlayRow]:
    """Ground truth and predictions drawn on images of `ground_truth`, one row for each image.

    predictions: column name -> COCO results; scores under `minimum_score` are left out.
    titles: column name -> title for the alternative texts.
    image_ids: the images, in this order; if None, `limit` images spread evenly over all.

    An image that cannot be read is drawn grey.  Raises ValueError if a mask does not have the size of its image.
    """
    names = {int(category["id"]): str(category["name"]) for category in ground_truth["categories"]}
    rows = []
    for image in _chosen(ground_truth["images"], image_ids, limit):
        size = int(image["height"]), int(image["width"])
        try:
            pixels, problem = read_pixels(images_dir / image["file_name"], size), ""
        except DataError as error:
            pixels, problem = np.full(size, 128, dtype=np.uint8), str(error)
        truth = _ground_truth_shown(ground_truth, int(image["id"]), size, names)
        columns = {"ground_truth": truth}
        for column, results in predictions.items():
            found = [r for r in results if r["image_id"] == image["id"] and r["score"] >= minimum_score]
            columns[column] = results_shown(found, truth, size, names)
        rows.append(
            OverlayRow(str(image["file_name"]), _overlays(image["file_name"], pixels, columns, titles), problem)
        )
    return rows


def _chosen(
    images: Sequence[Mapping[str, Any]], image_ids: Sequence[int] | None, limit: int
) -> Sequence[Mapping[str, Any]]:
    if image_ids is None:
        return images[:: max(1, len(images) // limit)][:limit]
    by_id = {int(image["id"]): image for image in images}
    return [by_id[image_id] for image_id in image_ids]


def _overlays(
    file_name: str, pixels: NDArray[np.uint8], columns: Mapping[str, list[Shown]], titles: Mapping[str, str]
) -> list[Overlay]:
    base = enlarged(pixels)
    overlays = []
    for column, shown in columns.items():
        summary = _summary(column, shown, len(columns["ground_truth"]))
        alt = f"{file_name}, {titles.get(column, column)}: {summary}"
        source = drawn_once(base, shown, partial(draw, base, shown))
        overlays.append(Overlay(column, source, base.width, base.height, summary, alt, shown))
    return overlays


def _ground_truth_shown(
    ground_truth: Mapping[str, Any], image_id: int, size: tuple[int, int], names: Mapping[int, str]
) -> list[Shown]:
    annotations = [a for a in ground_truth["annotations"] if a["image_id"] == image_id and not a.get("iscrowd", 0)]
    return [
        Shown(encode_segmentation(a["segmentation"], *size), names[int(a["category_id"])], None, number, True)
        for number, a in enumerate(annotations, start=1)
    ]


def results_shown(
    results: Sequence[Mapping[str, Any]], truth: Sequence[Shown], size: tuple[int, int], names: Mapping[int, str]
) -> list[Shown]:
    """The results, highest score first, each matched to the unmatched object that it overlaps most, at IoU >= 0.5."""
    results = sorted(results, key=lambda result: -float(result["score"]))
    masks = [encode_segmentation(result["segmentation"], *size) for result in results]
    shown = []
    matches = greedy_matches(rle_iou(masks, [t.mask for t in truth]), SAME_OBJECT_IOU)
    for result, mask, match in zip(results, masks, matches, strict=True):
        name = names.get(int(result["category_id"]), f"category {result['category_id']}")
        number, right = (None, False) if match is None else (truth[match].number, truth[match].name == name)
        shown.append(Shown(mask, name, float(result["score"]), number, right))
    return shown


def _summary(column: str, shown: Sequence[Shown], objects: int) -> str:
    if column == "ground_truth":
        counts = Counter(instance.name for instance in shown)
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "no object"
    matched = [instance for instance in shown if instance.number is not None]
    wrong = sum(not instance.right for instance in matched)
    parts = [f"{len(matched)} of {objects} found"]
    parts += [f"{wrong} of wrong class"] if wrong else []
    parts += [f"{len(shown) - len(matched)} extra"] if len(shown) > len(matched) else []
    return ", ".join(parts)


def draw(picture: Image.Image, shown: Sequence[Shown]) -> Image.Image:
    """The picture with filled masks, contours and, if there are few instances, their numbers."""
    canvas = picture.copy()
    patches = [patch(instance.mask, picture.size) for instance in shown]
    for instance, place in zip(shown, patches, strict=True):
        place.paint(canvas, instance.color, place.solid * (0.16 if instance.number is None else 0.34))
    for instance, place in zip(shown, patches, strict=True):
        place.paint(canvas, DARK, place.shadow * (150 / 255))
        place.paint(canvas, instance.color, place.line)
    if len(shown) <= MOST_NUMBERED:
        for instance, place in zip(shown, patches, strict=True):
            badge(canvas, place, "?" if instance.number is None else str(instance.number), instance.color)
    return canvas
