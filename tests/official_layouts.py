"""Small data sets in the folders and formats in which Cityscapes, ADE20K and COCO are published, drawn by tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from numpy.typing import NDArray
from PIL import Image

Codes = NDArray[np.int64]
# What a drawn Cityscapes picture holds: (value, top, left, bottom, right) in 1/16 of the height and 1/32 of the width.
ROAD, EGO_VEHICLE, SKY = 7, 1, 23
STREET = (
    (26000, 6, 2, 12, 10), (26001, 7, 8, 11, 14), (24000, 4, 16, 12, 18), (25000, 4, 20, 9, 22), (33000, 8, 20, 12, 23),
    (26, 6, 24, 9, 30), (29000, 9, 24, 12, 30),
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A picture's pixel values as its annotations state them: (H, W) instance codes."""

    image: Path
    labels: Path
    codes: Codes


def _paint(codes: Codes, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture in which every code has a colour of its own, with noise."""
    values, inverse = np.unique(codes, return_inverse=True)
    colors = np.random.default_rng(5).integers(30, 220, (1 << 16, 3))[values]
    noise = rng.integers(-20, 21, (*codes.shape, 3))
    return np.clip(colors[inverse.reshape(codes.shape)] + noise, 0, 255).astype(np.uint8)


def street_codes(size: tuple[int, int], rng: np.random.Generator, objects: tuple[Any, ...] = STREET) -> Codes:
    """Instance ids of a street: sky, road, the ego vehicle, and boxes of things moved by up to 1/32 of the width."""
    height, width = size
    codes = np.full(size, SKY, dtype=np.int64)
    codes[height // 2 :] = ROAD
    codes[height * 15 // 16 :] = EGO_VEHICLE
    for value, top, left, bottom, right in objects:
        shift = int(rng.integers(0, max(width // 32, 1)))
        rows = slice(top * height // 16, bottom * height // 16)
        codes[rows, left * width // 32 + shift : right * width // 32 + shift] = value
    return codes


def write_cityscapes(
    root: Path,
    cities: dict[str, dict[str, int]] | None = None,
    *,
    size: tuple[int, int] = (64, 128),
    objects: tuple[Any, ...] = STREET,
) -> dict[str, list[Scene]]:
    """leftImg8bit and gtFine of {"train": {city: images}, "val": ...}; returns the scenes of each split, in order."""
    cities = cities or {"train": {"aachen": 6, "bochum": 6}, "val": {"frankfurt": 3}}
    rng, scenes = np.random.default_rng(0), {}
    for split, counts in cities.items():
        scenes[split] = []
        for city, count in sorted(counts.items()):
            pictures, labels = root / "leftImg8bit" / split / city, root / "gtFine" / split / city
            pictures.mkdir(parents=True)
            labels.mkdir(parents=True)
            for number in range(count):
                stem, codes = f"{city}_{number:06d}_000019", street_codes(size, rng, objects)
                scene = Scene(pictures / f"{stem}_leftImg8bit.png", labels / f"{stem}_gtFine_instanceIds.png", codes)
                Image.fromarray(_paint(codes, rng)).save(scene.image)
                Image.fromarray(codes.astype(np.uint16)).save(scene.labels)
                plain = np.where(codes < 1000, codes, codes // 1000).astype(np.uint8)
                Image.fromarray(plain).save(labels / f"{stem}_gtFine_labelIds.png")
                (labels / f"{stem}_gtFine_polygons.json").write_text("{}")
                scenes[split].append(scene)
    return scenes


def write_ade20k(root: Path, train: int = 12, val: int = 3, classes: tuple[int, ...] = (1, 4, 8, 100)) -> list[Scene]:
    """images and annotations_instance with JPEG images of several sizes; returns the scenes, training ones first.

    A scene's codes are 256 times the class plus the instance, 0 where there is none.
    """
    rng, scenes = np.random.default_rng(1), []
    for split, prefix, count in (("training", "ADE_train", train), ("validation", "ADE_val", val)):
        pictures, labels = root / "images" / split, root / "annotations_instance" / split
        pictures.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number in range(1, count + 1):
            height, width = (96, 128) if number % 2 else (120, 80)
            codes = np.zeros((height, width), dtype=np.int64)
            for instance, label in enumerate(classes, 1):
                top, left = int(rng.integers(0, height - 30)), int(rng.integers(0, width - 30))
                codes[top : top + 30, left : left + 26] = 256 * label + instance
            stem = f"{prefix}_{number:08d}"
            scene = Scene(pictures / f"{stem}.jpg", labels / f"{stem}.png", codes)
            Image.fromarray(_paint(codes, rng)).save(scene.image, quality=95)
            channels = np.stack([codes >> 8, codes & 255, np.zeros_like(codes)], axis=-1)
            Image.fromarray(channels.astype(np.uint8)).save(scene.labels)
            scenes.append(scene)
    return scenes


def write_coco(root: Path, train: int = 12, val: int = 3) -> None:
    """annotations/instances_{train,val}2017.json with polygons and a crowd, train2017 and val2017; ids with gaps."""
    rng = np.random.default_rng(2)
    for split, count in (("train2017", train), ("val2017", val)):
        categories = [{"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}]
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        (root / split).mkdir(parents=True)
        for number in range(1, count + 1):
            image_id = 1000 * (split == "val2017") + 3 * number
            name = f"{image_id:012d}.jpg"
            codes = np.zeros((96, 128), dtype=np.int64)
            record = {"id": image_id, "file_name": name, "height": 96, "width": 128}
            for category, top, left in ((1, 10, 10 + number), (13, 50, 70 - number), (1, 60, 5)):
                box = [left, top, left + 30, top, left + 30, top + 24, left, top + 24]
                codes[top : top + 24, left : left + 30] = category
                content["annotations"].append(
                    {"id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": category,
                     "segmentation": [box], "area": 720.0, "bbox": [left, top, 30, 24], "iscrowd": 0}
                )  # fmt: skip
            crowd = np.zeros((96, 128), dtype=np.uint8, order="F")
            crowd[:6] = 1
            counts = coco_mask.encode(crowd)["counts"].decode("ascii")
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": 1, "area": 768.0,
                 "segmentation": {"size": [96, 128], "counts": counts}, "bbox": [0, 0, 128, 6], "iscrowd": 1}
            )  # fmt: skip
            Image.fromarray(_paint(codes, rng)).save(root / split / name, quality=95)
            content["images"].append(record)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
