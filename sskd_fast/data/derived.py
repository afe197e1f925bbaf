"""Zoom, crop, queries and detections of a run, derived from its images if not set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sskd_fast.data.embedded import SIZE
from sskd_fast.data.inventory import Objects, count_objects
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.source import ImageCollection
from sskd_fast.data.views import Views, ViewsConfig

OBJECT_PIXELS = 24.0
# The cost of training and matching grows with the queries, that of merging with the square of the detections.
MOST_QUERIES, MOST_DETECTIONS = 300, 2000


def natural_zoom(objects: Objects) -> float:
    """The zoom that brings the median object to at most 24 pixels across, which suits small networks and crops."""
    return min(1.0, OBJECT_PIXELS / math.sqrt(float(np.median(objects.areas)))) if objects.areas else 1.0


def resolve_views(config: ViewsConfig, source: ImageCollection, zoom: float) -> Views:
    """The views at this zoom.

    A crop size of 0 becomes the median shorter side of the images, from 64 to 128 and a multiple of 32.
    """
    size = config.sides
    if not min(size):
        sides = [min(source.size(i)) * zoom for i in range(len(source))]
        side = int(np.clip(round(float(np.median(sides)) / 32) * 32, SIZE, 128))
        size = side, side
    return config.resolved(size, zoom)


def crop_counts(source: LabeledImages, objects: Objects, views: Views, zoom: float) -> list[float]:
    """Expected objects in a crop for each image with objects: its number times the crop's share of its area."""
    crop = math.prod(views.size)
    shares = (1.0 if views.fit else crop / (math.prod(source.size(i)) * zoom**2) for i in range(len(source)))
    return [count * min(1.0, share) for count, share in zip(objects.counts, shares, strict=True) if count]


def natural_queries(in_crop: Sequence[float]) -> int:
    """Queries for these numbers of objects in a crop: twice those of a crowded crop (`_crowded`), from 16 to 300."""
    return int(np.clip(math.ceil(2 * _crowded(in_crop)), 16, MOST_QUERIES))


def _roomy_queries(in_crop: Sequence[float]) -> int:
    return math.ceil(max(2 * _crowded(in_crop), max(in_crop, default=0.0)))


def _crowded(in_crop: Sequence[float]) -> float:
    """The 95th percentile; 0 without crops."""
    return float(np.percentile(in_crop, 95)) if in_crop else 0.0


def natural_detections(counts: Sequence[int]) -> int:
    """Detections per image: 1.5 times the most objects on an image, in steps of fifty, from 100 to 2000."""
    return min(_roomy_detections(counts), MOST_DETECTIONS)


def _roomy_detections(counts: Sequence[int]) -> int:
    return max(50 * math.ceil(1.5 * max(counts, default=0) / 50), 100)


def detections_warnings(objects: Mapping[str, Objects], detections: int) -> list[str]:
    """A warning, with the cure, for each set with more objects on an image than detections kept.

    objects: by kind of image, such as "labelled".
    """
    wanted = _roomy_detections([found.most for found in objects.values()])
    tiles = ", or cut the images into tiles: merging takes time with its square" if wanted > MOST_DETECTIONS else ""
    return [
        f"{_shown(name, found)}, and {detections} detections of an image are kept: the other objects count as missed. "
        f"Add --max-detections {wanted}{tiles}."
        for name, found in objects.items()
        if found.most > detections
    ]


def _shown(name: str, objects: Objects) -> str:
    return f"{name} images show {objects.median:g} objects in the median and {objects.most} at most"


@dataclass(frozen=True)
class Limits:
    """Limits of a run: queries per crop, detections and pseudo-labels per image."""

    queries: int
    detections: int
    labels: int

    @classmethod
    def natural(
        cls,
        objects: Mapping[str, Objects],
        in_crop: Mapping[str, Sequence[float]],
        *,
        queries: int,
        detections: int,
        labels: Callable[[int], int],
    ) -> Limits:
        """The limits from the settings; those set to 0 are derived from the objects in images and labelled crops.

        labels: maps the limit of detections to the limit of pseudo-labels.
        """
        found = detections or natural_detections([of_set.most for of_set in objects.values()])
        return cls(queries or natural_queries(in_crop["labelled"]), found, labels(found))

    def warnings(self, objects: Mapping[str, Objects], in_crop: Mapping[str, Sequence[float]]) -> list[str]:
        """Warnings for limits that objects exceed, with the flags that raise them.

        objects: by kind of image, "labelled" among them.  in_crop: `crop_counts` of the same sets.
        """
        found, labeled = detections_warnings(objects, self.detections), objects["labelled"]
        if labeled.most > self.labels:
            found.append(
                f"{_shown('labelled', labeled)}, and {self.labels} become pseudo-labels: the others are taught as "
                f"background. Add pseudo_labels.max_per_image={_roomy_detections(labeled.counts)}."
            )
        wanted = max(map(_roomy_queries, in_crop.values()))
        for name, counts in in_crop.items():
            if fuller := sum(count > self.queries for count in counts):
                found.append(
                    f"{fuller} of {len(objects[name].counts)} {name} images show more objects in a crop than its "
                    f"{self.queries} queries can find, about {max(counts):.0f} in the fullest. Add --num-queries "
                    f"{wanted}, or take a smaller --crop."
                )
        return found


@dataclass(frozen=True)
class Derived:
    """Settings of a run, given or derived from its images.

    objects: of the "labelled" images, and of the "validation" images if there are any.  warnings: about given limits
    that objects exceed.
    """

    zoom: float
    views: Views
    limits: Limits
    objects: dict[str, Objects]
    warnings: list[str]


def derive(
    labeled: LabeledImages,
    val: LabeledImages | None,
    views: ViewsConfig,
    *,
    zoom: float,
    queries: int,
    detections: int,
    labels: Callable[[int], int],
) -> Derived:
    """Zoom, views and limits of a run; settings of 0 are derived from all images, in any order.

    Zoom, crop and queries come from labelled images only.  Validation images are counted too.  That leaks nothing into
    training: their number of objects only bounds the detections and pseudo-labels kept per image.
    labels: see `Limits.natural`.  Raises DataError for a faulty mask.
    """
    sets = {"labelled": labeled} | ({} if val is None else {"validation": val})
    objects = {name: count_objects(source) for name, source in sets.items()}
    zoom = zoom or natural_zoom(objects["labelled"])
    resolved = resolve_views(views, labeled, zoom)
    in_crop = {name: crop_counts(source, objects[name], resolved, zoom) for name, source in sets.items()}
    limits = Limits.natural(objects, in_crop, queries=queries, detections=detections, labels=labels)
    return Derived(zoom, resolved, limits, objects, limits.warnings(objects, in_crop))
