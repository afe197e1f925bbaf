"""Detection of objects labelled twice: nearly equal masks on one image, of the same or of different classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as coco_mask

from sskd_fast.data.errors import Findings

# Smallest IoU of two masks of one object labelled twice.
SAME_OBJECT = 0.9
# Masks compared with all later ones at a time; a table of all pairs of a crowded image would fill the memory.
_AT_ONCE = 512


class Drawn(NamedTuple):
    """An object of an image: name in messages, category and compressed RLE."""

    item: str
    category_id: int
    encoded: dict[str, Any]


def warn_of_repeated(file: Path, images: Iterable[Sequence[Drawn]], findings: Findings) -> None:
    """Warns of objects that repeat an earlier one of their image.  images: the objects of each image."""
    total = 0
    pairs: list[tuple[Drawn, Drawn]] = []
    for objects in images:
        total += len(objects)
        pairs += _repeated(objects) if len(objects) > 1 else []
    said = f"(IoU of at least {SAME_OBJECT}; {{}} and {{}})"
    alike = [(first.item, copy.item) for first, copy in pairs if first.category_id == copy.category_id]
    other = [(first.item, copy.item) for first, copy in pairs if first.category_id != copy.category_id]
    if alike:
        findings.warnings.append(
            f"{file}: {len(alike)} of {total} objects repeat another one of the same class {said.format(*alike[0])}: "
            "one of each pair counts as missed. Remove the copies."
        )
    if other:
        findings.warnings.append(
            f"{file}: {len(other)} of {total} objects have the mask of an object of another class "
            f"{said.format(*other[0])}: the model learns both classes for them. Remove the wrong ones."
        )


def _repeated(objects: Sequence[Drawn]) -> Iterator[tuple[Drawn, Drawn]]:
    """Pairs (first, copy) for objects that repeat an earlier one, preferably of their own class."""
    codes = [drawn.encoded for drawn in objects]
    classes = np.array([drawn.category_id for drawn in objects])
    # For each object, the first one that it repeats, of its class and of any class; itself if there is none.
    alike, other = np.arange(len(codes)), np.arange(len(codes))
    for start in range(0, len(codes), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        same = np.triu(coco_mask.iou(codes[rows], codes[start:], [0] * (len(codes) - start)) >= SAME_OBJECT, 1)
        for first, own in ((alike, classes[rows, None] == classes[start:]), (other, np.True_)):
            found = same & own
            hit = np.flatnonzero(found.any(0))
            first[start + hit] = np.minimum(first[start + hit], start + found[:, hit].argmax(0))
    for place, (own_class, any_class) in enumerate(zip(alike.tolist(), other.tolist(), strict=True)):
        if any_class < place:
            yield objects[own_class if own_class < place else any_class], objects[place]
