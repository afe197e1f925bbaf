"""A small data set in every format: four training and two validation images, holes, parts, an image turned by EXIF."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask

from sskd_fast.data.formats.labelme import write_labelme
from sskd_fast.data.formats.yolo import write_yolo
from tests.coco_builder import encoded
from tests.format_files import Mask, box, brush, cvat_mask, picture, ring, task, turned, write_cvat_file, write_tasks

CLASSES = ("cell", "zebra")


def instances(split: str) -> dict[str, Any]:
    """The COCO instances dict of a split, "train" or "val"; one image of each has no object."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names = [f"{split}/a.jpg", f"{split}/ß.png", f"{split}/deep/ß.png", f"{split}/empty.png"]
    for number, name in enumerate(sorted(names if split == "train" else names[2:]), 1):
        images.append({"id": number, "file_name": name, "height": 48, "width": 64})
        if name.endswith("empty.png"):
            continue
        for category, mask in ((1, ring(shift=number)), (2, ring(shift=30)), (1, box(44, number, 48, 9))):
            segmentation = {"segmentation": encoded(mask), "category_id": category, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": number, **segmentation})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_images(folder: Path) -> Path:
    """The images of both splits below a folder; a.jpg is stored turned."""
    for number, record in enumerate([*instances("train")["images"], *instances("val")["images"]]):
        path = folder / record["file_name"]
        if path.name == "a.jpg":
            turned(path)
        else:
            picture(path, seed=number)
    return folder


def by_image(content: dict[str, Any]) -> list[tuple[str, list[tuple[str, Mask]]]]:
    """(file name, [(class, mask)]) of every image."""
    return [
        (
            image["file_name"],
            [
                (CLASSES[a["category_id"] - 1], coco_mask.decode(a["segmentation"]).astype(np.bool_))
                for a in content["annotations"]
                if a["image_id"] == image["id"]
            ],
        )
        for image in content["images"]
    ]


def _coco(folder: Path, split: str) -> Path:
    path = folder / f"{split}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(instances(split)), encoding="utf-8")
    return path


def _labelme(folder: Path, split: str) -> Path:
    write_labelme(instances(split), folder / split)
    return folder / split


def _cvat(folder: Path, split: str) -> Path:
    elements = {
        name: [cvat_mask(label, mask) for label, mask in labeled] for name, labeled in by_image(instances(split))
    }
    return write_cvat_file(folder / f"{split}.xml", elements, CLASSES)


def _label_studio(folder: Path, split: str) -> Path:
    tasks = [
        task(number, f"/data/local-files/?d={name}", [brush(*pair, id=f"r{n}") for n, pair in enumerate(labeled)])
        for number, (name, labeled) in enumerate(by_image(instances(split)))
    ]
    return write_tasks(folder / f"{split}.json", tasks)


# Formats with labels in files: name -> writer of a split, which returns what --labeled or --val names.
FILES: dict[str, Callable[[Path, str], Path]] = {
    "coco": _coco,
    "labelme": _labelme,
    "cvat": _cvat,
    "label_studio": _label_studio,
}


def write_yolo_root(root: Path) -> Path:
    """The data set as YOLO has it: data.yaml, images and labels."""
    write_images(root / "images")
    for split in ("train", "val"):
        write_yolo(instances(split), root)
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: {0: cell, 1: zebra}\n")
    return root
