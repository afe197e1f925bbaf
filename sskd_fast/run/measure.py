"""Figures of a model on a run's validation images, and the gain of one over another."""

from __future__ import annotations

import dataclasses
from typing import Any

from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.official_titles import OFFICIAL_TITLES
from sskd_fast.evaluation import compare_masks, evaluate_masks, official_figures
from sskd_fast.method import BASELINE
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.report import final_student
from sskd_fast.run.models import RunModels
from sskd_fast.run.results import Row, RunResults
from sskd_fast.settings import Config


def measure(models: RunModels, name: str, model: Segmenter, seconds: float) -> Row:
    """Predicts the validation images and writes predictions/<name>.json, the row and its entry of details.json.

    details.json holds, by row, AP75, AP by size and by class, AP of the images of each value of `data.balance_key`, and
    the figures of the data set's own evaluation.
    """
    source, results, config = models.sources.val, models.results, models.config
    predictions = models.predict(model, source)
    results.write_predictions(name, predictions, source)
    measured = evaluate_masks(source.ground_truth(), predictions, max_detections=config.predict.max_detections)
    official = official_figures(source, predictions)
    by_group = _by_group(source, predictions, config.data.balance_key, config.predict.max_detections)
    results.write_details(name, dataclasses.asdict(measured) | by_group | official)
    own = {f"{judge}_{key}": figures[key] for judge, figures in official.items() for key in OFFICIAL_TITLES[judge]}
    row = Row(name, measured.ap, measured.ap50, model.parameter_count(), seconds, own)
    results.add_row(row)
    return row


def _by_group(
    source: LabeledImages, predictions: list[dict[str, Any]], key: str, limit: int
) -> dict[str, dict[str, float]]:
    """AP of the images of each value of an image field, if all images have it."""
    groups = _groups(source, key)
    if groups is None:
        return {}
    truth = source.ground_truth()
    ap = {}
    for value in sorted(set(groups.values())):
        images = [i for i, v in groups.items() if v == value]
        ap[value] = evaluate_masks(truth, predictions, max_detections=limit, image_ids=images).ap
    return {f"by_{key}": ap}


def _groups(source: LabeledImages, key: str) -> dict[int, str] | None:
    """The value of an image field by image id; None if there is no such field or an image lacks it."""
    if not key or not all(key in record.extra for record in source.records):
        return None
    return dict(zip(source.image_ids, source.image_field(key), strict=True))


def compare_students(config: Config, source: LabeledImages, results: RunResults) -> None:
    """Adds to the details of the last student that is measured its gain over the supervised one.

    The gain comes with its interval over validation images, or over their groups if `data.group_key` names them.
    """
    rows = {row["name"]: row for row in results.rows}
    student, details = final_student(rows), results.details
    if student is None or BASELINE not in rows or student not in details:
        return
    ours, theirs = results.read_predictions(student), results.read_predictions(BASELINE)
    if ours is None or theirs is None:
        return
    gain = compare_masks(
        source.ground_truth(), ours, theirs, max_detections=config.predict.max_detections,
        groups=_groups(source, config.data.group_key),
    )  # fmt: skip
    results.write_details(student, details[student] | {"gain": dataclasses.asdict(gain)})
