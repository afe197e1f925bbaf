"""The image sets of a run, assembled from its configuration: labelled, held-out, unlabelled and validation images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sskd_fast.config import Config, DataConfig
from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.doctor import check_dataset, same_content
from sskd_fast.data.embedded import SIZE, write_scenes
from sskd_fast.data.errors import DataError, Problem, named
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.pseudo_labeled import unlabeled
from sskd_fast.data.source import ImageCollection
from sskd_fast.data.splits import hold_out, read_split, split_labeled, write_split
from sskd_fast.data.views import Views

OBJECT_PIXELS = 24.0


@dataclass
class Sources:
    """What the stages read.

    labeled: ground truth for training; holdout: labelled images that are never trained on (thresholds, AP while
    training). hidden_truth: annotations of the unlabelled images where they exist, for statistics alone. views: how
    crops are drawn, sizes and zoom resolved; num_queries: for the crop and the data.
    """

    labeled: CocoInstances
    holdout: CocoInstances
    unlabeled: ImageCollection
    val: CocoInstances
    hidden_truth: dict[str, Any] | None
    views: Views
    zoom: float
    num_queries: int
    warnings: list[str]

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their indices."""
        return self.labeled.class_names


def target_sources(config: Config, folder: Path) -> Sources:
    """The sets of the three stages; splits are written to `folder`/splits and read back where they exist.

    Raises DataError with every problem of the user's files.
    """
    data = config.data
    if data.labeled:
        everything, plain, val, hidden, warnings = _own_data(config, folder)
    else:
        everything, plain, val, hidden = _embedded_data(config, folder / "data")
        warnings = []
    split = folder / "splits" / "holdout.txt"
    kept = folder / "splits" / "labeled.txt"
    if not (split.exists() and kept.exists()):
        ids = everything.image_ids
        train_ids, held_ids = hold_out(
            everything, ids, data.holdout_fraction, seed=config.seed, group_key=data.group_key or None
        )
        write_split(kept, train_ids, source=everything.name)
        write_split(split, held_ids, source=everything.name)
    labeled, holdout = everything.subset(read_split(kept)), everything.subset(read_split(split))
    if data.balance_key:
        labeled.image_field(data.balance_key)
    write_once(folder / "splits" / "unlabeled.txt", lambda p: write_split(p, plain.image_ids, source=plain.name))
    write_once(folder / "splits" / "val.txt", lambda p: write_split(p, val.image_ids, source=val.name))
    zoom = data.zoom or natural_zoom(everything)
    views = resolve_views(config, everything, zoom)
    queries = config.num_queries or natural_queries(everything, views, zoom)
    return Sources(labeled, holdout, plain, val, hidden, views, zoom, queries, warnings)


def write_once(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` unless the file exists."""
    if not path.exists():
        write(path)


def _embedded_data(
    config: Config, folder: Path
) -> tuple[CocoInstances, ImageCollection, CocoInstances, dict[str, Any]]:
    data, seed = config.data, config.seed
    counts = {"labeled": data.embedded_labeled, "unlabeled": data.embedded_unlabeled, "val": data.embedded_val}
    sets = {}
    for offset, (name, count) in enumerate(counts.items()):
        path = write_scenes(folder, name, "target", count, seed=1000 * seed + offset)
        sets[name] = CocoInstances(path, folder / name, name=name)
    return sets["labeled"], unlabeled(sets["unlabeled"]), sets["val"], sets["unlabeled"].ground_truth()


def pretraining_sources(config: Config, folder: Path) -> Sources:
    """The generic source domain, on which the embedded foundation weights are made."""
    train = CocoInstances(
        write_scenes(folder, "source", "source", config.data.embedded_source, 7), folder / "source", name="source"
    )
    val_path = write_scenes(folder, "source_val", "source", config.data.embedded_source_val, 8)
    val = CocoInstances(val_path, folder / "source_val", name="source_val")
    views = resolve_views(config, train, 1.0)
    held = val.subset(val.image_ids[:100])
    return Sources(
        train,
        held,
        unlabeled(train),
        val,
        None,
        views,
        1.0,
        config.num_queries or natural_queries(train, views, 1.0),
        [],
    )


def _own_data(
    config: Config, folder: Path
) -> tuple[CocoInstances, ImageCollection, CocoInstances, dict[str, Any] | None, list[str]]:
    data = config.data
    annotations, images = Path(data.labeled), Path(data.images)
    val_images = Path(data.val_images or data.images)
    warnings = check_dataset(
        annotations, images, val=Path(data.val) if data.val else None, val_images=val_images,
        unlabeled=Path(data.unlabeled) if data.unlabeled else None, group_key=data.group_key or None,
    )  # fmt: skip
    full = CocoInstances(annotations, images, name="labeled", stretch=data.stretch)
    val = CocoInstances(Path(data.val), val_images, class_names=full.class_names, name="val", stretch=data.stretch)
    if data.unlabeled:
        plain: ImageCollection = ImageFolder(Path(data.unlabeled), name="unlabeled", stretch=data.stretch)
        return full, *_without_labeled(plain, full, val, warnings), None, warnings
    labeled_ids, hidden_ids = _fraction(data, full, config.seed, folder)
    hidden = full.subset(hidden_ids)
    return full.subset(labeled_ids), unlabeled(hidden), val, hidden.ground_truth(), warnings


def _without_labeled(
    plain: ImageCollection, full: CocoInstances, val: CocoInstances, warnings: list[str]
) -> tuple[ImageCollection, CocoInstances]:
    """The unlabelled images less those that are labelled or validation images too (by content), and the latter."""
    known = [record.path for source in (full, val) for record in source.records]
    twins = same_content(known, [record.path for record in plain.records])
    if twins:
        warnings.append(
            f"{plain.images_dir}: {len(twins)} of {len(plain)} images are labelled or validation images too "
            f"({named([path.name for path in twins])}): they are left out of the unlabelled set."
        )
    kept = plain.subset(record.image_id for record in plain.records if record.path not in twins)
    if not len(kept):
        cure = "Give a folder with other images, or hide labels with --labeled-fraction."
        found = f"all {len(plain)} images are labelled or validation images"
        raise DataError([Problem(plain.images_dir, "", found, "images without labels", cure)])
    return kept, val


def _fraction(data: DataConfig, full: CocoInstances, seed: int, folder: Path) -> tuple[list[int], list[int]]:
    """The labelled fraction, drawn once and kept in splits/fraction_*.txt."""
    paths = folder / "splits" / "fraction_labeled.txt", folder / "splits" / "fraction_unlabeled.txt"
    if not all(path.exists() for path in paths):
        drawn = split_labeled(
            full, data.labeled_fraction, seed=seed,
            group_key=data.group_key or None, stratify_key=data.stratify_key or None,
        )  # fmt: skip
        for path, ids in zip(paths, drawn, strict=True):
            write_split(path, ids, source=data.labeled)
    return read_split(paths[0]), read_split(paths[1])


def instance_areas(source: CocoInstances, limit: int = 100) -> list[float]:
    """Mask areas in pixels of the first `limit` images' instances."""
    sample = source.subset(source.image_ids[:limit])
    return [float(a["area"]) for a in sample.ground_truth()["annotations"] if not a.get("iscrowd", 0)]


def natural_zoom(source: CocoInstances) -> float:
    """The factor that brings the median instance to at most 24 pixels across: what small nets and crops can take in."""
    areas = instance_areas(source)
    return min(1.0, OBJECT_PIXELS / math.sqrt(float(np.median(areas)))) if areas else 1.0


def resolve_views(config: Config, source: ImageCollection, zoom: float) -> Views:
    """The views at this zoom; a crop size of 0 becomes the images' median shorter side, 64 to 128, a multiple of 32."""
    v = config.views
    size = v.size
    if not size:
        sides = [min(source.size(i)) * zoom for i in range(min(len(source), 200))]
        size = int(np.clip(round(float(np.median(sides)) / 32) * 32, SIZE, 128))
    return Views(
        size=(size, size), scale=(v.scale[0] * zoom, v.scale[1] * zoom), hflip=v.hflip, vflip=v.vflip, rot90=v.rot90,
        weak_color=v.weak_color, strong_color=v.strong_color, grayscale=v.grayscale, blur=v.blur, blur_p=v.blur_p,
        noise=v.noise, min_pixels=v.min_pixels,
    )  # fmt: skip


def natural_queries(source: CocoInstances, views: Views, zoom: float) -> int:
    """Queries for a crop: twice the 95th percentile of instances that fall into one, between 16 and 100."""
    truth = source.subset(source.image_ids[:200]).ground_truth()
    counts: dict[int, int] = {}
    for annotation in truth["annotations"]:
        counts[annotation["image_id"]] = counts.get(annotation["image_id"], 0) + 1
    crop = views.size[0] * views.size[1]
    shares = [min(1.0, crop / (r["height"] * r["width"] * zoom**2)) for r in truth["images"]]
    expected = [counts.get(r["id"], 0) * s for r, s in zip(truth["images"], shares, strict=True)]
    return int(np.clip(math.ceil(2 * float(np.percentile(expected, 95))), 16, 100))
