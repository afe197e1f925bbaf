"""Pictures of a teacher's predictions on unlabelled images: labels solid, unsure ones hatched, refused ones dashed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sskd_fast.data.errors import DataError
from sskd_fast.data.source import ImageCollection
from sskd_fast.report.label_choices import Choice, Fate
from sskd_fast.report.pictures import DARK, Color, Patch, badge, drawn_once, enlarged, patch
from sskd_fast.rle import encode_segmentation

COLORS: dict[Fate, Color] = {"kept": (0, 205, 175), "unsure": (255, 176, 0), "refused": (255, 92, 122)}
MOST_REFUSED = 6
_HATCH = 10
_DASH = 9.0


@dataclass(frozen=True)
class LabelPicture:
    """One teacher's predictions on an image. source: a data URI; shown: predictions in the order of their numbers."""

    teacher: str
    source: str
    width: int
    height: int
    shown: list[Choice]


@dataclass(frozen=True)
class LabelRow:
    """The pictures of one unlabelled image; problem: the reason why it could not be read, or ""."""

    file_name: str
    pictures: list[LabelPicture]
    problem: str


def label_rows(images: ImageCollection, choices: Mapping[str, Sequence[Choice]], *, limit: int = 6) -> list[LabelRow]:
    """A picture for each teacher on `limit` images, spread evenly over those that have a label.

    choices: teacher -> the fates of its predictions.  Only the refused predictions with the highest scores are drawn.
    Doubled ones are not drawn, since they cover labels.  An image that cannot be read is drawn grey.

    Raises MaskError, a ValueError, if a mask does not have the size of its image.
    """
    by_teacher = {teacher: _by_image(own) for teacher, own in choices.items()}
    labeled = {int(c.result["image_id"]) for own in choices.values() for c in own if c.fate == "kept"}
    indices = [index for index, image_id in enumerate(images.image_ids) if image_id in labeled]
    rows = []
    for index in indices[:: max(1, len(indices) // limit)][:limit]:
        record, pixels, problem = images.records[index], np.full((192, 320), 128, dtype=np.uint8), ""
        try:
            pixels = images.pixels(index)
        except DataError as error:
            problem = str(error)
        pictures = [
            _picture(teacher, pixels, _shown(own.get(record.image_id, [])), drawn=not problem)
            for teacher, own in by_teacher.items()
        ]
        rows.append(LabelRow(record.file_name, pictures, problem))
    return rows


def _by_image(choices: Sequence[Choice]) -> dict[int, list[Choice]]:
    groups: dict[int, list[Choice]] = {}
    for choice in choices:
        groups.setdefault(int(choice.result["image_id"]), []).append(choice)
    return groups


def _shown(choices: Sequence[Choice]) -> list[Choice]:
    """Kept, then unsure predictions, then the best of the refused; each group by falling score."""
    ordered = sorted(choices, key=lambda choice: -choice.score)
    kept, unsure, refused = ([c for c in ordered if c.fate == fate] for fate in ("kept", "unsure", "refused"))
    return [*kept, *unsure, *refused[:MOST_REFUSED]]


def _picture(teacher: str, pixels: NDArray[np.uint8], shown: list[Choice], *, drawn: bool) -> LabelPicture:
    base = enlarged(pixels)
    masks = [_mask(choice, pixels) for choice in shown] if drawn else []
    fates = [choice.fate for choice in shown] if drawn else []
    source = drawn_once(base, (masks, fates), partial(_draw, base, masks, fates))
    return LabelPicture(teacher, source, base.width, base.height, shown)


def _draw(base: Image.Image, masks: Sequence[Mapping[str, Any]], fates: Sequence[Fate]) -> Image.Image:
    canvas = base.copy()
    places = [*zip(fates, [patch(mask, canvas.size) for mask in masks], strict=True)]
    for fate, place in places[::-1]:  # labels last, on top
        place.paint(canvas, DARK, _pattern(place, fate, place.shadow) * 0.6)
        place.paint(canvas, COLORS[fate], _fill(place, fate))
        place.paint(canvas, COLORS[fate], _pattern(place, fate, place.line))
    for number, (fate, place) in enumerate(places, 1):
        if fate == "kept":
            badge(canvas, place, str(number), COLORS["kept"])
    return canvas


def _mask(choice: Choice, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    return encode_segmentation(choice.result["segmentation"], pixels.shape[0], pixels.shape[1])


def _fill(place: Patch, fate: Fate) -> NDArray[np.floating[Any]]:
    """Coverage of the inside of a mask: even for labels, hatched for unsure regions, empty for the refused."""
    if fate == "kept":
        return place.solid * 0.3
    if fate == "refused":
        return place.solid * 0.0
    rows, columns = np.indices(place.solid.shape)
    return place.solid * ((rows + columns + place.left + place.top) % _HATCH < 2) * 0.8


def _pattern(place: Patch, fate: Fate, line: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The line around a mask. For refused predictions, it is cut into dashes of equal angle about the mask's centre."""
    if fate != "refused" or not line.any():
        return line
    rows, columns = np.nonzero(line)
    dashes = max(6, round(np.count_nonzero(place.line) / (4 * _DASH)))
    angle = np.arctan2(rows - rows.mean(), columns - columns.mean()) / (2 * np.pi) + 0.5
    dashed = line.copy()
    dashed[rows, columns] *= (angle * dashes % 1 < 0.55).astype(np.uint8)
    return dashed
