"""Comparison of AP between pairs of models, with their own masks and at equal stride, on shared draws of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sskd_fast.evaluation.comparison import drawn_ap
from sskd_fast.evaluation.mask_resolution import Zoom, at_stride

# A model, its reference, and the common stride of their masks; None for the masks as they are.
Pair = tuple[str, str, float | None]


def compared_pairs(strides: Mapping[str, float | None], pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """Each pair with its masks as they are, and again at the coarser stride if both strides are known and differ."""
    compared: list[Pair] = []
    for model, against in pairs:
        compared.append((model, against, None))
        known = [stride for stride in (strides[model], strides[against]) if stride is not None]
        if len(set(known)) == 2:
            compared.append((model, against, max(known)))
    return compared


def drawn_pairs(
    ground_truth: dict[str, Any],
    results: Mapping[str, list[dict[str, Any]]],
    strides: Mapping[str, float | None],
    pairs: Sequence[Pair],
    *,
    zoom: Zoom,
    max_detections: int,
    group_key: str = "",
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """For each pair, the AP of both models on the images and on draws of them; see `drawn_ap`.

    results, strides: by model name.  zoom: see `at_stride`.  group_key: image field whose groups are drawn whole.
    Single images are drawn if it is "" or an image lacks it.
    """

    def drawn_at(model: str, to: float | None) -> tuple[str, float | None]:
        stride = strides[model]
        return model, to if to is not None and stride is not None and stride < to else None

    sides = [(drawn_at(model, to), drawn_at(against, to)) for model, against, to in pairs]
    wanted = list(dict.fromkeys(side for both in sides for side in both))
    found = drawn_ap(
        ground_truth,
        [results[model] if to is None else at_stride(results[model], to, zoom) for model, to in wanted],
        max_detections=max_detections,
        groups=image_groups(ground_truth, group_key),
    )
    aps = dict(zip(wanted, found, strict=True))
    return [(aps[ours], aps[theirs]) for ours, theirs in sides]


def image_groups(ground_truth: dict[str, Any], key: str) -> dict[int, str] | None:
    """The value of an image field by image id; None if the key is empty or an image lacks the field."""
    images = ground_truth["images"]
    if not key or not all(key in image for image in images):
        return None
    return {image["id"]: str(image[key]) for image in images}
