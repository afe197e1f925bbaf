"""A checked COCO instances dict, image by image, for writers of other formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pycocotools.mask as coco_mask

from sskd_fast.data.errors import DataError, Findings
from sskd_fast.rle import MaskError, encode_segmentation


@dataclass
class LabeledImage:
    """An image and its annotations, each with its class name (`category`) and RLE with bytes counts."""

    file_name: str
    height: int
    width: int
    annotations: list[dict[str, Any]] = field(default_factory=list)


def labeled_images(instances: Mapping[str, Any]) -> list[LabeledImage]:
    """The images in order, without empty masks.  Raises DataError with all faulty annotations."""
    findings = Findings()
    names = {category["id"]: category["name"] for category in instances["categories"]}
    images = {
        image["id"]: LabeledImage(image["file_name"], image["height"], image["width"]) for image in instances["images"]
    }
    for annotation in instances["annotations"]:
        item = f"annotation {annotation.get('id')} of image {annotation.get('image_id')}"
        image = images.get(annotation.get("image_id"))
        name = names.get(annotation.get("category_id"))
        if image is None or name is None:
            found = f"image {annotation.get('image_id')} and category {annotation.get('category_id')}"
            findings.add("instances", item, found, "ids that the dict lists", "Add the image or the category.")
            continue
        try:
            encoded = encode_segmentation(annotation.get("segmentation"), image.height, image.width)
        except MaskError as error:
            findings.add("instances", item, error.found, error.expected, error.cure)
            continue
        if coco_mask.area(encoded):
            image.annotations.append({**annotation, "segmentation": encoded, "category": name})
    if findings.problems:
        raise DataError(findings.problems)
    return list(images.values())
