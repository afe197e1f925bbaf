"""Pre-labels as a COCO instances dict that annotation tools open and runs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sskd_fast.data.formats.contours import joined, outlines
from sskd_fast.rank.ranking import RankedImage
from sskd_fast.rle import box_of_rle


def instances_dict(ranked: Sequence[RankedImage], class_names: Mapping[int, str]) -> dict[str, Any]:
    """The images in the given order, with ids from 1, and their pre-labels with scores.

    class_names: category id -> name.  Each mask is one polygon along its pixel edges, with holes and parts joined by
    cuts of zero width.  CVAT imports only polygons for single objects, and Label Studio's converter only the first
    polygon.  COCO's rasteriser restores the same pixels.  Annotations have no "bbox", because that converter would draw
    it as a rectangle beside the polygon.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(ranked, 1):
        height, width = image.size
        images.append({"id": number, "file_name": image.file, "height": height, "width": width})
        for label in image.comparison.prelabels:
            mask, top, left = box_of_rle(label["segmentation"])
            polygon = (joined(outlines(mask)) + np.array([left, top])).ravel().tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": label["category_id"],
                    "segmentation": [polygon], "area": int(mask.sum()), "iscrowd": 0, "score": label["score"],
                }
            )  # fmt: skip
    categories = [{"id": category_id, "name": name} for category_id, name in class_names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
