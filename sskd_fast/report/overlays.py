"""Pictures of instances on validation images, coloured so that one object keeps its colour and number in every column.

Shape letters: n instances of the ground truth, m instances shown, H x W pixels of the image.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from pycocotools import mask as rle

from sskd_fast.data.errors import DataError
from sskd_fast.data.pixels import read_pixels
from sskd_fast.mask_matching import greedy_matches, rle_iou
from sskd_fast.rle import encode_segmentation

Color = tuple[int, int, int]

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
SHORT_SIDE, LONG_SIDE = 192, 320
MOST_NUMBERED = 12
SMALLEST_NUMBERED = 300
SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True)
class Shown:
    """An instance of a picture. number: from 1, the ground-truth object that it covers at IoU >= 0.5, None for none.

    score: None for ground truth.  right: whether its class is that of the object.
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
    """One picture: column is "ground_truth" or a row name; source a data URI; summary and alt say what it shows."""

    column: str
    source: str
    width: int
    height: int
    summary: str
    alt: str
    shown: list[Shown]


@dataclass(frozen=True)
class OverlayRow:
    """The pictures of one validation image; problem is why its pixels could not be read, or empty."""

    file_name: str
    overlays: list[Overlay]
    problem: str


def overlay_rows(
    ground_truth: Mapping[str, Any],
    images_dir: Path,
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    titles: Mapping[str, str],
    limit: int = 6,
    minimum_score: float = 0.5,
) -> list[OverlayRow]:
    """Ground truth and predictions drawn on `limit` images spread evenly over `ground_truth`, one row an image.

    predictions: column name -> COCO results, of which scores under `minimum_score` are left out.
    titles: column name -> title for the alternative texts.

    An image that cannot be read is drawn grey.  Raises ValueError for a mask that does not have the size of its image.
    """
    names = {int(category["id"]): str(category["name"]) for category in ground_truth["categories"]}
    rows = []
    images = ground_truth["images"]
    for image in images[:: max(1, len(images) // limit)][:limit]:
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


def _overlays(
    file_name: str, pixels: NDArray[np.uint8], columns: Mapping[str, list[Shown]], titles: Mapping[str, str]
) -> list[Overlay]:
    """The pictures of one image, all in one palette of 256 colours, which makes them a third of the size."""
    base = enlarged(pixels)
    pictures = [draw(base, shown) for shown in columns.values()]
    palette = _palette(pictures)
    overlays = []
    for (column, shown), picture in zip(columns.items(), pictures, strict=True):
        summary = _summary(column, shown, len(columns["ground_truth"]))
        alt = f"{file_name}, {titles.get(column, column)}: {summary}"
        buffer = io.BytesIO()
        picture.quantize(palette=palette, dither=Image.Dither.NONE).save(buffer, "PNG")
        source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        overlays.append(Overlay(column, source, picture.width, picture.height, summary, alt, shown))
    return overlays


def _palette(pictures: Sequence[Image.Image]) -> Image.Image:
    """A palette image of 256 colours for all the pictures, from every few of their pixels."""
    montage = Image.new("RGB", (96 * len(pictures), 96))
    for position, picture in enumerate(pictures):
        montage.paste(picture.resize((96, 96), Image.Resampling.NEAREST), (96 * position, 0))
    return montage.quantize(256)


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
    """The results, highest score first, each with the free object that it overlaps most, if at IoU >= 0.5."""
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


def enlarged(pixels: NDArray[np.uint8], short_side: int = SHORT_SIDE, long_side: int = LONG_SIDE) -> Image.Image:
    """An image (H, W) or (H, W, 3) as RGB picture, dark ones lit.

    Its long side gets `long_side` pixels, or more if the short one would have fewer than `short_side`.
    """
    top = float(np.percentile(pixels, 99.7))
    if 0 < top < 128:
        pixels = np.clip(pixels * (230.0 / top), 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels).convert("RGB")
    scale = max(long_side / max(image.size), short_side / min(image.size))
    size = round(image.width * scale), round(image.height * scale)
    return image.resize(size, Image.Resampling.BICUBIC)


def draw(picture: Image.Image, shown: Sequence[Shown]) -> Image.Image:
    """The picture with filled masks, contours, and, where they are few, the numbers of the instances."""
    canvas = picture.copy()
    outlines = [_enlarged_mask(instance.mask, picture.size) for instance in shown]
    for instance, (mask, corner) in zip(shown, outlines, strict=True):
        strength = 0.16 if instance.number is None else 0.34
        canvas.paste(instance.color, corner, mask.point(lambda value, s=strength: int(value * s)))
    for instance, (mask, corner) in zip(shown, outlines, strict=True):
        inner = np.asarray(mask.filter(ImageFilter.MinFilter(5)))
        outer = np.asarray(mask.filter(ImageFilter.MaxFilter(3)))
        solid = np.asarray(mask)
        canvas.paste((12, 14, 20), corner, Image.fromarray((outer - solid) // 255 * 150))
        canvas.paste(instance.color, corner, Image.fromarray(solid - inner))
    if len(shown) <= MOST_NUMBERED:
        for instance, (mask, corner) in zip(shown, outlines, strict=True):
            _badge(canvas, mask, corner, instance)
    return canvas


def _enlarged_mask(mask: Mapping[str, Any], size: tuple[int, int]) -> tuple[Image.Image, tuple[int, int]]:
    """A mask at the picture's scale, cut to its surroundings: ("L" image of 0 and 255, its left upper corner)."""
    height, width = mask["size"]
    scale_x, scale_y = size[0] / width, size[1] / height
    left, top, box_width, box_height = rle.toBbox(mask)
    x0, y0 = max(0, int(left * scale_x) - 6), max(0, int(top * scale_y) - 6)
    x1 = min(size[0], int((left + box_width) * scale_x) + 6)
    y1 = min(size[1], int((top + box_height) * scale_y) + 6)
    full = Image.fromarray(np.asarray(rle.decode(mask)) * np.uint8(255))
    source = (x0 / scale_x, y0 / scale_y, min(width, x1 / scale_x), min(height, y1 / scale_y))
    smooth = full.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, box=source)
    return smooth.point(lambda value: 255 if value > 127 else 0), (x0, y0)


def _badge(canvas: Image.Image, mask: Image.Image, corner: tuple[int, int], instance: Shown) -> None:
    """The number of the instance on the pixel of its mask nearest to the mask's centre; none where it would hide it."""
    ys, xs = np.nonzero(np.asarray(mask))
    if len(xs) < SMALLEST_NUMBERED:
        return
    nearest = int(np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2))
    x, y = corner[0] + int(xs[nearest]), corner[1] + int(ys[nearest])
    x, y = min(max(x, 11), canvas.width - 12), min(max(y, 11), canvas.height - 12)
    draw = ImageDraw.Draw(canvas)
    draw.ellipse((x - 10, y - 10, x + 10, y + 10), fill=(12, 14, 20), outline=instance.color, width=2)
    text = "?" if instance.number is None else str(instance.number)
    draw.text((x, y), text, fill=(255, 255, 255), font=ImageFont.load_default(14), anchor="mm")
