"""Drawings of an image with its instances: masks in the colour of their class, labelled with name and score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sskd_fast.predictor import Prediction
from sskd_fast.report.overlays import COLORS
from sskd_fast.report.pictures import DARK, Color, Patch, enlarged, patch

# Largest long side of a picture in pixels; larger images are reduced.
LONGEST_SIDE = 1600
_FILL = 0.34


def draw(image: Tensor, prediction: Prediction) -> Image.Image:
    """The picture of an image (3, H, W) uint8. Large images are reduced, small ones enlarged, dark ones brightened."""
    canvas = enlarged(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), kept=LONGEST_SIDE)
    patches = [patch(mask, canvas.size) for mask in prediction.rles]
    colors = [COLORS[label % len(COLORS)] for label in prediction.labels]
    worst_first = list(zip(patches, colors, strict=True))[::-1]
    for place, color in worst_first:
        place.paint(canvas, color, place.solid * _FILL)
    for place, color in worst_first:
        place.paint(canvas, DARK, place.shadow * (150 / 255))
        place.paint(canvas, color, place.line)
    texts = [f"{name} {score:.2f}" for name, score in zip(prediction.names, prediction.scores, strict=True)]
    _write_labels(canvas, patches, texts, colors)
    return canvas


def _write_labels(canvas: Image.Image, patches: list[Patch], texts: list[str], colors: list[Color]) -> None:
    """Writes a label at each mask, best score first; skips one that would hide another label or a small mask."""
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_font_size(canvas, patches))
    masks, labels = (np.zeros((canvas.height, canvas.width), dtype=np.bool_) for _ in range(2))
    for place in patches:
        _window(masks, place)[place.solid > 0] = True
    for place, text, color in zip(patches, texts, colors, strict=True):
        left, top, right, bottom = (round(side) for side in pen.textbbox((0, 0), text, font=font))
        width, height = right - left + 6, bottom - top + 6
        for x, y, inside in _spots(place, width, height, canvas.size):
            spot = np.s_[y : y + height, x : x + width]
            if not labels[spot].any() and (inside or not masks[spot].any()):
                labels[spot] = True
                pen.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
                pen.text((x + 3 - left, y + 3 - top), text, fill=DARK, font=font)
                break


def _font_size(canvas: Image.Image, patches: list[Patch]) -> int:
    """The font size in pixels: a third of the median mask's height, readable and at most 1/30 of the picture."""
    heights = [int(np.count_nonzero(place.solid.any(1))) for place in patches]
    return max(11, min(20, canvas.height // 30, int(np.median(heights)) // 3 if heights else 20))


def _window(field: NDArray[np.bool_], place: Patch) -> NDArray[np.bool_]:
    height, width = place.solid.shape
    return field[place.top : place.top + height, place.left : place.left + width]


def _spots(place: Patch, width: int, height: int, size: tuple[int, int]) -> list[tuple[int, int, bool]]:
    """Upper left corners for a label above and below a mask, and inside (True) if the mask has room for several."""
    rows, columns = np.nonzero(place.solid)
    if not len(rows) or width > size[0]:
        return []
    top, bottom = place.top + int(rows.min()), place.top + int(rows.max()) + 1
    x = min(max(0, place.left + (int(columns.min()) + int(columns.max()) - width) // 2), size[0] - width)
    places = [(top - height - 1, False), (bottom + 1, False)]
    places += [((top + bottom - height) // 2, True)] * (len(rows) >= 4 * width * height)
    return [(x, y, inside) for y, inside in places if 0 <= y <= size[1] - height]
