"""All checks of a data set, its figures, and the settings that a run would derive from it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.doctor import check_dataset, check_folders, check_images, without_known
from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.formats.table import READERS
from sskd_fast.data.inventory import Objects, file_words, folder_words, objects_words
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.layouts import FOLDER_FORMATS, ROOTS
from sskd_fast.data.source import ImageCollection
from sskd_fast.data.splits import group_count
from sskd_fast.pseudo_labels import uncalibrated_warning
from sskd_fast.settings import derived_settings
from sskd_fast.yaml_settings import load_config

# A file or folder that identifies a whole data set, by format.
MARKS = {
    "ade20k": "annotations_instance",
    "cityscapes": "leftImg8bit",
    "coco": "annotations/instances_train2017.json",
    "yolo": "data.yaml",
}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Place:
    """Data to check: labels with the folders of their images, a whole data set, or plain images only.

    format: format of the labels, or of the data set in `root`.  unlabeled: folder of plain images, with or without
    labelled ones.  group_key, confine: see `check_dataset`.
    """

    labeled: Path | None = None
    images: Path | None = None
    val: Path | None = None
    val_images: Path | None = None
    root: Path | None = None
    format: str = "coco"
    unlabeled: Path | None = None
    group_key: str | None = None
    confine: bool = False


@dataclass
class Checked:
    """Findings on a place.

    sets: figures (`set_figures`) of those of "labeled", "val" and "unlabeled" that could be opened.  derived: "zoom",
    "crop" (height, width) and "queries" that a run would derive from the images; empty if there are problems.
    notes: lines on objects per image against the run's limits, and on other contents of the files.
    """

    place: str
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def attempt(self, work: Callable[[], Result]) -> Result | None:
        """The result of `work`; None if it raised DataError, whose problems and warnings are recorded."""
        try:
            return work()
        except DataError as error:
            self.problems += error.problems
            self.warnings += error.warnings
            return None

    def as_dict(self) -> dict[str, Any]:
        """The findings as a dict for JSON."""
        return asdict(self) | {"problems": [asdict(p) | {"file": str(p.file)} for p in self.problems]}


def guessed_format(root: Path) -> list[str]:
    """The formats whose mark (see MARKS) exists below `root`."""
    return [format for format, mark in MARKS.items() if (root / mark).exists()]


def check(place: Place) -> Checked:
    """Checks a data set as a run does before training, and decodes each image."""
    if place.root is not None:
        by_image = place.format in FOLDER_FORMATS
        return _check_folders(place, place.root) if by_image else _check_root(place, place.root)
    if place.labeled is not None and place.images is not None:
        return _check_labels(Checked(str(place.labeled)), place, place.labeled, place.images)
    assert place.unlabeled is not None, "a place names labels or plain images"
    folder, checked = place.unlabeled, Checked(str(place.unlabeled))
    checked.attempt(lambda: check_images(folder))
    return _summed_up(checked, place, None, None)


def _check_folders(place: Place, root: Path) -> Checked:
    checked, kind = Checked(str(root)), FOLDER_FORMATS[place.format]
    train, val = (checked.attempt(functools.partial(kind, root, split)) for split in ("train", "val"))
    if train is not None and val is not None:
        unlabeled, group_key = place.unlabeled, place.group_key
        found = checked.attempt(lambda: check_folders(train, val, unlabeled=unlabeled, group_key=group_key))
        checked.warnings += found or []
    return _summed_up(checked, place, train, val)


def _check_root(place: Place, root: Path) -> Checked:
    checked = Checked(str(root))
    files = checked.attempt(lambda: ROOTS[place.format](root))
    if files is None:
        return checked
    with_val = dataclasses.replace(place, val=files.val, val_images=files.val_images)
    return _check_labels(checked, with_val, files.train, files.train_images)


def _check_labels(checked: Checked, place: Place, labeled: Path, images: Path) -> Checked:
    read, val, val_images = functools.cache(READERS[place.format]), place.val, place.val_images or images
    found = checked.attempt(
        lambda: check_dataset(
            labeled, images, val=val, val_images=val_images, unlabeled=place.unlabeled, group_key=place.group_key,
            read=read, confine=place.confine,
        )
    )  # fmt: skip
    checked.warnings += found or []

    def opened(file: Path, folder: Path, classes: tuple[str, ...]) -> CocoInstances | None:
        return _opened(
            lambda: CocoInstances(read(file, folder, classes), folder, name=str(file), confine=place.confine)
        )

    train = opened(labeled, images, ())
    classes = tuple(train.class_names) if train is not None else ()
    return _summed_up(checked, place, train, None if val is None else opened(val, val_images, classes))


def _opened(work: Callable[[], Result]) -> Result | None:
    """The result of `work`; None if it raises DataError for problems that are already recorded."""
    with contextlib.suppress(DataError):
        return work()
    return None


def _summed_up(checked: Checked, place: Place, labeled: LabeledImages | None, val: LabeledImages | None) -> Checked:
    """Adds the figures of each set, and findings that depend on a run's splits."""
    folder = place.unlabeled
    plain = None if folder is None else _opened(lambda: ImageFolder(folder))
    sets: dict[str, ImageCollection | None] = {"labeled": labeled, "val": val, "unlabeled": plain}
    for name, source in sets.items():
        if source is not None and (figures := _opened(functools.partial(set_figures, source))):
            checked.sets[name] = figures
    if plain is not None:
        checked.notes += folder_words(plain)
    if checked.problems or labeled is None:
        return checked
    if checked.attempt(lambda: group_count(labeled, place.group_key)) == 1:
        checked.warnings.append(uncalibrated_warning(labeled.name or str(labeled.images_dir), place.group_key or ""))
    if plain is not None:
        known = [source for source in (labeled, val) if source is not None]
        checked.attempt(lambda: without_known(plain, known, checked.warnings))
    if not checked.problems:
        objects = _note_derived(checked, labeled, val)
        checked.notes += file_words([s for s in sets.values() if s is not None], objects)
    return checked


def set_figures(source: ImageCollection) -> dict[str, Any]:
    """Figures of a set: number of images, and (height, width) of the smallest and the largest.

    Labelled sets add the numbers of instances, crowd regions, images without an instance, and instances by class.
    Raises DataError for a size or a mask that cannot be read.
    """
    sizes = sorted((source.size(i) for i in range(len(source))), key=lambda size: (size[0] * size[1], size))
    figures: dict[str, Any] = {"images": len(source), "smallest": sizes[0], "largest": sizes[-1]}
    if not isinstance(source, LabeledImages):
        return figures
    names = dict(zip(source.category_ids, source.class_names, strict=True))
    classes: Counter[str] = Counter()
    empty = crowd = 0
    for index in range(len(source)):
        annotations = source.annotations(index)
        single = [names[a["category_id"]] for a in annotations if not a["iscrowd"]]
        classes.update(single)
        empty += not single
        crowd += len(annotations) - len(single)
    counts = {name: classes[name] for name in source.class_names}
    return figures | {"instances": classes.total(), "crowd_regions": crowd, "empty_images": empty, "classes": counts}


def _note_derived(checked: Checked, labeled: LabeledImages, val: LabeledImages | None) -> Objects:
    """Records derived settings and warnings of limits that objects exceed; returns the counts of labelled objects."""
    found = derived_settings(load_config([]), labeled, val)
    limits = found.limits
    checked.derived = {"zoom": found.zoom, "crop": found.views.size, "queries": limits.queries}
    checked.warnings += found.warnings
    checked.notes.append(objects_words(found.objects, limits.detections, limits.queries))
    return found.objects["labelled"]
