"""Prediction of image sets by a model and its inference settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from sskd_fast.data.source import ImageCollection
from sskd_fast.models.augmented import IDENTITY, Augmentation, predict_views
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.results import to_results
from sskd_fast.models.segmenter import Segmenter

# Images whose tiles are predicted together, and the pixels that are enough before.  The bits of a result may depend on
# what shares its batch, so that everything that predicts groups by the same rule.
IMAGES_AT_ONCE = 32
PIXELS_AT_ONCE = 32_000_000

Item = TypeVar("Item")


def groups(items: Iterable[Item], pixels: Callable[[Item], int]) -> Iterator[list[Item]]:
    """The items in lists of IMAGES_AT_ONCE, shorter if PIXELS_AT_ONCE pixels are reached before, or at the end.

    pixels: of an item.
    """
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == IMAGES_AT_ONCE or sum(map(pixels, group)) >= PIXELS_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def source_groups(source: ImageCollection, indices: Iterable[int] | None = None) -> Iterator[list[int]]:
    """The images of a source, all by default, in the groups that are predicted together."""
    return groups(range(len(source)) if indices is None else indices, lambda i: math.prod(source.size(i)))


def predict_source(
    model: Segmenter,
    inference: InferenceConfig,
    source: ImageCollection,
    category_ids: Sequence[int],
    indices: Iterable[int] | None = None,
    views: Sequence[Augmentation] = IDENTITY,
) -> list[dict[str, Any]]:
    """COCO results of a model on images of a source, all of them by default, averaged over views of each.

    category_ids: of the classes in their order.
    """
    results: list[dict[str, Any]] = []
    for rows in source_groups(source, indices):
        found = predict_views(model, [source.image(i) for i in rows], inference, views)
        for i, detections in zip(rows, found, strict=True):
            results += to_results(
                detections, source.records[i].image_id, source.size(i), category_ids, inference.zoom_of(source.size(i))
            )
    return results
