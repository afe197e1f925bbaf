"""Zoom, crop and queries of a run, taken from its labelled images if no setting says them."""

from __future__ import annotations

import math

import numpy as np

from sskd_fast.data.embedded import SIZE
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.source import ImageCollection
from sskd_fast.data.views import Views, ViewsConfig

OBJECT_PIXELS = 24.0


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


def natural_queries(source: LabeledImages, views: Views, zoom: float) -> int:
    """Queries for a crop: twice the 95th percentile of instances that fall into one, between 16 and 100."""
    truth = source.subset(source.image_ids[:200]).ground_truth()
    counts: dict[int, int] = {}
    for annotation in truth["annotations"]:
        counts[annotation["image_id"]] = counts.get(annotation["image_id"], 0) + 1
    crop = views.size[0] * views.size[1]
    shares = [1.0 if views.fit else min(1.0, crop / (r["height"] * r["width"] * zoom**2)) for r in truth["images"]]
    expected = [counts.get(r["id"], 0) * s for r, s in zip(truth["images"], shares, strict=True)]
    return int(np.clip(math.ceil(2 * float(np.percentile(expected, 95))), 16, 100))
