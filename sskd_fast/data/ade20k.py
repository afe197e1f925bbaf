"""ADE20K instances in the folders of the scene parsing benchmark: images/ and annotations_instance/."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.id_maps import IdMapImages, layers_of, list_images, read_id_map, values_of
from sskd_fast.data.masks import MaskLayers
from sskd_fast.data.source import DEFAULT_CACHE_BYTES, ImageRecord
from sskd_fast.rle import MaskError

# fmt: off
CLASSES = (
    "bed", "windowpane", "cabinet", "person", "door", "table", "curtain", "chair", "car", "painting", "sofa", "shelf",
    "mirror", "armchair", "seat", "fence", "desk", "wardrobe", "lamp", "bathtub", "railing", "cushion", "box",
    "column", "signboard", "chest of drawers", "counter", "sink", "fireplace", "refrigerator", "stairs", "case",
    "pool table", "pillow", "screen door", "bookcase", "coffee table", "toilet", "flower", "book", "bench",
    "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "arcade machine", "bus",
    "towel", "light", "truck", "chandelier", "awning", "streetlight", "booth", "television receiver", "airplane",
    "apparel", "pole", "bannister", "ottoman", "bottle", "van", "ship", "fountain", "washer", "plaything", "stool",
    "barrel", "basket", "bag", "minibike", "oven", "ball", "food", "step", "trade name", "microwave", "pot", "animal",
    "bicycle", "dishwasher", "screen", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan",
    "fan", "plate", "monitor", "bulletin board", "radiator", "glass", "clock", "flag",
)
# fmt: on
SPLITS = {"train": "training", "val": "validation"}
_CATEGORY_FILES = ("imgCatIds.json", "instanceInfo100_train.txt")
_CURE = (
    "Let data.root be the folder that holds images/{training,validation} and annotations_instance/{training,validation}"
    ", as the benchmark's archives unpack."
)


class Ade20k(IdMapImages):
    """The instances of a split ("train" or "val"): a hundred thing classes with category ids 1 to 100.

    Annotation pictures hold the class in the red channel and the instance number in the green channel.  Class names
    come from imgCatIds.json or instanceInfo100_train.txt in `root` if one exists.  Raises DataError if the folders have
    no image.
    """

    def __init__(
        self, root: Path, split: str, *, name: str = "", stretch: bool = False, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        images, labels = root / "images" / SPLITS[split], root / "annotations_instance" / SPLITS[split]
        paths = list_images(images, "*.jpg", _CURE)
        names = read_categories(root)
        super().__init__(
            [ImageRecord(number, path.name, images, numbered=True) for number, path in enumerate(paths, 1)],
            images,
            {number: labels / f"{path.stem}.png" for number, path in enumerate(paths, 1)},
            labels,
            "*.png",
            class_names=names,
            category_ids=range(1, len(names) + 1),
            name=name or f"ADE20K {split}",
            stretch=stretch,
            cache_bytes=cache_bytes,
        )

    def read_labels(self, path: Path) -> MaskLayers:
        """The instances of an annotation picture.  Raises MaskError for an instance of an unknown class."""
        picture = read_id_map(path)
        if picture.ndim != 3 or picture.shape[2] < 3 or picture.dtype != np.uint8:
            channels = picture.shape[2] if picture.ndim > 2 else 1
            raise MaskError(
                f"a picture of {channels} channels of {picture.dtype}",
                "red (class), green (instance) and blue of 8 bits",
                "Use the pictures of annotations_instance, not those of annotations.",
            )
        codes = picture[..., 0].astype(np.uint16) << 8 | picture[..., 1]
        values = values_of(codes)
        values = values[values & 255 > 0]
        numbers, count = np.unique(values & 255, return_counts=True)
        for number in numbers[count > 1]:
            # If there are several classes, the first pixel's counts, as in the benchmark's own conversion to COCO.
            of_instance = picture[..., 1] == number
            codes[of_instance] = codes[of_instance][0]
            values = values[(values & 255 != number) | (values == codes[of_instance][0])]
        classes = values >> 8
        if len(classes) and not (1 <= classes.min() <= classes.max() <= len(self.class_names)):
            outside = next(int(c) for c in classes if not 1 <= c <= len(self.class_names))
            found, expected = f"an instance of class {outside}", f"classes 1 to {len(self.class_names)}"
            raise MaskError(found, expected, "Use the pictures of annotations_instance, with a hundred classes.")
        return layers_of(codes, values, classes - 1, np.zeros(len(values), dtype=np.bool_))


def read_categories(root: Path) -> list[str]:
    """The class names of the benchmark, from its category list if `root` has one.

    Raises DataError unless the list has the classes 1, 2, ...
    """
    path = next((root / name for name in _CATEGORY_FILES if (root / name).is_file()), None)
    if path is None:
        return list(CLASSES)
    text = path.read_text(encoding="utf-8")
    try:
        names = _json_categories(json.loads(text)) if path.suffix == ".json" else _listed_categories(text)
    except (ValueError, KeyError, TypeError):
        names = {}
    if not names or sorted(names) != list(range(1, len(names) + 1)):
        cure = "Restore the benchmark's file, or remove it: its names are built in."
        raise DataError([Problem(path, "", f"{len(names)} numbered classes", "classes 1, 2, ... with names", cure)])
    return [names[number] for number in sorted(names)]


def _json_categories(content: dict[str, Any]) -> dict[int, str]:
    return {int(category["id"]): str(category["name"]) for category in content["categories"]}


def _listed_categories(text: str) -> dict[int, str]:
    """Class names by number from tab-separated lines (number, name, instances, pixels) below a header."""
    rows = [re.split(r"\s*\t+\s*", line.strip()) for line in text.splitlines()[1:] if line.strip()]
    return {int(row[0]): row[1] for row in rows}
