"""COCO instance annotations: images with masks given as polygons, uncompressed or compressed RLE."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pycocotools.mask as coco_mask

from sskd_fast.data.classes import ordered_categories
from sskd_fast.data.coco_records import annotation_item, coco_records
from sskd_fast.data.errors import DataError, Findings, Problem
from sskd_fast.data.formats.documents import described, format_cure, read_json
from sskd_fast.data.image_files import image_records
from sskd_fast.data.labeled import LabeledImages, coco_annotation
from sskd_fast.data.masks import MaskLayers, check_count, pack_layers
from sskd_fast.data.source import DEFAULT_CACHE_BYTES
from sskd_fast.rle import MaskError, encode_segmentation


class CocoInstances(LabeledImages):
    """The images and instance masks of a COCO annotation file.

    annotations: the file, or its content.  images: the folder of the image files.  class_names: the classes in the
    order of their indices; by default the order of the category ids.  Annotations of other categories are left out.
    name: name of the set in messages.  stretch, cache_bytes: see ImageCollection.  confine: reject file names that
    point outside `images`.  numbered: True if labels of another format were given their image ids when they were read.
    Category ids may have gaps: `category_ids[index]` is the COCO id of class `index`.  Raises DataError if the file
    lacks anything that training needs; a faulty mask is reported when its image is first read, or by `check_dataset`
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
        confine: bool = False,
        numbered: bool = False,
    ) -> None:
        content = annotations if isinstance(annotations, Mapping) else read_annotations(Path(annotations))
        self.file = name or "annotations" if isinstance(annotations, Mapping) else str(annotations)
        findings = Findings()
        records = coco_records(content, self.file, findings)
        if findings.problems:
            raise DataError(findings.problems)
        self._categories = ordered_categories(list(records.categories.values()), class_names, self.file)
        super().__init__(
            list(image_records(records, Path(images), confine=confine, numbered=numbered).values()),
            images,
            name=name,
            class_names=[str(category["name"]) for category in self._categories],
            category_ids=[int(category["id"]) for category in self._categories],
            stretch=stretch,
            cache_bytes=cache_bytes,
        )
        self._class_of = {category_id: index for index, category_id in enumerate(self.category_ids)}
        self._annotations: dict[int, list[dict[str, Any]]] = {record.image_id: [] for record in self.records}
        for annotation in records.annotations:
            if annotation["category_id"] in self._class_of:
                self._annotations[annotation["image_id"]].append(annotation)

    def _decode(self, index: int) -> MaskLayers:
        height, width = self.size(index)
        annotations = self._listed(index)
        encoded = [self._encode(annotation, height, width) for annotation in annotations]
        labels = [self._class_of[annotation["category_id"]] for annotation in annotations]
        crowd = [annotation["iscrowd"] for annotation in annotations]
        return pack_layers(encoded, labels, [1.0] * len(labels), crowd, height, width)

    def _listed(self, index: int) -> list[dict[str, Any]]:
        image_id = self.records[index].image_id
        try:
            check_count(len(self._annotations[image_id]))
        except MaskError as error:
            raise self._error(f"image {image_id}", error) from error
        return self._annotations[image_id]

    def _encode(self, annotation: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
        try:
            return encode_segmentation(annotation.get("segmentation"), height, width)
        except MaskError as error:
            raise self._error(annotation_item(annotation), error) from error

    def _error(self, item: str, error: MaskError) -> DataError:
        return DataError([Problem(self.file, item, error.found, error.expected, error.cure)])

    def categories(self) -> list[dict[str, Any]]:
        """The category records of the file in the order of the classes."""
        return [dict(category) for category in self._categories]

    def listed(self, index: int) -> int:
        """The number of annotations that the file lists for an image, including masks without a pixel."""
        return len(self._annotations[self.records[index].image_id])

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """The annotations of an image in COCO form, with compressed RLE.

        Area and bbox are computed from the mask, not taken from the file.  Masks without a pixel are left out, as in
        training.
        """
        height, width = self.size(index)
        listed = self._listed(index)
        encoded = [self._encode(annotation, height, width) for annotation in listed]
        return [
            coco_annotation(code, annotation["category_id"], annotation["iscrowd"])
            for annotation, code in zip(listed, encoded, strict=True)
            if coco_mask.area(code)
        ]


def read_annotations(path: Path) -> dict[str, Any]:
    """The content of a COCO annotation file with its three lists.  Raises DataError if it is missing or malformed."""
    expected = 'a JSON object with the lists "images", "annotations" and "categories"'
    cure = "Export the annotations in COCO's instance format, or name theirs with --format."
    content = read_json(path, expected, cure)
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise DataError([Problem(path, "", described(content), expected, format_cure(path, content) or cure)])
    _check_keys(path, keys)
    return content


def _check_keys(path: Path, keys: Sequence[str]) -> None:
    """Raises DataError if a top-level list occurs twice, since the JSON reader keeps only the last one.

    Only files that contain a key's text twice are parsed a second time, with all key-value pairs.
    """
    content = path.read_bytes()
    letters = content.replace(b"\0", b"")  # of UTF-16 and UTF-32
    if all(letters.count(f'"{key}"'.encode()) < 2 for key in keys):
        return
    pairs: list[tuple[str, Any]] = []

    def note(of_object: list[tuple[str, Any]]) -> None:
        pairs[:] = of_object  # the outermost object comes last

    json.loads(content, object_pairs_hook=note)
    for key, count in Counter(key for key, _ in pairs).items():
        if key in keys and count > 1:
            cure = "Join them into one: of several, JSON's readers keep the last alone."
            raise DataError([Problem(path, "", f'{count} lists "{key}"', "one of each", cure)])
