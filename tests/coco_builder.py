"""Builder of small COCO data sets, image by image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from numpy.typing import NDArray
from PIL import Image


class CocoBuilder:
    """A COCO instance data set in a folder, put together image by image; `content` may be edited before `write`."""

    def __init__(self, folder: Path, classes: dict[int, str]) -> None:
        self.images = folder / "images"
        self.images.mkdir(parents=True, exist_ok=True)
        self.file = folder / "instances.json"
        categories = [{"id": category_id, "name": name} for category_id, name in classes.items()]
        self.content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}

    def image(self, pixels: NDArray[Any] | tuple[int, int], *, image_id: int | None = None, **fields: Any) -> int:
        """Adds an image, given its pixels or its (height, width) for one of random pixels; returns its id."""
        image_id = len(self.content["images"]) + 1 if image_id is None else image_id
        if isinstance(pixels, tuple):
            pixels = np.random.default_rng(image_id).integers(0, 256, (*pixels, 3), dtype=np.uint8)
        name = fields.pop("file_name", f"{image_id}.png")
        Image.fromarray(pixels).save(self.images / name)
        record = {"id": image_id, "file_name": name, "height": pixels.shape[0], "width": pixels.shape[1], **fields}
        self.content["images"].append(record)
        return image_id

    def instance(self, image_id: int, segmentation: Any, *, category_id: int = 1, **fields: Any) -> int:
        """Adds an instance, given its segmentation or its mask (H, W) bool; returns the annotation's id."""
        if isinstance(segmentation, np.ndarray):
            segmentation = encoded(segmentation)
        annotation_id = len(self.content["annotations"]) + 1
        record = {"id": annotation_id, "image_id": image_id, "category_id": category_id, "segmentation": segmentation}
        self.content["annotations"].append({**record, "iscrowd": 0, **fields})
        return annotation_id

    def write(self) -> Path:
        """Writes the annotation file; returns its path."""
        self.file.write_text(json.dumps(self.content), encoding="utf-8")
        return self.file


def encoded(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask as compressed RLE with ascii counts."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}
