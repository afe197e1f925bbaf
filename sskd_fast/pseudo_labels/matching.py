"""Greedy matching of scored masks to ground-truth masks, image by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as rle

from sskd_fast.rle import encode_segmentation


@dataclass(frozen=True)
class Match:
    """What became of one result: matched (to which annotation, at which IoU), or ignored on a crowd region."""

    result: dict[str, Any]
    annotation: dict[str, Any] | None
    iou: float
    ignored: bool


def by_image(records: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Results or annotations grouped by image id, in their order."""
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[int(record["image_id"])].append(record)
    return dict(groups)


def match_results(
    results: Sequence[dict[str, Any]], ground_truth: dict[str, Any], *, iou: float, class_aware: bool
) -> list[Match]:
    """Match each result, highest score first, to the free annotation of its image that it overlaps most, at IoU >= iou.

    class_aware: only annotations of the result's own category count.
    A result without a match that lies in a crowd region (intersection over own area >= iou) is ignored, as COCO does.
    Raises ValueError for a result on an image that the ground truth does not have.
    """
    sizes = {int(image["id"]): (int(image["height"]), int(image["width"])) for image in ground_truth["images"]}
    annotations = by_image(ground_truth["annotations"])
    matches: list[Match] = []
    for image_id, detected in by_image(results).items():
        if image_id not in sizes:
            raise ValueError(f"a result is on image {image_id}, not among the {len(sizes)} images of the ground truth")
        matches += _match_image(detected, annotations.get(image_id, []), sizes[image_id], iou, class_aware)
    return matches


def _match_image(
    detected: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    size: tuple[int, int],
    iou: float,
    class_aware: bool,
) -> list[Match]:
    detected = sorted(detected, key=lambda result: -float(result["score"]))
    if not annotations:
        return [Match(result, None, 0.0, False) for result in detected]
    crowd = np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations])
    overlap = np.asarray(
        rle.iou(
            [result["segmentation"] for result in detected],
            [encode_segmentation(annotation["segmentation"], *size) for annotation in annotations],
            crowd.astype(np.uint8),
        )
    )  # (results, annotations)
    if class_aware:
        found = np.array([result["category_id"] for result in detected])
        wanted = np.array([annotation["category_id"] for annotation in annotations])
        overlap = np.where(found[:, None] == wanted[None, :], overlap, 0.0)
    free = ~crowd
    matches = []
    for row, result in zip(overlap, detected, strict=True):
        best = int(np.argmax(np.where(free, row, -1.0)))
        if free[best] and row[best] >= iou:
            free[best] = False
            matches.append(Match(result, annotations[best], float(row[best]), False))
        else:
            matches.append(Match(result, None, 0.0, bool((row[crowd] >= iou).any())))
    return matches
