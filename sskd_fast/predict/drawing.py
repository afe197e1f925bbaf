"""An image with the instances found in it: masks in the colour of their class, each with its name and score."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sskd_fast.predictor import Prediction
from sskd_fast.report.overlays import COLORS
from sskd_fast.report.pictures import DARK, Color, Patch, enlarged, patch

# Pixels of the long side from which on a picture is made smaller.
LONGEST_SIDE = 1600
_FILL = 0.34
_Box = tuple[float, float, float, float]


def draw(image: Tensor, prediction: Prediction) -> Image.Image:
    """The picture of an image (3, H, W) uint8: large ones made smaller, small and dark ones enlarged and lit."""
    canvas = enlarged(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), LONGEST_SIDE)
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
    """Labels at the masks' upper ends, best score first; one that would cover another is left out."""
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(min(20, max(11, canvas.height // 32)))
    taken: list[_Box] = []
    for place, text, color in zip(patches, texts, colors, strict=True):
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        width, height = right - left + 6, bottom - top + 6
        spot = next((box for box in _spots(place, width, height, canvas.size) if not _meets(box, taken)), None)
        if spot is not None:
            taken.append(spot)
            pen.rectangle(spot, fill=color)
            pen.text((spot[0] + 3 - left, spot[1] + 3 - top), text, fill=DARK, font=font)


def _spots(place: Patch, width: float, height: float, size: tuple[int, int]) -> list[_Box]:
    """Boxes for a label above, below and inside a mask, moved into the picture."""
    rows, columns = np.nonzero(place.solid)
    if not len(rows):
        return []
    top, bottom = place.top + int(rows.min()), place.top + int(rows.max()) + 1
    x = min(max(0.0, place.left + (int(columns.min()) + int(columns.max()) - width) / 2), max(0.0, size[0] - width))
    tops = (top - height - 1, bottom + 1, (top + bottom - height) / 2)
    return [(x, y, x + width, y + height) for y in tops if 0 <= y <= size[1] - height]


def _meets(box: _Box, others: list[_Box]) -> bool:
    return any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)
