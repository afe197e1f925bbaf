"""Measuring a model on a run's validation images: predictions, its row of metrics.json, finer figures."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from sskd_fast.data.files import write_json
from sskd_fast.evaluation import compare_masks, evaluate_masks, official_figures
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.report import final_student, read_figures
from sskd_fast.train.experiment import Experiment, Results


def measure(experiment: Experiment, name: str, model: Segmenter, seconds: float) -> Results:
    """Predicts the validation images and writes predictions/<name>.json, the row and its entry of details.json.

    details.json holds, by row, AP75, AP by size and by class, AP of the images of each value of `data.balance_key`, and
    the figures of the data set's own evaluation.
    """
    source, limit = experiment.sources.val, experiment.config.predict.max_detections
    truth, predictions = source.ground_truth(), experiment.predict(model, source)
    experiment.write_predictions(name, predictions)
    measured = evaluate_masks(truth, predictions, max_detections=limit)
    details = dataclasses.asdict(measured)
    key = experiment.config.data.balance_key
    if key and all(key in record.extra for record in source.records):
        values = dict(zip(source.image_ids, source.image_field(key), strict=True))
        details[f"by_{key}"] = {
            value: evaluate_masks(
                truth, predictions, max_detections=limit, image_ids=[i for i, v in values.items() if v == value]
            ).ap
            for value in sorted(set(values.values()))
        }
    official = official_figures(source, predictions)
    details |= official
    _write_details(experiment, name, details)
    own = {f"{judge}_{key}": figures[key] for judge, figures in official.items() for key in ("ap", "ap50")}
    result = Results(name, measured.ap, measured.ap50, model.parameter_count(), seconds, own)
    experiment.add_row(result)
    beside = "".join(f", {key.replace('_', ' ')} {value:.1f}" for key, value in own.items())
    experiment.log.say(
        f"  {name.replace('_', ' ')}: AP {result.ap:.1f}, AP50 {result.ap50:.1f}{beside} on {len(source)} images"
    )
    return result


def compare_students(experiment: Experiment) -> None:
    """Adds to the details of the last student that is measured its gain over the supervised one, with the interval of
    it over validation images, or over their groups where `data.group_key` names them."""
    rows = {row["name"]: row for row in experiment.rows}
    student, baseline = final_student(rows), "supervised_student"
    details = read_figures(experiment.folder)[1]
    if student is None or baseline not in rows or student not in details:
        return
    source, config = experiment.sources.val, experiment.config
    results = [experiment.read_predictions(name) for name in (student, baseline)]
    if results[0] is None or results[1] is None:
        return
    key, groups = config.data.group_key, None
    if key and all(key in record.extra for record in source.records):
        groups = dict(zip(source.image_ids, source.image_field(key), strict=True))
    gain = compare_masks(
        source.ground_truth(), results[0], results[1], max_detections=config.predict.max_detections, groups=groups
    )
    _write_details(experiment, student, details[student] | {"gain": dataclasses.asdict(gain)})


def _write_details(experiment: Experiment, name: str, details: dict[str, Any]) -> None:
    write_json(experiment.folder / "details.json", read_figures(experiment.folder)[1] | {name: _finite(details)})


def _finite(value: Any) -> Any:
    """Rounded figures; null where there is no ground truth to measure on."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    return value
