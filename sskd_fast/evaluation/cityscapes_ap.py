"""Cityscapes average precision, computed by cityscapesscripts on predictions in memory.

cityscapesscripts matches predictions to instances image by image (`assignGt2Preds`) and counts the pixels of whole
images for each pair.  Here it gets only the bounding box of each prediction: the counts, and so the AP, are the same.
"""

from __future__ import annotations

import io
import math
import types
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sskd_fast.rle import box_of_rle

_MISSING = (
    "Cityscapes AP needs cityscapesscripts, which is not installed: pip install 'sskd_fast[cityscapes]' "
    "(or cityscapesscripts)"
)


@dataclass(frozen=True)
class CityscapesAP:
    """Average precision in percent, NaN without ground truth.

    ap: mean over IoU 0.50:0.05:0.95 and the classes.  ap50: at IoU 0.50.  per_class: ap by class name, without NaN.
    """

    ap: float
    ap50: float
    per_class: dict[str, float]


def official_evaluation() -> Any:
    """The evaluation module of cityscapesscripts.  Raises ImportError with the cure if it is not installed.

    The module calls numpy.in1d, which newer versions of NumPy have dropped; there it gets NumPy's isin instead.
    """
    try:
        from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official
    except ImportError as error:
        raise ImportError(_MISSING) from error
    if not hasattr(official.np, "in1d"):
        official.np = types.SimpleNamespace(**vars(np), in1d=np.isin)
    return official


def evaluate_cityscapes(label_files: Mapping[int, Path], results: Sequence[Mapping[str, Any]]) -> CityscapesAP:
    """Cityscapes AP of a COCO results list.

    label_files: image id -> its *_gtFine_instanceIds.png.  results: RLE masks with label ids (24 person, ...) as
    category ids.  Raises ImportError if cityscapesscripts is missing, and ValueError for a result on an image that is
    not listed.
    """
    official = official_evaluation()
    settings = _settings(official)
    by_image: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in label_files}
    for index, result in enumerate(results):
        if result["image_id"] not in by_image:
            raise ValueError(f"result {index} is on image {result['image_id']}; expected one of {len(by_image)} images")
        by_image[result["image_id"]].append(result)
    matches = {}
    for image_id, path in label_files.items():
        instances = official.instances2dict([str(path)])
        known = official.filterGtInstances(next(iter(instances.values())), settings)
        truth, predictions = _matched(official, settings, known, np.asarray(Image.open(path)), by_image[image_id])
        matches[str(path)] = {"groundTruth": truth, "prediction": predictions}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)  # no instance at all: NaN
        averages = official.computeAverages(official.evaluateMatches(matches, settings), settings)
    per_class = {name: 100.0 * float(value["ap"]) for name, value in averages["classes"].items()}
    return CityscapesAP(
        ap=100.0 * float(averages["allAp"]),
        ap50=100.0 * float(averages["allAp50%"]),
        per_class={name: value for name, value in per_class.items() if not math.isnan(value)},
    )


def _settings(official: Any) -> Any:
    """The parameters of the official evaluation."""
    settings = official.CArgs()
    vars(settings).update(vars(official.args))
    official.setInstanceLabels(settings)
    return settings


def _matched(
    official: Any,
    settings: Any,
    known: dict[str, list[dict[str, Any]]],
    codes: NDArray[Any],
    results: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[dict[str, Any]]]]:
    """The instances of an image with the predictions that overlap them, and vice versa."""
    truth = {name: [{**instance, "matchedPred": []} for instance in group] for name, group in known.items()}
    predictions: dict[str, list[dict[str, Any]]] = {name: [] for name in settings.instLabels}
    for result in results:
        mask, top, left = box_of_rle(result["segmentation"])
        name = official.id2label[result["category_id"]].name
        if not mask.size or name not in predictions:
            continue
        box = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
        info = {_picture(mask): {"labelID": result["category_id"], "conf": result["score"]}}
        met, found = official.assignGt2Preds({name: known[name]}, codes[box], info, settings)
        for instance, known_instance in zip(met[name], truth[name], strict=True):
            known_instance["matchedPred"].extend(instance["matchedPred"])
        predictions[name].extend(found[name])
    return truth, predictions


def _picture(mask: NDArray[np.bool_]) -> io.BytesIO:
    """A mask as an image file in memory, the form that cityscapesscripts reads."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(file, "PPM")
    file.seek(0)
    return file
