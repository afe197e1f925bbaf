"""Label files of annotation tools, written from masks as the tools themselves write them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from numpy.typing import NDArray
from PIL import Image

from sskd_fast.data.errors import DataError

Mask = NDArray[np.bool_]


def ring(height: int = 48, width: int = 64, shift: int = 0) -> Mask:
    """A square with a hole, and a second part apart from it."""
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[4:24, 5 + shift : 30 + shift] = True
    mask[10:16, 12 + shift : 20 + shift] = False
    mask[30:40, 40:50] = True
    return mask


def picture(path: Path, height: int = 48, width: int = 64, seed: int = 0, **options: Any) -> Path:
    """An image file of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def labelme_shape(label: str, kind: str, points: Sequence[Sequence[float]], **fields: Any) -> dict[str, Any]:
    """A shape as LabelMe saves it."""
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **fields}


def labelme_mask(label: str, mask: Mask, **fields: Any) -> dict[str, Any]:
    """A shape of type mask: a picture of the box of the mask, whose corners are pixels."""
    rows, columns = np.nonzero(mask)
    top, left, bottom, right = (int(v) for v in (rows.min(), columns.min(), rows.max(), columns.max()))
    file = io.BytesIO()
    Image.fromarray(mask[top : bottom + 1, left : right + 1]).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode("ascii")
    return labelme_shape(label, "mask", [[left, top], [right, bottom]], mask=text, **fields)


def write_labelme_file(path: Path, image: str, shapes: Sequence[Any], size: tuple[int, int] = (48, 64)) -> Path:
    """A LabelMe file of an image of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None}
    path.write_text(json.dumps({**content, "imageHeight": size[0], "imageWidth": size[1]}), encoding="utf-8")
    return path


def cvat_mask(label: str, mask: Mask, group: int | None = None) -> str:
    """A mask element: runs along the rows of its box, from outside on."""
    rows, columns = np.nonzero(mask)
    top, left, height, width = rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1
    box = mask[top : top + height, left : left + width].ravel()
    borders = [0, *(np.flatnonzero(np.diff(box)) + 1), len(box)]
    runs = [0] * int(box[0]) + [int(run) for run in np.diff(borders)]
    joined = f' group_id="{group}"' if group is not None else ""
    numbers = f'left="{left}" top="{top}" width="{width}" height="{height}" z_order="0"'
    return f'<mask label={quoteattr(label)} source="manual" rle="{", ".join(map(str, runs))}" {numbers}{joined}></mask>'


def write_cvat_file(
    path: Path, images: Mapping[str, Sequence[str]], labels: Sequence[str], size: tuple[int, int] = (48, 64)
) -> Path:
    """A file of "CVAT for images 1.1": image name -> elements."""
    listed = "".join(f"<label><name>{label}</name><type>any</type></label>" for label in labels)
    text = f"<annotations><version>1.1</version><meta><task><labels>{listed}</labels></task></meta>"
    for number, (name, elements) in enumerate(images.items()):
        opening = f'<image id="{number}" name={quoteattr(name)} width="{size[1]}" height="{size[0]}">'
        text += f"{opening}{''.join(elements)}</image>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{text}</annotations>', encoding="utf-8")
    return path


def brush_code(mask: Mask) -> list[int]:
    """Label Studio's run-length code of a mask, with runs of 16 bits for repeated values alone."""
    values = np.repeat(mask.ravel(), 4)
    borders = [0, *(np.flatnonzero(np.diff(values)) + 1), len(values)]
    bits = f"{len(values):032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    for start, end in pairwise(borders):
        bits += f"1{3:02b}{end - start - 1:016b}{255 * int(values[start]):08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def region(kind: str, label: str, value: Mapping[str, Any], size: tuple[int, int] = (48, 64), **fields: Any) -> Any:
    """A region of a Label Studio annotation of an image of (height, width)."""
    shared = {"id": f"{kind}{label}", "type": kind, "from_name": "label", "to_name": "image", "image_rotation": 0}
    value = {**value, kind: [label]}
    return {**shared, "original_height": size[0], "original_width": size[1], "value": value, **fields}


def brush(label: str, mask: Mask, **fields: Any) -> Any:
    """A region painted with the brush."""
    return region("brushlabels", label, {"format": "rle", "rle": brush_code(mask)}, mask.shape, **fields)


def task(number: int, image: str, regions: Sequence[Any], **fields: Any) -> dict[str, Any]:
    """A task of Label Studio with one annotation."""
    made = [{"id": 100 + number, "was_cancelled": False, "ground_truth": False, "result": list(regions)}]
    return {"id": number, "data": {"image": image}, "annotations": made, **fields}


def write_tasks(path: Path, tasks: Sequence[Any]) -> Path:
    """Label Studio's JSON export."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


def masks(content: dict[str, Any], file_name: str | None = None) -> list[tuple[str, Mask]]:
    """(class, mask) of the annotations, of one image or all."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    chosen = {image["id"] for image in content["images"] if file_name in (None, image["file_name"])}
    return [
        (names[a["category_id"]], coco_mask.decode(a["segmentation"]).astype(bool))
        for a in content["annotations"]
        if a["image_id"] in chosen
    ]


def box(top: int, left: int, bottom: int, right: int) -> Mask:
    mask = np.zeros((48, 64), dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def assert_masks(found: list[tuple[str, Mask]], expected: list[tuple[str, Mask]]) -> None:
    assert [label for label, _ in found] == [label for label, _ in expected]
    for (_, mask), (_, wanted) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mask, wanted)


def problems(read: Callable[..., Any], *arguments: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(*arguments)
    assert all(problem.found and problem.expected and problem.cure for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


def turned(path: Path) -> Path:
    """An image of 64 x 48 stored pixels (height x width) that is shown as 48 x 64."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(path, 64, 48, exif=exif)
