"""Zoom, crop, queries and detections of a run, taken from its labelled images if no setting says them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sskd_fast.data.embedded import SIZE
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.source import ImageCollection
from sskd_fast.data.views import Views, ViewsConfig

OBJECT_PIXELS = 24.0
# Learning and matching take time with the queries, merging with the square of the detections.
MOST_QUERIES, MOST_DETECTIONS = 300, 2000


def instance_areas(source: LabeledImages, limit: int = 100) -> list[float]:
    """Mask areas in pixels of the first `limit` images' instances."""
    sample = source.subset(source.image_ids[:limit])
    return [float(a["area"]) for a in sample.ground_truth()["annotations"] if not a.get("iscrowd", 0)]


def natural_zoom(source: LabeledImages) -> float:
    """The factor that brings the median instance to at most 24 pixels across: what small nets and crops can take in."""
    areas = instance_areas(source)
    return min(1.0, OBJECT_PIXELS / math.sqrt(float(np.median(areas)))) if areas else 1.0


def resolve_views(config: ViewsConfig, source: ImageCollection, zoom: float) -> Views:
    """The views at this zoom; a crop size of 0 becomes the images' median shorter side, 64 to 128, a multiple of 32."""
    size = config.sides
    if not min(size):
        sides = [min(source.size(i)) * zoom for i in range(min(len(source), 200))]
        side = int(np.clip(round(float(np.median(sides)) / 32) * 32, SIZE, 128))
        size = side, side
    return config.resolved(size, zoom)


def natural_queries(in_crop: float) -> int:
    """Queries for a crop: twice the instances of a crowded one (`crowded_crop`), between 16 and 300."""
    return int(np.clip(math.ceil(2 * in_crop), 16, MOST_QUERIES))


def crowded_crop(source: LabeledImages, views: Views, zoom: float) -> float:
    """The 95th percentile of instances that fall into a crop, over the first 200 images."""
    truth = source.subset(source.image_ids[:200]).ground_truth()
    counts: dict[int, int] = {}
    for annotation in truth["annotations"]:
        counts[annotation["image_id"]] = counts.get(annotation["image_id"], 0) + 1
    crop = views.size[0] * views.size[1]
    shares = [1.0 if views.fit else min(1.0, crop / (r["height"] * r["width"] * zoom**2)) for r in truth["images"]]
    expected = [counts.get(r["id"], 0) * s for r, s in zip(truth["images"], shares, strict=True)]
    return float(np.percentile(expected, 95))


def natural_detections(counts: Sequence[int]) -> int:
    """Detections an image, from the objects of each: half more than the most, in fifties, between 100 and 2000."""
    return min(_roomy_detections(counts), MOST_DETECTIONS)


def _roomy_detections(counts: Sequence[int]) -> int:
    return max(50 * math.ceil(1.5 * max(counts, default=0) / 50), 100)


@dataclass(frozen=True)
class Limits:
    """The most that a run can find: queries of a crop, detections and pseudo-labels of an image."""

    queries: int
    detections: int
    labels: int

    @classmethod
    def natural(
        cls, counts: Sequence[int], in_crop: float, *, queries: int, detections: int, labels: Callable[[int], int]
    ) -> Limits:
        """Those of the settings (0: none), else from the objects of each image and of a crowded crop.

        labels: from the detections of an image to the pseudo-labels of one.
        """
        found = detections or natural_detections(counts)
        return cls(queries or natural_queries(in_crop), found, labels(found))

    def warnings(self, counts: Sequence[int], in_crop: float) -> list[str]:
        """The limits that objects exceed, with the flags that raise them.

        counts: objects of each labelled image.  in_crop: objects of a crowded crop, see `crowded_crop`.
        """
        most, median = max(counts, default=0), float(np.median(counts)) if counts else 0.0
        there = f"labelled images show {median:g} objects in the median and {most} at most"
        wanted = _roomy_detections(counts)
        tiles = ", or cut the images into tiles: merging takes time with its square" if wanted > MOST_DETECTIONS else ""
        found = []
        if most > self.detections:
            found.append(
                f"{there}, and the run finds {self.detections} of an image: the others count as missed. Add "
                f"--max-detections {wanted}{tiles}"
            )
        if most > self.labels:
            found.append(
                f"{there}, and {self.labels} become pseudo-labels: the others are taught as background. Add "
                f"pseudo_labels.max_per_image={wanted}"
            )
        if in_crop > self.queries:
            found.append(
                f"about {in_crop:.0f} objects fall into a crowded crop, and it has {self.queries} queries, each for "
                f"one object. Add --num-queries {math.ceil(2 * in_crop)}, or take a smaller --crop"
            )
        return [f"{text}." for text in found]
