"""The unlabelled images of a run, located from its folder and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.layouts import LabelFiles, training_images
from sskd_fast.data.source import ImageCollection
from sskd_fast.data.splits import read_split


def unlabeled_images(run: Path, data: Mapping[str, Any]) -> ImageCollection:
    """The images of splits/unlabeled.txt.

    run: the run folder.  data: the section "data" of its settings, which says where images come from.

    Raises DataError if images are missing, or are not the ones that the run read.
    """
    stretch, format = bool(data.get("stretch", False)), str(data.get("format", "coco"))
    source: ImageCollection
    if data.get("unlabeled"):
        source = ImageFolder(Path(data["unlabeled"]), name="unlabeled", stretch=stretch)
    elif data.get("root"):
        source = training_images(Path(data["root"]), format, stretch=stretch)
    elif data.get("labeled"):
        images, val = (Path(str(data.get(key, ""))) for key in ("images", "val"))
        files = LabelFiles(Path(data["labeled"]), images, val, images)
        source = training_images(files, format, stretch=stretch)
    else:
        source = CocoInstances(run / "data" / "unlabeled.json", run / "data" / "unlabeled", name="unlabeled")
    return source.subset(read_split(run / "splits" / "unlabeled.txt", dataset=source))
