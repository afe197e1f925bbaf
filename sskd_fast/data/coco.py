"""COCO instance annotations: images with masks given as polygons, uncompressed or compressed RLE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pycocotools.mask as coco_mask

from sskd_fast.data.classes import ordered_categories
from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.formats.documents import described, format_cure, read_json
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.masks import MaskLayers, pack_layers
from sskd_fast.data.source import DEFAULT_CACHE_BYTES, ImageRecord
from sskd_fast.rle import MaskError, encode_segmentation

_RECORD_FIELDS = ("id", "file_name", "width", "height")


class CocoInstances(LabeledImages):
    """The images and instance masks of a COCO annotation file.

    annotations: the file, or its content.  images: the folder that holds the image files.  class_names: the classes in
    the order of their indices, where it is not the order of the category ids; annotations of other categories are left
    out. name: how the set is called in messages.  stretch, cache_bytes: see ImageCollection.
    Category ids may have gaps: `category_ids[index]` is the COCO id of class `index`.  Raises DataError where the file
    does not hold what training needs; a faulty mask is reported when its image is first read, or by `check_dataset`
    beforehand.
    """

    def __init__(
        self,
        annotations: Path | Mapping[str, Any],
        images: Path,
        *,
        class_names: Sequence[str] | None = None,
        name: str = "",
        stretch: bool = False,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        content = annotations if isinstance(annotations, Mapping) else read_annotations(Path(annotations))
        self.file = name or "annotations" if isinstance(annotations, Mapping) else str(annotations)
        self._categories = ordered_categories(content, class_names, self.file)
        super().__init__(
            _image_records(content, Path(images), self.file),
            images,
            name=name,
            class_names=[str(category["name"]) for category in self._categories],
            category_ids=[int(category["id"]) for category in self._categories],
            stretch=stretch,
            cache_bytes=cache_bytes,
        )
        self._class_of = {category_id: index for index, category_id in enumerate(self.category_ids)}
        self._annotations = self._by_image(content)

    def _by_image(self, content: Mapping[str, Any]) -> dict[int, list[Mapping[str, Any]]]:
        known = {int(category["id"]) for category in content["categories"]}
        grouped: dict[int, list[Mapping[str, Any]]] = {record.image_id: [] for record in self.records}
        problems = []
        for annotation in content["annotations"]:
            item = f"annotation {annotation.get('id')}"
            if annotation.get("image_id") not in grouped:
                problems.append(
                    Problem(
                        self.file,
                        item,
                        f"it names image {annotation.get('image_id')}, which the file does not list",
                        "the id of one of its images",
                        "Remove the annotation or add the image.",
                    )
                )
            elif annotation.get("category_id") not in known:
                problems.append(
                    Problem(
                        self.file,
                        item,
                        f"it names category {annotation.get('category_id')}, which the file does not list",
                        f"one of {sorted(known)[:20]}",
                        "Correct its category_id or add the category.",
                    )
                )
            elif annotation["category_id"] in self._class_of:
                grouped[annotation["image_id"]].append(annotation)
        if problems:
            raise DataError(problems)
        return grouped

    def _decode(self, index: int) -> MaskLayers:
        record = self.records[index]
        height, width = self.size(index)
        annotations = self._annotations[record.image_id]
        encoded = [self._encode(annotation, height, width) for annotation in annotations]
        labels = [self._class_of[annotation["category_id"]] for annotation in annotations]
        crowd = [bool(annotation.get("iscrowd", 0)) for annotation in annotations]
        return pack_layers(encoded, labels, [1.0] * len(labels), crowd, height, width)

    def _encode(self, annotation: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
        try:
            return encode_segmentation(annotation.get("segmentation"), height, width)
        except MaskError as error:
            item = f"annotation {annotation.get('id')} of image {annotation['image_id']}"
            raise DataError([Problem(self.file, item, error.found, error.expected, error.cure)]) from error

    def categories(self) -> list[dict[str, Any]]:
        """The categories as the file has them, in the order of the classes."""
        return [dict(category) for category in self._categories]

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """The annotations of an image with compressed RLE; area and bbox are filled in where they are missing."""
        height, width = self.size(index)
        filled = []
        for annotation in self._annotations[self.records[index].image_id]:
            encoded = self._encode(annotation, height, width)
            filled.append(
                {
                    "category_id": annotation["category_id"],
                    "segmentation": {"size": [height, width], "counts": encoded["counts"].decode("ascii")},
                    "area": float(annotation.get("area") or coco_mask.area(encoded)),
                    "bbox": [float(value) for value in annotation.get("bbox") or coco_mask.toBbox(encoded)],
                    "iscrowd": int(annotation.get("iscrowd", 0)),
                }
            )
        return filled


def read_annotations(path: Path) -> dict[str, Any]:
    """The content of a COCO annotation file with its three lists; DataError where it is missing or malformed."""
    expected = 'a JSON object with the lists "images", "annotations" and "categories"'
    cure = "Export the annotations in COCO's instance format, or name theirs with --format."
    content = read_json(path, expected, cure)
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise DataError([Problem(path, "", described(content), expected, format_cure(path, content) or cure)])
    return content


def _image_records(content: Mapping[str, Any], folder: Path, file: str) -> list[ImageRecord]:
    records: dict[int, ImageRecord] = {}
    problems = []
    for image in content["images"]:
        image_id = image.get("id")
        if not isinstance(image_id, int) or "file_name" not in image:
            found, expected = f"a record with the fields {sorted(image)}", "an integer `id` and a `file_name`"
            problems.append(Problem(file, f"image {image_id}", found, expected, "Correct the record."))
            continue
        if image_id in records:
            found = f"its id is used by {records[image_id].file_name} and {image['file_name']}"
            problems.append(Problem(file, f"image {image_id}", found, "an id of its own", "Number the images anew."))
        size = (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None
        extra = {key: str(value) for key, value in image.items() if _is_extra(key, value)}
        records[image_id] = ImageRecord(image_id, image["file_name"], folder / image["file_name"], size, extra)
    if problems:
        raise DataError(problems)
    return list(records.values())


def _is_extra(key: str, value: object) -> bool:
    return key not in _RECORD_FIELDS and isinstance(value, (str, int, float))
