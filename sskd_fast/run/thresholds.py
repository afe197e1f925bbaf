"""Thresholds of a run's pseudo-labels, from predictions on labelled images by models that have not seen them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from sskd_fast import ranks
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.source import ImageCollection
from sskd_fast.files import write_json
from sskd_fast.journal import parse_record
from sskd_fast.method import STAGE
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.pseudo_labels import (
    Selection,
    cache_key,
    calibrate_thresholds,
    equally_many,
    label_images,
    select_labels,
)
from sskd_fast.run.models import RunModels
from sskd_fast.source_prediction import IMAGES_AT_ONCE
from sskd_fast.train.progress import Log

# Number of unlabelled images on which a teacher and its fold models are compared.
MAPPED_IMAGES = 100


def kept_selection(models: RunModels, log: Log, model: Segmenter, teacher: str) -> Selection:
    """The choice of labels that shards of this teacher were made with, calibrated if there is none yet.

    It is kept in thresholds.json beside the shards, so that images that come later are labelled with the thresholds of
    the others.  It holds for the same teacher, settings and labelled images.
    """
    file = models.results.shards_path(teacher) / "thresholds.json"
    settings = {name: value for name, value in vars(models.config.pseudo_labels).items() if name != "shard"}
    settings |= prediction_settings(models, models.inference_of(model.config))
    key = cache_key(model.state_dict(), settings | {n: models.contents[n] for n in ("labels", "labelled images")})
    images = models.contents["unlabelled images"]
    kept = parse_record(file.read_bytes()) if file.is_file() else None
    if kept is not None and kept.get("key") == key:
        if kept["images"] != images:
            log.say(
                f"  thresholds of {file} stay as they are with other unlabelled images; to calibrate anew, remove it"
            )
        return Selection.of_dict(kept["selection"])
    sample = cached_predictions(models, model, teacher, compared_images(models.sources.unlabeled))
    selection = label_selection(models, model, teacher, sample)
    write_json(file, {"key": key, "images": images, "selection": dataclasses.asdict(selection)})
    return selection


def label_selection(models: RunModels, model: Segmenter, teacher: str, raw: list[dict[str, Any]]) -> Selection:
    """The choice of labels by calibrated thresholds.

    raw: the teacher's predictions on unlabelled images, including all `compared_images`.
    """
    config = models.config.pseudo_labels
    thresholds = Thresholds.of(models, model, teacher, raw)
    sure_from, unsure_from = thresholds.at(config.target_precision), None
    if config.unsure_precision > 0:
        unsure_from = {c: min(t, sure_from[c]) for c, t in thresholds.at(config.unsure_precision, quiet=True).items()}
    return Selection(sure_from, unsure_from, config.nms_iou, config.labels_limit(models.sources.detections))


def compared_images(source: ImageCollection) -> ImageCollection:
    """The unlabelled images on which a teacher and its fold models are compared."""
    return source.subset(source.image_ids[:: -(-len(source) // MAPPED_IMAGES)])


@dataclass(frozen=True)
class Thresholds:
    """The predictions that a teacher's thresholds come from.

    unseen: predictions on every labelled image by a model not trained on that image.  sample, of_folds: predictions of
    the teacher and of each fold model on the same unlabelled images; empty if the teacher itself made `unseen`.
    """

    models: RunModels
    unseen: list[dict[str, Any]]
    sample: list[dict[str, Any]]
    of_folds: list[list[dict[str, Any]]]

    @classmethod
    def of(cls, models: RunModels, model: Segmenter, teacher: str, raw: list[dict[str, Any]]) -> Thresholds:
        """The predictions of a teacher; raw: on the unlabelled images.

        An untrained teacher has seen no label.  A trained one has fold models; raises FileNotFoundError if they are
        missing.
        """
        labeled, plain, folds = models.sources.labeled, models.sources.unlabeled, models.sources.folds
        if not model.config.trainable or not STAGE[teacher].budget:
            return cls(models, cached_predictions(models, model, teacher, labeled), [], [])
        few = compared_images(plain)
        unseen, of_folds = [], []
        for number, fold in enumerate(folds, 1):
            name = models.results.fold_name(teacher, number, len(folds))
            fold_model = models.load_fold(teacher, number)
            unseen += cached_predictions(models, fold_model, name, labeled.subset(fold))
            of_folds.append(cached_predictions(models, fold_model, name, few))
        chosen = set(few.image_ids)
        return cls(models, unseen, [r for r in raw if r["image_id"] in chosen], of_folds)

    def at(self, precision: float, quiet: bool = False) -> dict[int, float]:
        """Category id -> score from which on the teacher's labels have this precision."""
        config, floor = self.models.config.pseudo_labels, self.models.config.predict.score_floor
        thresholds = calibrate_thresholds(
            self.unseen, self.models.sources.labeled.ground_truth(), target_precision=precision, iou=config.iou,
            minimum_matches=config.minimum_matches, shrink=config.shrink, floor=floor, quiet=quiet,
        )  # fmt: skip
        if not self.of_folds:
            return thresholds
        return equally_many(thresholds, self.sample, self.of_folds, floor=floor)


def cached_predictions(models: RunModels, model: Segmenter, name: str, source: ImageCollection) -> list[dict[str, Any]]:
    """All scored predictions of a model on the images of a source, averaged over the label views; cached, resumable.

    If several predictions cover an object, the best-scored stays, since precision counts objects.  This also holds for
    predictions read from a file.  name: of the model; labelled and unlabelled images have separate files.
    """
    views = models.label_views
    index_of = {image_id: i for i, image_id in enumerate(source.image_ids)}
    images = "labeled" if isinstance(source, LabeledImages) else "unlabeled"
    key = cache_key(model.state_dict(), _labels_key(models, models.inference_of(model.config), source))
    words = name.removeprefix("folds/").replace("_", " ")
    with tqdm(total=len(source), desc=f"{images} images by the {words}", mininterval=1.0) as bar:

        def show(done: int, _: int) -> None:
            bar.update(done - bar.n)

        found = label_images(
            lambda ids: models.predict(model, source, [index_of[i] for i in ids], views),
            source.image_ids,
            models.results.cache_path(name, images),
            key=key,
            chunk=IMAGES_AT_ONCE * ranks.count(),
            progress=show,
        )
    config = models.config.pseudo_labels
    limit = config.labels_limit(models.sources.detections)
    return select_labels(found, 0.0, nms_iou=config.nms_iou, max_per_image=limit)


def _labels_key(models: RunModels, inference: InferenceConfig, source: ImageCollection) -> dict[str, Any]:
    """The settings and images that predictions depend on, besides the model's weights."""
    content = models.contents["labelled images" if isinstance(source, LabeledImages) else "unlabelled images"]
    return prediction_settings(models, inference) | {"images": content}


def prediction_settings(models: RunModels, inference: InferenceConfig) -> dict[str, Any]:
    """The settings that predictions depend on."""
    views = models.label_views
    return dataclasses.asdict(inference) | {"views": [dataclasses.astuple(view) for view in views]}
