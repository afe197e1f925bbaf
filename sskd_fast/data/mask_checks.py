"""Checks of the annotations of a COCO file: what they name, and whether every mask can be decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pycocotools.mask as coco_mask

from sskd_fast.data.errors import Findings, named
from sskd_fast.data.record_checks import CheckedFile
from sskd_fast.rle import MaskError, encode_segmentation


def check_annotations(
    checked: CheckedFile, annotations: Sequence[Any], categories: Mapping[int, str], findings: Findings
) -> None:
    """Checks every annotation: its record, the image and the category that it names, and its mask.

    checked: the images of the file, as the checks of its records left them.  categories: id -> name.
    """
    file = checked.file
    instances: Counter[str] = Counter()
    empty: list[object] = []
    ids: Counter[object] = Counter()
    for number, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            findings.add(
                file, f"annotations[{number}]", f"the value {annotation!r}", "an object", "Correct the record."
            )
            continue
        ids[annotation.get("id")] += 1
        item = f"annotation {annotation.get('id', f'at position {number}')} of image {annotation.get('image_id')}"
        if not _names_known(checked, annotation, categories, item, findings):
            continue
        area = _mask_area(checked, annotation, item, findings)
        if area == 0:
            empty.append(annotation.get("origin", annotation.get("id")))
        elif area is not None and not annotation.get("iscrowd"):
            instances[categories[annotation["category_id"]]] += 1
    _summarize(checked, instances, empty, ids, findings)


def _names_known(
    checked: CheckedFile, annotation: Mapping[str, Any], categories: Mapping[int, str], item: str, findings: Findings
) -> bool:
    known = True
    if annotation.get("image_id") not in checked.records:
        found = f"it names image {annotation.get('image_id')}, which the file does not list"
        cure = "Remove the annotation or add the image."
        findings.add(checked.file, item, found, "the id of one of its images", cure)
        known = False
    if annotation.get("category_id") not in categories:
        found = f"it names category {annotation.get('category_id')}, which the file does not list"
        cure = "Correct its category_id or add the category."
        findings.add(checked.file, item, found, f"one of {named(list(categories))}", cure)
        known = False
    return known


def _mask_area(checked: CheckedFile, annotation: Mapping[str, Any], item: str, findings: Findings) -> int | None:
    """Pixels of the mask, None where it is faulty or its image is."""
    size = checked.sizes.get(annotation["image_id"])
    if size is None:
        return None
    try:
        return int(coco_mask.area(encode_segmentation(annotation.get("segmentation"), *size)))
    except MaskError as error:
        findings.add(checked.file, item, error.found, error.expected, error.cure)
        return None


def _summarize(
    checked: CheckedFile, instances: Counter[str], empty: Sequence[object], ids: Counter[object], findings: Findings
) -> None:
    file = checked.file
    repeated = [annotation_id for annotation_id, count in ids.items() if count > 1]
    if repeated:
        findings.warnings.append(
            f"{file}: {len(repeated)} annotation ids are missing or used more than once ({named(repeated)}); "
            f"they are numbered anew for evaluation."
        )
    if empty:
        findings.warnings.append(
            f"{file}: {len(empty)} masks have no pixel and are dropped (annotations {named(empty)})."
        )
    unseen = [name for name in checked.class_names if not instances[name]]
    if unseen and instances:
        findings.warnings.append(f"{file}: {len(unseen)} classes have no instance: {named(unseen)}.")
    if not instances and not findings.problems:
        found = "no instance with a mask"
        cure = "Check that the masks were exported; crowd regions and masks without a pixel do not count."
        findings.add(file, "annotations", found, "at least one instance", cure)
