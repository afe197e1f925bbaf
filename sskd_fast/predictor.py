"""Prediction of image sets by a model and its inference settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sskd_fast.data.source import ImageCollection
from sskd_fast.models.augmented import IDENTITY, Augmentation, predict_views
from sskd_fast.models.inference import InferenceConfig, to_results
from sskd_fast.models.segmenter import Segmenter

# Images whose tiles are predicted together.
_IMAGES_AT_ONCE = 32


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
    order = list(range(len(source)) if indices is None else indices)
    results: list[dict[str, Any]] = []
    for start in range(0, len(order), _IMAGES_AT_ONCE):
        rows = order[start : start + _IMAGES_AT_ONCE]
        found = predict_views(model, [source.image(i) for i in rows], inference, views)
        for i, detections in zip(rows, found, strict=True):
            results += to_results(
                detections, source.records[i].image_id, source.size(i), category_ids, inference.zoom
            )  # fmt: skip
    return results
