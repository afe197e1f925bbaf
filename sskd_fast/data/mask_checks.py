"""Checks of the annotations of a COCO file: decoding of each mask, and statistics of all of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pycocotools.mask as coco_mask

from sskd_fast.data.coco_records import annotation_item
from sskd_fast.data.errors import Findings, named
from sskd_fast.data.lost_masks import Extents, check_losses
from sskd_fast.data.masks import check_count
from sskd_fast.data.record_checks import CheckedFile
from sskd_fast.data.repeated_masks import Drawn, warn_of_repeated
from sskd_fast.data.stated_fields import Stated, check_stated
from sskd_fast.rle import MaskError, encode_segmentation

# A sound data set has few crowd regions; above this share, a tool may have marked single objects as crowds.
_CROWD_SHARE = 0.25


@dataclass
class _Masks:
    """The masks of a file: objects by class and by image, and irregularities."""

    instances: Counter[str] = field(default_factory=Counter)
    objects: dict[int, list[Drawn]] = field(default_factory=lambda: defaultdict(list))
    crowds: int = 0
    extents: list[Extents] = field(default_factory=list)
    empty: list[object] = field(default_factory=list)
    stated: list[Stated] = field(default_factory=list)
    ringed: list[str] = field(default_factory=list)


def check_annotations(checked: CheckedFile, findings: Findings) -> None:
    """Checks the mask of each annotation, and all of them together.

    Problems: too many annotations on an image, masks that cannot be decoded, no instance at all. Others are a large
    share of masks without a pixel or outside their images, and masks that fit the stated boxes if read otherwise.
    Warnings: dropped masks, objects labelled twice, filled holes, many crowd regions, stated areas and boxes far from
    the mask. There are also warnings on images and classes without objects, and on missing and repeated annotation
    ids.
    """
    assert checked.coco is not None, "annotations of a COCO file"
    masks = _Masks()
    crowded = _check_counts(checked, findings)
    for annotation in checked.coco.annotations:
        size = checked.sizes.get(annotation["image_id"])
        if size is None or annotation["image_id"] in crowded:
            continue
        try:
            encoded = encode_segmentation(annotation.get("segmentation"), *size)
        except MaskError as error:
            findings.add(checked.file, annotation_item(annotation), error.found, error.expected, error.cure)
            continue
        _take(annotation, encoded, checked, masks)
    lost = check_losses(checked.file, masks.extents, findings)
    if masks.empty and not lost:
        said = f"{len(masks.empty)} masks have no pixel and are dropped (annotations {named(masks.empty)})"
        findings.warnings.append(f"{checked.file}: {said}.")
    _warn_of_ids(checked, findings)
    check_stated(checked.file, masks.stated, findings)
    _warn_of_crowds(checked, masks, findings)
    _warn_of_rings(checked, masks, findings)
    warn_of_repeated(checked.file, masks.objects.values(), findings)
    _check_classes(checked, masks, findings)


def _check_counts(checked: CheckedFile, findings: Findings) -> set[int]:
    """Adds problems for images with more annotations than id maps can number; returns their ids."""
    assert checked.coco is not None, "annotations of a COCO file"
    refused = set()
    for image_id, count in Counter(annotation["image_id"] for annotation in checked.coco.annotations).items():
        try:
            check_count(count)
        except MaskError as error:
            refused.add(image_id)
            findings.add(checked.file, f"image {image_id}", error.found, error.expected, error.cure)
    return refused


def _take(annotation: Mapping[str, Any], encoded: dict[str, Any], checked: CheckedFile, masks: _Masks) -> None:
    """Adds one decoded annotation."""
    assert checked.coco is not None, "annotations of a COCO file"
    area, category_id = int(coco_mask.area(encoded)), annotation["category_id"]
    masks.extents.append(Extents.of(annotation, area, encoded["size"]))
    if area == 0:
        masks.empty.append(annotation.get("origin", str(annotation["id"])[:40]))
        return
    if annotation["iscrowd"]:
        masks.crowds += 1
    else:
        masks.instances[checked.coco.categories[category_id]["name"]] += 1
        masks.objects[annotation["image_id"]].append(Drawn(annotation_item(annotation), category_id, encoded))
    if masks.extents[-1].ringed:
        masks.ringed.append(annotation_item(annotation))
    masks.stated.append(Stated.of(annotation, encoded, area))


def _warn_of_ids(checked: CheckedFile, findings: Findings) -> None:
    assert checked.coco is not None, "annotations of a COCO file"
    ids = Counter(annotation["id"] for annotation in checked.coco.annotations)
    missing = ids.pop(None, 0)
    faulty = [f"{missing} missing"] * bool(missing) + [str(own)[:40] for own, count in ids.items() if count > 1]
    if faulty:
        count = len(faulty) + max(missing - 1, 0)
        findings.warnings.append(
            f"{checked.file}: {count} annotation ids are missing or used more than once ({named(faulty)}); "
            f"they are renumbered for evaluation."
        )


def _warn_of_crowds(checked: CheckedFile, masks: _Masks, findings: Findings) -> None:
    total = masks.crowds + masks.instances.total()
    if masks.instances and masks.crowds > _CROWD_SHARE * total:
        findings.warnings.append(
            f"{checked.file}: {masks.crowds} of {total} objects ({masks.crowds / total:.0%}) are crowd regions "
            "(`iscrowd` 1), which are neither trained on nor counted. Write 0 for those that show one object."
        )


def _warn_of_rings(checked: CheckedFile, masks: _Masks, findings: Findings) -> None:
    if masks.ringed:
        findings.warnings.append(
            f"{checked.file}: {len(masks.ringed)} of {len(masks.extents)} annotations have a polygon inside of another "
            f"one ({masks.ringed[0]}): COCO fills it. If these are holes, as GeoJSON and Shapely write them, encode "
            "the masks as RLE."
        )


def _check_classes(checked: CheckedFile, masks: _Masks, findings: Findings) -> None:
    file = checked.file
    unseen = [name for name in checked.class_names if not masks.instances[name]]
    if unseen and masks.instances:
        findings.warnings.append(f"{file}: {len(unseen)} classes have no instance: {named(unseen)}.")
    if not masks.instances and not findings.problems:
        found = "no instance with a mask"
        cure = "Check that the masks were exported; crowd regions and masks without a pixel do not count."
        findings.add(file, "annotations", found, "at least one instance", cure)
    images, filled = len(checked.images), len(masks.objects)
    if 2 * filled < images and masks.instances:
        findings.warnings.append(
            f"{file}: {images - filled} of {images} images have no object and count as background. Take them out if "
            "they are not annotated yet."
        )
