"""Labelled images: the interface that training, evaluation and reports use for all file formats."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import pycocotools.mask as coco_mask

from sskd_fast.data.masks import MaskLayers
from sskd_fast.data.source import ImageCollection


def coco_annotation(encoded: Mapping[str, Any], category_id: int, crowd: bool) -> dict[str, Any]:
    """A COCO annotation from compressed RLE with bytes counts; area and bbox are computed from the mask."""
    return {
        "category_id": category_id,
        "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")},
        "area": float(coco_mask.area(encoded)),
        "bbox": [float(value) for value in coco_mask.toBbox(encoded)],
        "iscrowd": int(crowd),
    }


class LabeledImages(ImageCollection):
    """Images with instance masks.  Subclasses define how an image's instances are read; see CocoInstances."""

    def mask_layers(self, index: int) -> MaskLayers:
        """The instances of an image as id maps, decoded on first use.  Raises DataError for a faulty one."""
        return self.mask_cache.get(self.records[index].image_id, lambda: self._decode(index))

    @abstractmethod
    def _decode(self, index: int) -> MaskLayers:
        """Reads the instances of an image."""

    def categories(self) -> list[dict[str, Any]]:
        """The classes as COCO categories."""
        return [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.class_names, strict=True)
        ]

    def listed(self, index: int) -> int:
        """The number of instances in the labels of an image, including those dropped for having no pixel."""
        return len(self.mask_layers(index).labels)

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """The instances of an image as COCO annotations.

        Fields: category_id, segmentation (compressed RLE with ASCII counts), area, bbox and iscrowd.
        """
        layers = self.mask_layers(index)
        return [
            coco_annotation(rle, self.category_ids[label], bool(crowd))
            for rle, label, crowd in zip(layers.encoded(), layers.labels, layers.crowd, strict=True)
        ]

    def ground_truth(self) -> dict[str, Any]:
        """A COCO instances dict of this set with the original image and category ids, for evaluation.

        Annotation ids start at 1, because COCO's evaluator reads id 0 as unmatched.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, record in enumerate(self.records):
            height, width = self.size(index)
            images.append(
                {**record.extra, "id": record.image_id, "file_name": record.file_name, "height": height, "width": width}
            )
            for annotation in self.annotations(index):
                annotations.append({"id": len(annotations) + 1, "image_id": record.image_id, **annotation})
        return {"images": images, "annotations": annotations, "categories": self.categories()}
