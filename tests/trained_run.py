"""A run on data whose preprocessing matters, short enough for every test session: what commands work on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from sskd_fast.run.__main__ import main

# Objects of 48 pixels, so that the zoom is one half, on dim 16-bit images that only a stretch makes visible.
SIDE, OBJECT = 160, 48
SETTINGS = (
    "--preset", "smoke", "--max-steps", "6", "data.stretch=true", "predict.overlap=24", "data.name=plates",
    "origins.data.licence=CC-BY-4.0", "origins.data.source=drawn by a test", "predict.score_floor=0.01",
)  # fmt: skip


def write_plates(folder: Path, count: int, seed: int, *, labels: Path | None = None) -> None:
    """Dim images of bright squares and discs, as 16-bit PNG, and their COCO instances file if `labels` names one."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for number in range(1, count + 1):
        picture = rng.normal(900, 40, (SIDE, SIDE))
        for _ in range(2):
            mask, category = _object(rng)
            picture[mask] += 500
            code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "iscrowd": 0,
                    "segmentation": {"size": [SIDE, SIDE], "counts": code["counts"].decode()},
                    "area": int(mask.sum()),
                    "bbox": coco_mask.toBbox(code).tolist(),
                }
            )
        name = f"plate {number}.png"
        Image.fromarray(picture.clip(0, 65535).astype(np.uint16)).save(folder / name)
        images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
    if labels is not None:
        categories = [{"id": 3, "name": "square"}, {"id": 7, "name": "disc"}]
        labels.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def _object(rng: np.random.Generator) -> tuple[np.ndarray, int]:
    top, left = rng.integers(0, SIDE - OBJECT, 2)
    y, x = np.mgrid[:SIDE, :SIDE]
    if rng.random() < 0.5:
        return (y >= top) & (y < top + OBJECT) & (x >= left) & (x < left + OBJECT), 3
    middle = OBJECT / 2
    return (y - top - middle) ** 2 + (x - left - middle) ** 2 < middle**2, 7


def train_on_plates(place: Path) -> Path:
    """Writes the data to `place` and runs all stages on them; returns the run's folder."""
    write_plates(place / "train", 12, 0, labels=place / "train.json")
    write_plates(place / "val", 6, 1, labels=place / "val.json")
    write_plates(place / "plain", 6, 2)
    data = [
        "--labeled", str(place / "train.json"), "--images", str(place / "train"), "--val", str(place / "val.json"),
        "--val-images", str(place / "val"), "--unlabeled", str(place / "plain"), "--output", str(place / "run"),
    ]  # fmt: skip
    assert main([*data, *SETTINGS]) == 0
    return place / "run"
