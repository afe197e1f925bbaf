"""Matching of results to results and ground truth: IoU of RLE masks, greedy matching, non-maximum suppression.

Shape letters: D results, G objects of the ground truth, n records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from sskd_fast.boxed_masks import Bools
from sskd_fast.rle import encode_segmentation


def rle_iou(found: Sequence[Any], wanted: Sequence[Any], crowd: Bools | None = None) -> NDArray[np.float64]:
    """(D, G) float64 IoU of two lists of compressed RLE masks; for a crowd region, intersection over the found area.

    crowd: (G,) bool, True for crowd regions; by default there are none.
    """
    if not found or not wanted:
        return np.zeros((len(found), len(wanted)))
    regions = np.zeros(len(wanted), dtype=np.uint8) if crowd is None else crowd.astype(np.uint8)
    return np.asarray(rle.iou(list(found), list(wanted), regions))


def greedy_groups(count: int, overlapping: Callable[[int, NDArray[np.int64]], Iterable[int]]) -> Iterator[list[int]]:
    """Groups the records 0 to count - 1, sorted best first: each free record takes the free ones that overlap it.

    overlapping: maps a record and the free records after it, (n,) int64, to those that overlap it.
    Yields each group, the record that started it first.
    """
    free = np.ones(count, dtype=np.bool_)
    for first in range(count):
        if free[first]:
            group = [first, *overlapping(first, first + 1 + np.flatnonzero(free[first + 1 :]))]
            free[group] = False
            yield group


def mask_nms(results: Sequence[dict[str, Any]], iou: float, *, class_aware: bool = False) -> list[dict[str, Any]]:
    """Greedy non-maximum suppression by mask IoU over the results of one image.

    Results are visited from the highest score down.  One is kept unless its IoU with a kept one is above `iou`.  An
    object has one class, so results of different classes suppress each other unless `class_aware`.

    Returns the kept results, highest score first.  Raises ValueError if the results belong to several images.
    """
    images = {result["image_id"] for result in results}
    if len(images) > 1:
        raise ValueError(f"mask_nms takes the results of one image, found images {sorted(images)[:5]}")
    ordered = _best_first(results)
    masks = [result["segmentation"] for result in ordered]
    overlap = rle_iou(masks, masks) > iou
    if class_aware:
        overlap &= _same_class(ordered, ordered)
    return [ordered[group[0]] for group in greedy_groups(len(ordered), lambda i, later: later[overlap[i, later]])]


def greedy_matches(overlap: NDArray[np.float64], iou: float, allowed: Bools | None = None) -> list[int | None]:
    """The index of the object matched to each result, or None: in order, each takes the free object it overlaps most.

    overlap: (D, G) IoU, best result first; a match needs at least `iou`.  allowed: (G,) bool, objects that can be
    matched; all by default.
    """
    free = np.ones(overlap.shape[1], dtype=np.bool_) if allowed is None else allowed.copy()
    taken: list[int | None] = []
    for row in overlap:
        best = int(np.argmax(np.where(free, row, -1.0))) if len(row) else None
        if best is not None and free[best] and row[best] >= iou:
            free[best] = False
            taken.append(best)
        else:
            taken.append(None)
    return taken


@dataclass(frozen=True)
class Match:
    """Outcome for one result: matched to an annotation at an IoU, unmatched, or ignored on a crowd region."""

    result: dict[str, Any]
    annotation: dict[str, Any] | None
    iou: float
    ignored: bool


def match_results(
    results: Sequence[dict[str, Any]], ground_truth: dict[str, Any], *, iou: float, class_aware: bool
) -> list[Match]:
    """Matches each result, highest score first, to the free annotation that it overlaps most, at IoU >= iou.

    class_aware: match only annotations of the result's own category.
    An unmatched result in a crowd region (intersection over own area >= iou) is ignored, as in COCO.
    Raises ValueError for a result on an image that is not in the ground truth.
    """
    sizes = {int(image["id"]): (int(image["height"]), int(image["width"])) for image in ground_truth["images"]}
    annotations = by_image(ground_truth["annotations"])
    matches: list[Match] = []
    for image_id, found in by_image(results).items():
        if image_id not in sizes:
            raise ValueError(f"a result is on image {image_id}, not among the {len(sizes)} images of the ground truth")
        matches += _match_image(_best_first(found), annotations.get(image_id, []), sizes[image_id], iou, class_aware)
    return matches


def by_image(records: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Results or annotations grouped by image id, in their given order."""
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[int(record["image_id"])].append(record)
    return dict(groups)


def _match_image(
    found: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    size: tuple[int, int],
    iou: float,
    class_aware: bool,
) -> list[Match]:
    crowd = np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], dtype=np.bool_)
    wanted = [encode_segmentation(annotation["segmentation"], *size) for annotation in annotations]
    overlap = rle_iou([result["segmentation"] for result in found], wanted, crowd)
    if class_aware:
        overlap = np.where(_same_class(found, annotations), overlap, 0.0)
    return [
        Match(result, None, 0.0, bool((row[crowd] >= iou).any()))
        if best is None
        else Match(result, annotations[best], float(row[best]), False)
        for result, row, best in zip(found, overlap, greedy_matches(overlap, iou, ~crowd), strict=True)
    ]


def _best_first(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(results, key=lambda result: -float(result["score"]))


def _same_class(found: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> Bools:
    """(D, G) bool: True for pairs of the same category."""
    rows, columns = (np.array([record["category_id"] for record in side]) for side in (found, wanted))
    same: Bools = rows[:, None] == columns[None, :]
    return same
