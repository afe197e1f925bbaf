"""Prediction of whole image sets with a model and its inference settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from sskd_fast.data.source import ImageCollection
from sskd_fast.models.augmented import IDENTITY, Augmentation, predict_views
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.results import to_results
from sskd_fast.models.segmenter import Segmenter

# Most images predicted together, and the number of pixels that closes a group early.  A result may depend in its last
# bits on the rest of its batch, so all prediction groups by this one rule.
IMAGES_AT_ONCE = 32
PIXELS_AT_ONCE = 32_000_000

Item = TypeVar("Item")


def groups(items: Iterable[Item], pixels: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Lists of IMAGES_AT_ONCE items; shorter if PIXELS_AT_ONCE pixels are reached first, or at the end.

    pixels: gives the number of pixels of an item.
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
    """The indices of a source's images, all by default, in the groups that are predicted together."""
    return groups(range(len(source)) if indices is None else indices, lambda i: math.prod(source.size(i)))


def predict_source(
    model: Segmenter,
    inference: InferenceConfig,
    source: ImageCollection,
    category_ids: Sequence[int],
    indices: Iterable[int] | None = None,
    views: Sequence[Augmentation] = IDENTITY,
) -> list[dict[str, Any]]:
    """COCO results of a model on images of a source, all by default, averaged over views of each image.

    category_ids: the category id of each class, in the model's order.
    """
    results: list[dict[str, Any]] = []
    for rows in source_groups(source, indices):
        found = predict_views(model, [source.image(i) for i in rows], inference, views)
        for i, detections in zip(rows, found, strict=True):
            results += to_results(
                detections, source.records[i].image_id, source.size(i), category_ids, inference.zoom_of(source.size(i))
            )  # fmt: skip
    return results
