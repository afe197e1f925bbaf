"""Pseudo-labels of a run: a stage's model labels the unlabelled images, thresholds come from the held-out ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from sskd_fast.data.views import Views
from sskd_fast.files import write_json
from sskd_fast.method import STAGE
from sskd_fast.models.augmented import Augmentation, augmentations
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.pseudo_labels import (
    LabelStatistics,
    PseudoLabelConfig,
    cache_key,
    calibrate_thresholds,
    label_images,
    label_statistics,
    select_labels,
)
from sskd_fast.run.models import RunModels
from sskd_fast.run.sources import Sources
from sskd_fast.train.progress import Log


@dataclass(frozen=True)
class TeacherLabels:
    """results: COCO results to train on, unsure ones with "iscrowd": 1.  stride: of the map they were drawn on."""

    results: list[dict[str, Any]]
    stride: float


def teacher_labels(models: RunModels, log: Log, teacher: str) -> TeacherLabels | None:
    """Labels to train on: sure ones with their scores, unsure ones as crowd regions (neither object nor background).

    They are the teacher's, or with `pseudo_labels.truth` the hidden true ones.  Written to
    pseudo_labels/<teacher>.json; the raw predictions are kept in cache/ so that an interrupted labelling goes on.  None
    if no prediction is sure enough: there is nothing to learn then, background least of all.
    """
    config, sources, results = models.config.pseudo_labels, models.sources, models.results
    thresholds: dict[int, float] | None = None
    if config.truth:
        labels, stride = _true_labels(sources), 1.0
    else:
        labels, thresholds, stride = _predicted_labels(models, teacher)
    write_json(results.labels_path(teacher), labels)
    names = dict(zip(sources.labeled.category_ids, sources.classes, strict=True))
    sure = [r for r in labels if not r["iscrowd"]]
    statistics = label_statistics(
        sure, sources.unlabeled.image_ids, names, sources.hidden_truth, thresholds=thresholds
    )  # fmt: skip
    results.add_label_statistics(teacher, dataclasses.asdict(statistics))
    _say(log, teacher, statistics)
    if not config.weigh_by_score:
        labels = [r | {"score": 1.0} for r in labels]
    return TeacherLabels(labels, stride) if sure else None


def _true_labels(sources: Sources) -> list[dict[str, Any]]:
    """The hidden annotations of the unlabelled images as labels of score 1; crowds stay crowds."""
    truth = sources.hidden_truth
    assert truth is not None, "target_sources refuses pseudo_labels.truth without hidden labels"
    keys = ("image_id", "category_id", "segmentation", "iscrowd")
    return [{key: a[key] for key in keys} | {"score": 1.0} for a in truth["annotations"]]


def _predicted_labels(models: RunModels, teacher: str) -> tuple[list[dict[str, Any]], dict[int, float], float]:
    """The teacher's labels, the score per category from which they are sure, the stride they were drawn at."""
    config, sources = models.config.pseudo_labels, models.sources
    model, views = models.load(teacher), label_views(config, sources.views)
    raw = _raw_predictions(models, model, teacher, views)
    held = models.predict(model, sources.holdout, views=views)
    truth = sources.holdout.ground_truth()

    def thresholds(precision: float, quiet: bool) -> dict[int, float]:
        return calibrate_thresholds(
            held, truth, target_precision=precision, iou=config.iou, minimum_matches=config.minimum_matches,
            floor=models.config.predict.score_floor, quiet=quiet,
        )  # fmt: skip

    limits: Any = {"nms_iou": config.nms_iou, "max_per_image": config.max_per_image}
    sure_from = thresholds(config.target_precision, quiet=False)
    labels = [r | {"iscrowd": 0} for r in select_labels(raw, sure_from, **limits)]
    if config.unsure_precision > 0:
        unsure_from = {c: min(t, sure_from[c]) for c, t in thresholds(config.unsure_precision, quiet=True).items()}
        every = select_labels(raw, unsure_from, **limits)
        labels += [r | {"iscrowd": 1} for r in every if r["score"] < sure_from[r["category_id"]]]
    return labels, sure_from, model.stride


def label_views(config: PseudoLabelConfig, views: Views) -> list[Augmentation]:
    """The views over which the teacher's predictions are averaged: some of those that training draws."""
    return augmentations(config.views, config.zooms, hflip=views.hflip, vflip=views.vflip, rot90=views.rot90)


def _raw_predictions(
    models: RunModels, model: Segmenter, teacher: str, views: list[Augmentation]
) -> list[dict[str, Any]]:
    """All scored predictions of the teacher on the unlabelled images, cached and resumable."""
    plain = models.sources.unlabeled
    index_of = {image_id: i for i, image_id in enumerate(plain.image_ids)}
    settings = dataclasses.asdict(models.inference) | {"views": [dataclasses.astuple(view) for view in views]}
    key = cache_key(model.state_dict(), settings)
    with tqdm(total=len(plain), desc=f"pseudo-labels of the {STAGE[teacher].words}", mininterval=1.0) as bar:

        def show(done: int, _: int) -> None:
            bar.update(done - bar.n)

        return label_images(
            lambda ids: models.predict(model, plain, [index_of[i] for i in ids], views),
            plain.image_ids,
            models.results.raw_labels_path(teacher),
            key=key,
            progress=show,
        )


def _say(log: Log, teacher: str, found: LabelStatistics) -> None:
    """Statistics to the screen; warnings to the log too."""
    truth = ""
    if found.precision is not None:
        truth = f"; against hidden ground truth precision {found.precision:.2f}, recall {found.recall:.2f}"
    log.say(
        f"  {found.labels} pseudo-labels on {found.images} images ({found.labels_per_image:.1f} an image, "
        f"{100 * found.empty_share:.0f} % of the images empty){truth}"
    )
    for message in found.warnings:
        log.write({"event": "warning", "stage": teacher, "message": message})
        log.say(f"warning: {message}")
