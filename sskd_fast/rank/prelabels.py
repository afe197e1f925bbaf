"""Pre-labels as a COCO instances dict that annotation tools open and a run takes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sskd_fast.data.formats.contours import joined, outlines
from sskd_fast.rank.ranking import RankedImage
from sskd_fast.rle import box_of_rle


def instances_dict(ranked: Sequence[RankedImage], class_names: Mapping[int, str]) -> dict[str, Any]:
    """The images in their order, with ids from 1, and their pre-labels with scores.

    class_names: category id -> name.  Every mask is one polygon along the edges of its pixels, holes and parts joined
    by cuts of no width: CVAT imports polygons alone for single objects, Label Studio's converter the first polygon
    alone.  COCO's rasteriser gives the same pixels back.  No annotation has a "bbox", for which that converter would
    draw a rectangle beside the polygon.
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
