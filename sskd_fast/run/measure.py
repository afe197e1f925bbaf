"""Figures of a model on a run's validation images, and gains of one model over another."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.official_titles import OFFICIAL_TITLES
from sskd_fast.evaluation import evaluate_masks, gain_of, official_figures, stride_ceiling
from sskd_fast.evaluation.pairs import compared_pairs, drawn_pairs, image_groups
from sskd_fast.method import COMPARISONS
from sskd_fast.models.augmented import IDENTITY, Augmentation
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.run.made_with import measured_with
from sskd_fast.run.models import RunModels
from sskd_fast.run.results import Row


def measure(
    models: RunModels,
    name: str,
    model: Segmenter,
    cost: Mapping[str, float],
    views: Sequence[Augmentation] = IDENTITY,
    made: str = "",
) -> Row:
    """Predicts the validation images and writes predictions/<name>.json, the row and its entry of details.json.

    cost: of the model's training, the fields of `Cost`.  views: of each image; predictions are averaged over them.
    made: key of the model's basis, "" if none was kept.
    details.json has, for each row, AP75, AP by size and by class, and AP for each value of `data.balance_key`.  It
    also has the figures of the data set's own evaluation.
    """
    source, results, limit = models.sources.val, models.results, models.sources.detections
    predictions = models.predict(model, source, views=views)
    results.write_predictions(name, predictions, source)
    measured = evaluate_masks(source.ground_truth(), predictions, max_detections=limit)
    official = official_figures(source, predictions)
    by_group = _by_group(source, predictions, models.config.data.balance_key, limit)
    results.write_details(name, dataclasses.asdict(measured) | by_group | official)
    own = {f"{judge}_{key}": figures[key] for judge, figures in official.items() for key in OFFICIAL_TITLES[judge]}
    params = model.parameter_count()
    on = results.keep_basis(measured_with(models))
    row = Row(name, measured.ap, measured.ap50, params, mask_stride(models, model), cost, len(views), own, made, on)
    results.add_row(row)
    return row


def mask_stride(models: RunModels, model: Segmenter) -> float:
    """Side of a cell of a model's masks, in pixels of an image as training scales it.

    With `predict.fit`, a tile of the model's own shows images at another scale; the mean of the validation images
    counts.
    """
    own, trained, val = models.inference_of(model.config), models.trained_at, models.sources.val
    sizes = [val.size(index) for index in range(len(val))] if own.tile != trained.tile else []
    scale = statistics.fmean(trained.zoom_of(size) / own.zoom_of(size) for size in sizes) if sizes else 1.0
    return round(scale * math.sqrt(math.prod(model.cell_size(own.tile))), 2)


def _by_group(
    source: LabeledImages, predictions: list[dict[str, Any]], key: str, limit: int
) -> dict[str, dict[str, float]]:
    """Value of an image field -> AP on its images; empty unless all images have the field."""
    truth = source.ground_truth()
    groups = image_groups(truth, key)
    if groups is None:
        return {}
    ap = {}
    for value in sorted(set(groups.values())):
        images = [i for i, v in groups.items() if v == value]
        ap[value] = evaluate_masks(truth, predictions, max_detections=limit, image_ids=images).ap
    return {f"by_{key}": ap}


def compare_students(models: RunModels) -> None:
    """Writes "gains" and "ceilings" to details.json.

    gains: for each pair of COMPARISONS whose rows are measured with the current ground truth and settings,
    {"model", "against", "stride", "model_ap", "against_ap", "ap", "low", "high"}.  That is both AP, their
    difference and its 95 % interval over validation images, or over groups if `data.group_key` names them.  stride:
    null for masks as predicted.  If one model's masks are finer than the other's, a second entry has both at the
    coarser stride.
    ceilings: stride as text -> AP of perfect masks at this stride, for the strides of all rows.
    """
    source, config, zoom = models.sources.val, models.config, models.trained_at.zoom_of
    truth, limit = source.ground_truth(), models.sources.detections
    now = measured_with(models).key
    strides = {row["name"]: row.get("stride") for row in models.results.rows if row.get("measured_with") == now}
    results = {name: found for name in strides if (found := models.results.read_predictions(name)) is not None}
    pairs = compared_pairs(strides, [pair for pair in COMPARISONS if set(pair) <= set(results)])
    drawn = drawn_pairs(
        truth, results, strides, pairs, zoom=zoom, max_detections=limit, group_key=config.data.group_key
    )
    gains = []
    for (model, against, stride), (ours, theirs) in zip(pairs, drawn, strict=True):
        figures = {"model_ap": float(ours[0]), "against_ap": float(theirs[0])}
        gain = dataclasses.asdict(gain_of(ours - theirs))
        gains.append({"model": model, "against": against, "stride": stride} | figures | gain)
    models.results.write_details("gains", gains)
    drawn_at = sorted({stride for stride in strides.values() if stride is not None})
    ceilings = {f"{stride:g}": stride_ceiling(truth, stride, zoom, limit) for stride in drawn_at}
    models.results.write_details("ceilings", ceilings)
