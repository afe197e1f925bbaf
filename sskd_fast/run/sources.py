"""The image sets of a run, built from its configuration: labelled, unlabelled and validation images, and folds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from sskd_fast._env import allow_pixels
from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.derived import Derived
from sskd_fast.data.doctor import without_known
from sskd_fast.data.embedded import write_scenes
from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.inventory import inventory
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.layouts import LabelFiles, open_sets
from sskd_fast.data.pseudo_labeled import unlabeled
from sskd_fast.data.source import ImageCollection
from sskd_fast.data.splits import fold_ids, group_count, kept_split, split_labeled
from sskd_fast.data.views import Views
from sskd_fast.pseudo_labels import uncalibrated_warning
from sskd_fast.settings import Config, check_settings, derived_settings


@dataclass
class Sources:
    """The image sets that the stages read.

    labeled: ground truth for training; every model of the run uses all of it.  folds: a partition of the labelled
    images, by id; a fold model trains on the other folds.  Empty if there is only one image or group.  hidden: the
    unlabelled images with their labels, if they exist, for statistics; used for training only with
    `pseudo_labels.truth`.  views: of crops, with sizes and zoom resolved.  num_queries: for the crop and the data.
    detections: limit for an image, from the data.  inventory: a few lines on the content of the sets.
    """

    labeled: LabeledImages
    folds: list[list[int]]
    unlabeled: ImageCollection
    val: LabeledImages
    hidden: LabeledImages | None
    views: Views
    zoom: float
    num_queries: int
    detections: int
    warnings: list[str]
    inventory: list[str]

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their indices."""
        return self.labeled.class_names

    @cached_property
    def hidden_truth(self) -> dict[str, Any] | None:
        """Annotations of the unlabelled images (a COCO dict), read at first use; None if there are none."""
        return None if self.hidden is None else self.hidden.ground_truth()

    def summary(self, name: str) -> str:
        """One line on the sets and the settings derived from them; name: of the data set."""
        height, width = self.views.size
        crop = f"{height}" if height == width else f"{height} x {width}"
        seen = f"whole images in {crop} px" if self.views.fit else f"crops of {crop} px, zoom {self.zoom:.2f}"
        return (
            f"{name}: {len(self.labeled)} labelled images, {len(self.unlabeled)} unlabelled, {len(self.val)} for "
            f"validation; {len(self.classes)} classes; "
            f"{seen}, {self.num_queries} queries, {self.detections} detections "
            "an image at most"
        )


def target_sources(config: Config, folder: Path) -> Sources:
    """The sets of the three stages; splits are written to `folder`/splits, and read back if they exist.

    Raises ConfigError for conflicting settings, DataError with every problem of the user's files.
    """
    check_settings(config)
    data = config.data
    if data.max_pixels:
        allow_pixels(data.max_pixels)
    if data.own:
        everything, plain, val, hidden, warnings = _own_data(config, folder)
    else:
        everything, plain, val, hidden = _embedded_data(config, folder / "data")
        warnings = []
    if config.pseudo_labels.truth:
        _check_truth(data.unlabeled, hidden, warnings)
    splits = folder / "splits"
    labeled = everything.subset(kept_split(splits / "labeled.txt", everything, lambda: everything.image_ids))
    folds = kept_folds(config, labeled, splits, config.pseudo_labels.folds)
    if not folds:
        warnings.append(uncalibrated_warning(labeled.name or str(labeled.images_dir), data.group_key))
    if data.balance_key:
        labeled.image_field(data.balance_key)
    kept_split(splits / "unlabeled.txt", plain, lambda: plain.image_ids)
    kept_split(splits / "val.txt", val, lambda: val.image_ids)
    derived = derived_settings(config, labeled, val)
    return _sources(derived, labeled, folds, plain, val, hidden, warnings)


def _sources(
    derived: Derived, labeled: LabeledImages, folds: list[list[int]], plain: ImageCollection, val: LabeledImages,
    hidden: LabeledImages | None, warnings: list[str],
) -> Sources:  # fmt: skip
    limits, sets = derived.limits, {"labelled": labeled, "validation": val, "unlabelled": plain}
    lines = inventory(sets, derived.objects, detections=limits.detections, queries=limits.queries)
    return Sources(
        labeled, folds, plain, val, hidden, derived.views, derived.zoom, limits.queries, limits.detections,
        warnings + derived.warnings, lines,
    )  # fmt: skip


def _check_truth(place: str, hidden: LabeledImages | None, warnings: list[str]) -> None:
    """Raises DataError for `pseudo_labels.truth` without hidden labels; adds a warning about its figures."""
    if hidden is None:
        cure = "Hide labels of a labelled set with --labeled-fraction, or set pseudo_labels.truth=false."
        raise DataError([Problem(place, "", "images that never had labels", "hidden ones (pseudo_labels.truth)", cure)])
    warnings.append(
        "pseudo_labels.truth: the hidden labels of the unlabelled images are trained on. Adapted, distilled and "
        "refined models show what perfect labels would give; they are no result."
    )


def kept_folds(config: Config, labeled: LabeledImages, splits: Path, count: int) -> list[list[int]]:
    """Ids of the labelled images in `count` folds, or fewer if there are fewer images or groups; none if there is one.

    The folds are drawn once and kept in `splits`, one file each.
    """
    data, key = config.data, config.data.group_key or None
    count = min(count, group_count(labeled, key))
    if count < 2:
        return []

    @cache
    def drawn() -> list[list[int]]:
        return fold_ids(labeled, count, seed=config.seed, group_key=key, stratify_key=data.stratify_key or None)

    files = [splits / f"fold_{number}_of_{count}.txt" for number in range(1, count + 1)]
    return [kept_split(file, labeled, partial(lambda n: drawn()[n], n)) for n, file in enumerate(files)]


def _embedded_data(config: Config, folder: Path) -> tuple[LabeledImages, ImageCollection, LabeledImages, LabeledImages]:
    data, seed = config.data, config.seed
    counts = {"labeled": data.embedded_labeled, "unlabeled": data.embedded_unlabeled, "val": data.embedded_val}
    sets = {}
    for offset, (name, count) in enumerate(counts.items()):
        path = write_scenes(folder, name, "target", count, seed=1000 * seed + offset)
        sets[name] = CocoInstances(path, folder / name, name=name)
    return sets["labeled"], unlabeled(sets["unlabeled"]), sets["val"], sets["unlabeled"]


def pretraining_sources(config: Config, folder: Path) -> Sources:
    """The generic source domain, on which the embedded foundation weights are trained."""
    train = CocoInstances(
        write_scenes(folder, "source", "source", config.data.embedded_source, 7), folder / "source", name="source"
    )
    val_path = write_scenes(folder, "source_val", "source", config.data.embedded_source_val, 8)
    val = CocoInstances(val_path, folder / "source_val", name="source_val")
    return _sources(derived_settings(config, train, val, zoom=1.0), train, [], unlabeled(train), val, None, [])


def _own_data(
    config: Config, folder: Path
) -> tuple[LabeledImages, ImageCollection, LabeledImages, LabeledImages | None, list[str]]:
    data = config.data
    place = (
        Path(data.root)
        if data.root
        else LabelFiles(Path(data.labeled), Path(data.images), Path(data.val), Path(data.val_images or data.images))
    )
    sets = open_sets(
        place,
        data.format,
        unlabeled=Path(data.unlabeled) if data.unlabeled else None,
        group_key=data.group_key or None,
        stretch=data.stretch,
        cache_bytes=data.cache_mb << 20,
        confine=data.confine,
    )
    full, val, warnings = sets.train, sets.val, sets.warnings
    full.decoded = val.decoded = decoded = Path(data.decoded) if data.decoded else None
    if data.unlabeled:
        plain: ImageCollection = ImageFolder(
            Path(data.unlabeled), name="unlabeled", stretch=data.stretch, cache_bytes=data.cache_mb << 20
        )
        plain.decoded = decoded
        return full, without_known(plain, (full, val), warnings), val, None, warnings
    labeled_ids = kept_split(folder / "splits" / "labeled.txt", full, lambda: _fraction(config, full))
    known = set(labeled_ids)
    hidden = full.subset(image_id for image_id in full.image_ids if image_id not in known)
    if not len(hidden):
        found, expected = f"all {len(full)} images are labelled", "some whose labels are hidden"
        problem = Problem(full.name, "", found, expected, "Lower data.labeled_fraction, or give a folder of others.")
        raise DataError([problem])
    return full.subset(labeled_ids), unlabeled(hidden), val, hidden, warnings


def _fraction(config: Config, full: LabeledImages) -> list[int]:
    data = config.data
    return split_labeled(
        full,
        data.labeled_fraction,
        seed=config.seed,
        group_key=data.group_key or None,
        stratify_key=data.stratify_key or None,
    )[0]
