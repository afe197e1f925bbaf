"""Data sets as they are published: from a format and a path to checked training and validation sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sskd_fast.data.ade20k import Ade20k
from sskd_fast.data.cityscapes import Cityscapes
from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.doctor import check_dataset, check_folders
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.source import DEFAULT_CACHE_BYTES

FOLDER_FORMATS = {"cityscapes": Cityscapes, "ade20k": Ade20k}


@dataclass(frozen=True)
class CocoFiles:
    """COCO instances files and the folders of their images."""

    train: Path
    train_images: Path
    val: Path
    val_images: Path

    @classmethod
    def below(cls, root: Path) -> CocoFiles:
        """The files of COCO 2017 as its archives unpack."""
        annotations = root / "annotations"
        return cls(
            annotations / "instances_train2017.json",
            root / "train2017",
            annotations / "instances_val2017.json",
            root / "val2017",
        )


@dataclass(frozen=True)
class LabeledSets:
    """Training and validation images of a data set, and the warnings of its checks."""

    train: LabeledImages
    val: LabeledImages
    warnings: list[str]


def open_sets(
    place: CocoFiles | Path,
    format: str,
    *,
    unlabeled: Path | None = None,
    group_key: str | None = None,
    stretch: bool = False,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> LabeledSets:
    """Opens and checks a data set.

    place: its root folder; for the format "coco" also the files themselves.  format: "coco", "cityscapes" or "ade20k".
    unlabeled: a folder of plain images that is checked too.  group_key: see `check_dataset`.  stretch, cache_bytes: see
    ImageCollection.  Raises DataError with every problem found.
    """
    kind = FOLDER_FORMATS.get(format)
    if kind is not None and isinstance(place, Path):
        train = kind(place, "train", stretch=stretch, cache_bytes=cache_bytes)
        val = kind(place, "val", stretch=stretch, cache_bytes=cache_bytes)
        return LabeledSets(train, val, check_folders(train, val, unlabeled=unlabeled, group_key=group_key))
    files = place if isinstance(place, CocoFiles) else CocoFiles.below(place)
    warnings = check_dataset(
        files.train, files.train_images, val=files.val, val_images=files.val_images,
        unlabeled=unlabeled, group_key=group_key,
    )  # fmt: skip
    full = training_images(files, format, stretch=stretch, cache_bytes=cache_bytes)
    validation = CocoInstances(
        files.val, files.val_images, class_names=full.class_names, name="val", stretch=stretch, cache_bytes=cache_bytes
    )
    return LabeledSets(full, validation, warnings)


def training_images(
    place: CocoFiles | Path, format: str, *, stretch: bool = False, cache_bytes: int = DEFAULT_CACHE_BYTES
) -> LabeledImages:
    """The training images of a data set without the checks of `open_sets`, whose arguments these are.

    Raises DataError if they cannot be opened.
    """
    kind = FOLDER_FORMATS.get(format)
    if kind is not None and isinstance(place, Path):
        return kind(place, "train", stretch=stretch, cache_bytes=cache_bytes)
    files = place if isinstance(place, CocoFiles) else CocoFiles.below(place)
    return CocoInstances(files.train, files.train_images, name="labeled", stretch=stretch, cache_bytes=cache_bytes)
