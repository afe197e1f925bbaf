"""COCO mask average precision by pycocotools' COCOeval, for any number of detections per image.

Shape letters: T IoU thresholds, R recall levels, C classes, A area ranges, M detection limits.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sskd_fast.scalars import flag

RESULT_FIELDS = ("image_id", "category_id", "segmentation", "score")


@dataclass(frozen=True)
class MaskAP:
    """Mask average precision in percent, 0 to 100; NaN if there is no ground truth to measure it on.

    ap is the mean over IoU 0.50:0.05:0.95 and the classes with ground truth.  ap_small, ap_medium and ap_large restrict
    it to areas under 32^2, up to 96^2 and above 96^2 pixels.  per_class maps class names to their ap.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    per_class: dict[str, float]
    max_detections: int


def evaluate_masks(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    max_detections: int = 100,
    image_ids: Iterable[int] | None = None,
) -> MaskAP:
    """COCO mask AP of `results` against `ground_truth`.

    ground_truth: a COCO instances dict (polygons or RLE, crowd regions allowed; `area` is computed if missing).
    results: a COCO results list; an empty list gives 0.
    max_detections: number of highest-scored detections kept per image and class.
    image_ids: evaluate only on these images and ignore results on others; all by default.

    The arguments are not changed.  Raises ValueError for an unknown image or category, a missing field, or a score that
    is not finite.  So do an `iscrowd` other than 0 or 1, and max_detections < 1.
    """
    evaluation = matched_masks(ground_truth, results, max_detections=max_detections, image_ids=image_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # (T, R, C, A), -1 if a class has no ground truth
    names = _class_names(ground_truth["categories"])
    per_class = {
        names[category]: _percent(precision[:, :, column, 0])
        for column, category in enumerate(evaluation.params.catIds)
        if (precision[:, :, column, 0] > -1).any()
    }
    return MaskAP(
        ap=_percent(precision[..., 0]),
        ap50=_percent(precision[0, ..., 0]),
        ap75=_percent(precision[5, ..., 0]),
        ap_small=_percent(precision[..., 1]),
        ap_medium=_percent(precision[..., 2]),
        ap_large=_percent(precision[..., 3]),
        per_class=per_class,
        max_detections=max_detections,
    )


def matched_masks(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    max_detections: int,
    image_ids: Iterable[int] | None = None,
) -> COCOeval:
    """A COCOeval whose results are matched to the annotations image by image but not accumulated.

    Arguments and errors are those of `evaluate_masks`.
    """
    if max_detections < 1:
        raise ValueError(f"max_detections is {max_detections}, expected at least 1")
    images = {int(image["id"]): image for image in ground_truth["images"]}
    chosen = _chosen_images(images, image_ids)
    kept = _checked_results(results, images, {int(c["id"]) for c in ground_truth["categories"]}, chosen)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_truth_index(ground_truth, chosen), _result_index(ground_truth, kept), "segm")
        evaluation.params.imgIds = sorted(chosen)
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
    return evaluation


def _percent(precision: np.ndarray) -> float:
    measured = precision[precision > -1]
    return 100.0 * float(measured.mean()) if measured.size else math.nan


def _class_names(categories: list[dict[str, Any]]) -> dict[int, str]:
    """Unique class names by category id; the id is added to a name that occurs twice."""
    count = Counter(str(category["name"]) for category in categories)
    return {
        int(category["id"]): str(category["name"])
        if count[str(category["name"])] == 1
        else f"{category['name']} ({category['id']})"
        for category in categories
    }


def _chosen_images(images: dict[int, dict[str, Any]], image_ids: Iterable[int] | None) -> set[int]:
    chosen = set(images) if image_ids is None else {int(image_id) for image_id in image_ids}
    unknown = sorted(chosen - set(images))
    if unknown:
        raise ValueError(
            f"image_ids names {len(unknown)} images that the ground truth does not have, first {unknown[0]}; "
            f"it has {len(images)} images: pass ids of its 'images' list"
        )
    return chosen


def _checked_results(
    results: Sequence[dict[str, Any]], images: dict[int, dict[str, Any]], categories: set[int], chosen: set[int]
) -> list[dict[str, Any]]:
    """The results on the chosen images.  Raises ValueError if any result, on any image, is malformed."""
    for index, result in enumerate(results):
        missing = [field for field in RESULT_FIELDS if field not in result]
        if missing:
            raise ValueError(f"result {index} has no {missing[0]!r}; a COCO result has {', '.join(RESULT_FIELDS)}")
        if result["image_id"] not in images:
            raise ValueError(
                f"result {index} is on image {result['image_id']}, which the ground truth does not have; "
                "evaluate against the annotations of the predicted images"
            )
        if result["category_id"] not in categories:
            raise ValueError(
                f"result {index} on image {result['image_id']} has category {result['category_id']}; the ground truth "
                f"has {sorted(categories)[:20]}: give original COCO category ids, not class indices"
            )
        if not math.isfinite(result["score"]):
            raise ValueError(
                f"result {index} on image {result['image_id']} has score {result['score']}, expected a finite number"
            )
    return [result for result in results if result["image_id"] in chosen]


def _truth_index(ground_truth: dict[str, Any], chosen: set[int]) -> COCO:
    """pycocotools' index of copies of the annotations, because COCOeval writes into them."""
    index = COCO()
    annotations = []
    for position, annotation in enumerate(ground_truth["annotations"]):
        if annotation["image_id"] in chosen:
            # Ids start at 1 because COCOeval reads id 0 as "unmatched".
            crowd = int(flag(annotation.get("iscrowd")))
            annotations.append({**annotation, "iscrowd": crowd, "id": position + 1})
    images = [image for image in ground_truth["images"] if image["id"] in chosen]
    index.dataset = {"images": images, "annotations": annotations, "categories": ground_truth["categories"]}
    index.createIndex()
    for annotation in annotations:
        # COCO's published figures use the stated areas, of polygons; `LabeledImages.ground_truth` states mask areas.
        if "area" not in annotation:
            annotation["area"] = float(rle.area(index.annToRLE(annotation)))
    return index


def _result_index(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> COCO:
    """pycocotools' index of the results; COCO.loadRes rejects an empty list and writes into the caller's dicts."""
    index = COCO()
    annotations = [
        {**result, "id": position + 1, "iscrowd": 0, "area": float(rle.area(result["segmentation"]))}
        for position, result in enumerate(results)
    ]
    index.dataset = {
        "images": ground_truth["images"],
        "annotations": annotations,
        "categories": ground_truth["categories"],
    }
    index.createIndex()
    return index
