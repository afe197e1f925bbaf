"""Opening of data sets: from a format and a path to checked training and validation sets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sskd_fast.data.ade20k import Ade20k
from sskd_fast.data.cityscapes import Cityscapes
from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.doctor import check_dataset, check_folders
from sskd_fast.data.formats.table import READERS
from sskd_fast.data.formats.yolo import yolo_splits
from sskd_fast.data.id_maps import IdMapImages
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.source import DEFAULT_CACHE_BYTES

# Format -> class that opens the images of a split ("train" or "val") in a root folder.
FOLDER_FORMATS: dict[str, Callable[..., IdMapImages]] = {"cityscapes": Cityscapes, "ade20k": Ade20k}


@dataclass(frozen=True)
class LabelFiles:
    """Labels (a file or a folder of files) and the folders of their images."""

    train: Path
    train_images: Path
    val: Path
    val_images: Path


def coco_files(root: Path) -> LabelFiles:
    """The files of COCO 2017 as unpacked from its archives."""
    annotations = root / "annotations"
    return LabelFiles(
        annotations / "instances_train2017.json",
        root / "train2017",
        annotations / "instances_val2017.json",
        root / "val2017",
    )


def yolo_files(root: Path) -> LabelFiles:
    """The sets of the data.yaml in a folder.  Raises DataError if they are missing."""
    train, val = yolo_splits(root)
    return LabelFiles(train, root, val, root)


# Formats of label files that say what a root folder holds.
ROOTS = {"coco": coco_files, "yolo": yolo_files}
FORMATS = (*FOLDER_FORMATS, *READERS)


def misfit(format: str, root: bool, labeled: bool) -> str | None:
    """An error message if a format does not fit the settings for its files; None if it does."""
    if format not in FORMATS:
        return f"data.format: found {format!r}, expected one of {', '.join(FORMATS)}"
    by_root, by_files = format in FOLDER_FORMATS or format in ROOTS, format in READERS
    embedded = format == "coco" and not (root or labeled)
    if embedded or (root and by_root) or (labeled and by_files):
        return None
    needs = "--root (data.root): the folder that holds the data set" if by_root else "--labeled, --images and --val"
    return f"--format {format} needs {needs}"


@dataclass(frozen=True)
class LabeledSets:
    """Training and validation images of a data set, and the warnings of its checks."""

    train: LabeledImages
    val: LabeledImages
    warnings: list[str]


def open_sets(
    place: LabelFiles | Path,
    format: str,
    *,
    unlabeled: Path | None = None,
    group_key: str | None = None,
    stretch: bool = False,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    confine: bool = False,
) -> LabeledSets:
    """Opens and checks a data set.

    place: its root folder (formats of FOLDER_FORMATS or ROOTS) or its label files (formats of READERS).  format: one of
    FORMATS.  unlabeled: a folder of plain images to check too.  group_key, confine: see `check_dataset`.
    stretch, cache_bytes: see ImageCollection.  Raises DataError with every problem found.
    """
    kind = FOLDER_FORMATS.get(format)
    if kind is not None and isinstance(place, Path):
        train = kind(place, "train", stretch=stretch, cache_bytes=cache_bytes)
        val = kind(place, "val", stretch=stretch, cache_bytes=cache_bytes)
        return LabeledSets(train, val, check_folders(train, val, unlabeled=unlabeled, group_key=group_key))
    files = place if isinstance(place, LabelFiles) else ROOTS[format](place)
    read = functools.cache(READERS[format])
    warnings = check_dataset(
        files.train, files.train_images, val=files.val, val_images=files.val_images,
        unlabeled=unlabeled, group_key=group_key, read=read, confine=confine,
    )  # fmt: skip
    content = read(files.train, files.train_images, ())
    full = CocoInstances(
        content, files.train_images, name="labeled", stretch=stretch, cache_bytes=cache_bytes, confine=confine,
        numbered=format != "coco",
    )  # fmt: skip
    classes = tuple(full.class_names)
    content = read(files.val, files.val_images, classes)
    validation = CocoInstances(
        content,
        files.val_images,
        class_names=classes,
        name="val",
        stretch=stretch,
        cache_bytes=cache_bytes,
        confine=confine,
        numbered=format != "coco",
    )
    return LabeledSets(full, validation, warnings)


def training_images(
    place: LabelFiles | Path, format: str, *, stretch: bool = False, cache_bytes: int = DEFAULT_CACHE_BYTES
) -> LabeledImages:
    """The training images of a data set without the checks of `open_sets`; arguments as there.

    Raises DataError if they cannot be opened.
    """
    kind = FOLDER_FORMATS.get(format)
    if kind is not None and isinstance(place, Path):
        return kind(place, "train", stretch=stretch, cache_bytes=cache_bytes)
    files = place if isinstance(place, LabelFiles) else ROOTS[format](place)
    content = READERS[format](files.train, files.train_images, ())
    return CocoInstances(
        content, files.train_images, name="labeled", stretch=stretch, cache_bytes=cache_bytes, numbered=format != "coco"
    )
