"""Prediction of whole image sets with a model and its inference settings."""

from __future__ import annotations

import copy
import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from sskd_fast import ranks
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

    category_ids: the category id of each class, in the model's order.  The groups are shared among the ranks; only the
    first rank calls this function.
    """
    groups_of_images = list(source_groups(source, indices))
    if ranks.count() > 1 and groups_of_images:
        ids = [[source.records[i].image_id for i in rows] for rows in groups_of_images]
        part = source.subset(itertools.chain(*ids)) if indices is not None else source
        ranks.order(_predict_share, _news_of(model), inference, part, category_ids, ids, views)
        return _of_all_ranks(
            _predict_groups(model, inference, source, category_ids, groups_of_images[:: ranks.count()], views)
        )
    return list(itertools.chain(*_predict_groups(model, inference, source, category_ids, groups_of_images, views)))


def _predict_groups(
    model: Segmenter,
    inference: InferenceConfig,
    source: ImageCollection,
    category_ids: Sequence[int],
    wanted: Iterable[list[int]],
    views: Sequence[Augmentation],
) -> list[list[dict[str, Any]]]:
    """The results of each group of images."""
    results: list[list[dict[str, Any]]] = []
    for rows in wanted:
        found = predict_views(model, [source.image(i) for i in rows], inference, views)
        results.append([])
        for i, detections in zip(rows, found, strict=True):
            results[-1] += to_results(
                detections, source.records[i].image_id, source.size(i), category_ids, inference.zoom_of(source.size(i))
            )
    return results


def _of_all_ranks(own: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The results of all groups in order, gathered from the ranks, each of which has every n-th group."""
    turns = itertools.zip_longest(*ranks.gathered(own), fillvalue=[])
    return [result for turn in turns for group in turn for result in group]


# The model last sent to the other ranks with the versions of its tensors; on those ranks, the copy.
_known: tuple[weakref.ref[Segmenter], list[int]] | None = None
_copy: Segmenter | None = None


def _news_of(model: Segmenter) -> Segmenter | None:
    """A CPU copy of the model for the other ranks; None if they have it already."""
    global _known
    versions = [tensor._version for tensor in itertools.chain(model.parameters(), model.buffers())]
    if _known is not None and _known[0]() is model and _known[1] == versions:
        return None
    _known = (weakref.ref(model), versions)
    return copy.deepcopy(model).cpu()


def _predict_share(
    model: Segmenter | None,
    inference: InferenceConfig,
    source: ImageCollection,
    category_ids: Sequence[int],
    ids: Sequence[Sequence[int]],
    views: Sequence[Augmentation],
) -> None:
    """Predicts this rank's share of some groups of images.  model: None for the one of the last time."""
    global _copy
    if model is not None:
        device = "cuda" if torch.cuda.is_initialized() else "cpu"
        _copy = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert _copy is not None
    index_of = {record.image_id: i for i, record in enumerate(source.records)}
    own = [[index_of[i] for i in group] for group in ids[ranks.number() :: ranks.count()]]
    ranks.gathered(_predict_groups(_copy, inference, source, category_ids, own, views))
