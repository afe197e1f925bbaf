"""Pseudo-labels of a run: a stage's model labels the unlabelled images, thresholds come from the held-out ones."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from sskd_fast.data.files import write_json
from sskd_fast.models.augmented import Augmentation, augmentations
from sskd_fast.pseudo_labels import cache_key, calibrate_thresholds, label_images, label_statistics, select_labels
from sskd_fast.train.experiment import Experiment
from sskd_fast.train.sources import Sources


@dataclass(frozen=True)
class TeacherLabels:
    """results: COCO results to train on, unsure ones with "iscrowd": 1.  stride: of the map they were drawn on."""

    results: list[dict[str, Any]]
    stride: float


def teacher_labels(experiment: Experiment, teacher: str) -> TeacherLabels | None:
    """Labels to train on: sure ones with their scores, unsure ones as crowd regions (neither object nor background).

    They are the teacher's, or with `pseudo_labels.truth` the hidden true ones.  Written to
    pseudo_labels/<teacher>.json; the raw predictions are kept in cache/ so that an interrupted labelling goes on.  None
    where no prediction is sure enough: there is nothing to learn then, background least of all.
    """
    config, sources = experiment.config.pseudo_labels, experiment.sources
    thresholds: dict[int, float] | None = None
    if config.truth:
        labels, stride = _true_labels(sources), 1.0
    else:
        labels, thresholds, stride = _predicted_labels(experiment, teacher)
    write_json(experiment.folder / "pseudo_labels" / f"{teacher}.json", labels)
    names = dict(zip(sources.labeled.category_ids, sources.classes, strict=True))
    sure = [r for r in labels if not r["iscrowd"]]
    statistics = label_statistics(
        sure, sources.unlabeled.image_ids, names, sources.hidden_truth, thresholds=thresholds
    )  # fmt: skip
    _report(experiment, teacher, dataclasses.asdict(statistics))
    if not config.weigh_by_score:
        labels = [r | {"score": 1.0} for r in labels]
    return TeacherLabels(labels, stride) if sure else None


def _true_labels(sources: Sources) -> list[dict[str, Any]]:
    """The hidden annotations of the unlabelled images as labels of score 1; crowds stay crowds."""
    truth = sources.hidden_truth
    assert truth is not None, "target_sources refuses pseudo_labels.truth without hidden labels"
    keys = ("image_id", "category_id", "segmentation", "iscrowd")
    return [{key: a[key] for key in keys} | {"score": 1.0} for a in truth["annotations"]]


def _predicted_labels(experiment: Experiment, teacher: str) -> tuple[list[dict[str, Any]], dict[int, float], float]:
    """The teacher's labels, the score per category from which they are sure, the stride they were drawn at."""
    config, sources = experiment.config.pseudo_labels, experiment.sources
    model = experiment.load(teacher)
    raw = _raw_predictions(experiment, teacher)
    held = experiment.predict(model, sources.holdout, views=label_views(experiment))
    truth = sources.holdout.ground_truth()

    def thresholds(precision: float, quiet: bool) -> dict[int, float]:
        return calibrate_thresholds(
            held, truth, target_precision=precision, iou=config.iou, minimum_matches=config.minimum_matches,
            floor=experiment.config.predict.score_floor, quiet=quiet,
        )  # fmt: skip

    sure_from = thresholds(config.target_precision, quiet=False)
    labels = [r | {"iscrowd": 0} for r in select_labels(raw, sure_from, config.nms_iou, config.max_per_image)]
    if config.unsure_precision > 0:
        unsure_from = {c: min(t, sure_from[c]) for c, t in thresholds(config.unsure_precision, quiet=True).items()}
        every = select_labels(raw, unsure_from, config.nms_iou, config.max_per_image)
        labels += [r | {"iscrowd": 1} for r in every if r["score"] < sure_from[r["category_id"]]]
    return labels, sure_from, model.stride


def label_views(experiment: Experiment) -> list[Augmentation]:
    """The views over which the teacher's predictions are averaged: some of those that training draws."""
    p, v = experiment.config.pseudo_labels, experiment.sources.views
    return augmentations(p.views, p.zooms, hflip=v.hflip, vflip=v.vflip, rot90=v.rot90)


def _raw_predictions(experiment: Experiment, teacher: str) -> list[dict[str, Any]]:
    """All scored predictions of the teacher on the unlabelled images, cached and resumable."""
    model, plain = experiment.load(teacher), experiment.sources.unlabeled
    index_of = {image_id: i for i, image_id in enumerate(plain.image_ids)}
    views = label_views(experiment)
    settings = dataclasses.asdict(experiment.inference) | {"views": [dataclasses.astuple(view) for view in views]}
    key = cache_key(model.state_dict(), settings)
    with tqdm(total=len(plain), desc=f"pseudo-labels of the {teacher.replace('_', ' ')}", mininterval=1.0) as bar:

        def show(done: int, _: int) -> None:
            bar.update(done - bar.n)

        return label_images(
            lambda ids: experiment.predict(model, plain, [index_of[i] for i in ids], views),
            plain.image_ids,
            experiment.folder / "cache" / f"{teacher}.json",
            key=key,
            progress=show,
        )


def _report(experiment: Experiment, teacher: str, statistics: dict[str, Any]) -> None:
    """Statistics to label_statistics.json and the screen; warnings to the log too."""
    path = experiment.folder / "label_statistics.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, known | {teacher: statistics})
    truth = ""
    if statistics["precision"] is not None:
        truth = (
            f"; against hidden ground truth precision {statistics['precision']:.2f}, recall {statistics['recall']:.2f}"
        )
    experiment.log.say(
        f"  {statistics['labels']} pseudo-labels on {statistics['images']} images "
        f"({statistics['labels_per_image']:.1f} an image, "
        f"{100 * statistics['empty_share']:.0f} % of the images empty){truth}"
    )
    for message in statistics["warnings"]:
        experiment.log.write({"event": "warning", "stage": teacher, "message": message})
        experiment.log.say(f"warning: {message}")
