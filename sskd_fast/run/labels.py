"""Pseudo-labels of a run: a stage's model labels the unlabelled images, with thresholds from its fold models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sskd_fast import __version__, ranks
from sskd_fast.data.formats.coco import complete_coco
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.source import ImageCollection
from sskd_fast.data.views import Views
from sskd_fast.files import write_json
from sskd_fast.journal import parse_record
from sskd_fast.method import STAGE
from sskd_fast.models.augmented import Augmentation, augmentations
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.pseudo_labels import (
    LabelStatistics,
    PseudoLabelConfig,
    Selection,
    cache_key,
    calibrate_thresholds,
    equally_many,
    label_images,
    label_statistics,
    select_labels,
    statistics_by_image,
)
from sskd_fast.run.models import RunModels
from sskd_fast.run.sources import Sources
from sskd_fast.source_prediction import IMAGES_AT_ONCE
from sskd_fast.train.progress import Log

if TYPE_CHECKING:
    from sskd_fast.pseudo_labels.shards import LabelShards
    from sskd_fast.run.shard_labels import ShardLabeller, Work

# Number of unlabelled images on which a teacher and its fold models are compared.
MAPPED_IMAGES = 100


@dataclass(frozen=True)
class TeacherLabels:
    """Pseudo-labels to train on.

    results: COCO results, unsure ones with "iscrowd": 1, or shards of them.  cell: height
    and width, in pixels, of the cells of the maps they come from.
    """

    results: list[dict[str, Any]] | LabelShards
    cell: tuple[float, float]


def teacher_labels(models: RunModels, log: Log, teacher: str) -> TeacherLabels | None:
    """Labels to train on: sure ones with their scores, unsure ones as crowd regions, which training ignores.

    They are the teacher's, empty for teacher "none", or the hidden true labels with `pseudo_labels.truth`.  Written to
    pseudo_labels/<teacher>.json, a complete COCO file; raw predictions are kept in cache/, so that interrupted
    labelling can resume.  With `pseudo_labels.shard`, labels go to shards in pseudo_labels/<teacher>/, and refused
    predictions are not kept.
    None if no prediction is sure enough, since there is then nothing to learn, not even background.
    """
    config, sources, results = models.config.pseudo_labels, models.sources, models.results
    thresholds: dict[int, float] | None = None
    if teacher == "none" and not config.truth:
        return TeacherLabels([], (1.0, 1.0))
    if config.shard and not config.truth:
        return sharded_labels(models, log, teacher)
    if config.truth:
        labels, cell = _true_labels(sources), (1.0, 1.0)
    else:
        labels, thresholds, cell = _predicted_labels(models, teacher)
    write_json(results.labels_path(teacher), _label_file(sources, labels, teacher))
    names = dict(zip(sources.labeled.category_ids, sources.classes, strict=True))
    sure = [r for r in labels if not r["iscrowd"]]
    statistics = label_statistics(sure, sources.unlabeled.image_ids, names, sources.hidden_truth, thresholds=thresholds)
    results.add_label_statistics(teacher, dataclasses.asdict(statistics))
    _say(log, teacher, statistics)
    return TeacherLabels(labels, cell) if sure else None


def sharded_labels(models: RunModels, log: Log, teacher: str, work: Work | None = None) -> TeacherLabels | None:
    """The labels of a teacher in shards, like those of `teacher_labels`; existing shards are kept.

    work: function that labels the missing shards; None for this process.  Raises DataError if some cannot be labelled.
    """
    from sskd_fast.run.shard_labels import label_shards, one_process, shards_of

    sources = models.sources
    labeller = shard_labeller(models, log, teacher)
    shards = label_shards(
        labeller,
        shards_of(sources.unlabeled, models.unlabeled_digests, models.config.pseudo_labels.shard),
        work or one_process,
    )
    sure = ((image_id, [r for r in results if not r["iscrowd"]]) for image_id, results in shards.by_image())
    names = dict(zip(sources.labeled.category_ids, sources.classes, strict=True))
    statistics = statistics_by_image(
        sure, sources.unlabeled.image_ids, names, sources.hidden_truth, thresholds=labeller.selection.sure_from
    )
    models.results.labels_path(teacher).unlink(missing_ok=True)  # labels of the same teacher without shards
    models.results.add_label_statistics(teacher, dataclasses.asdict(statistics) | {"shards": len(shards.paths)})
    _say(log, teacher, statistics)
    return TeacherLabels(shards, labeller.model.cell_size(labeller.inference.tile)) if shards.sure else None


def shard_labeller(models: RunModels, log: Log, teacher: str) -> ShardLabeller:
    """A teacher of the run that labels shards, with thresholds calibrated on the labelled images (`kept_selection`)."""
    from sskd_fast.run.shard_labels import ShardLabeller

    config, source, model = models.config.pseudo_labels, models.sources.unlabeled, models.load(teacher)
    selection, views = kept_selection(models, log, model, teacher), label_views(config, models.sources.views)
    inference = models.inference_of(model.config)
    key = _prediction_settings(models, inference) | {"selection": dataclasses.asdict(selection)}
    return ShardLabeller(
        model, inference, views, models.sources.labeled.category_ids, selection, source.images_dir,
        source.stretch, models.results.shards_path(teacher), cache_key(model.state_dict(), key),
    )  # fmt: skip


def kept_selection(models: RunModels, log: Log, model: Segmenter, teacher: str) -> Selection:
    """The choice of labels that shards of this teacher were made with, calibrated if there is none yet.

    It is kept in thresholds.json beside the shards, so that images that come later are labelled with the thresholds of
    the others.  It holds for the same teacher, settings and labelled images.
    """
    file = models.results.shards_path(teacher) / "thresholds.json"
    settings = {name: value for name, value in vars(models.config.pseudo_labels).items() if name != "shard"}
    settings |= _prediction_settings(models, models.inference_of(model.config))
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


def _label_file(sources: Sources, labels: list[dict[str, Any]], teacher: str) -> dict[str, Any]:
    """The labels with their images, as a COCO instances dict."""
    source = sources.unlabeled
    images = [
        {"id": record.image_id, "file_name": record.file_name, "height": height, "width": width}
        for record, (height, width) in zip(source.records, map(source.size, range(len(source))), strict=True)
    ]
    info = {
        "description": "Pseudo-labels by sskd_fast; iscrowd 1 marks what is too unsure to train on",
        "teacher": teacher,
        "version": __version__,
        "images_dir": str(source.images_dir.resolve()),
    }
    return complete_coco(images, labels, sources.labeled.categories(), info)


def _true_labels(sources: Sources) -> list[dict[str, Any]]:
    """The hidden annotations of the unlabelled images as labels with score 1; crowds stay crowds."""
    truth = sources.hidden_truth
    assert truth is not None, "target_sources refuses pseudo_labels.truth without hidden labels"
    keys = ("image_id", "category_id", "segmentation", "iscrowd")
    return [{key: a[key] for key in keys} | {"score": 1.0} for a in truth["annotations"]]


def _predicted_labels(
    models: RunModels, teacher: str
) -> tuple[list[dict[str, Any]], dict[int, float], tuple[float, float]]:
    """The teacher's labels, category id -> score from which they are sure, and the cell size of their masks."""
    model = models.load(teacher)
    raw = cached_predictions(models, model, teacher, models.sources.unlabeled)
    selection = label_selection(models, model, teacher, raw)
    cell = model.cell_size(models.inference_of(model.config).tile)
    return selection.labels(raw), dict(selection.sure_from), cell


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
            fold_model = models.load_fold(teacher, name)
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


def label_views(config: PseudoLabelConfig, views: Views) -> list[Augmentation]:
    """The views over which the teacher's predictions are averaged: a subset of the views in training."""
    return augmentations(config.views, config.zooms, hflip=views.hflip, vflip=views.vflip, rot90=views.rot90)


def cached_predictions(models: RunModels, model: Segmenter, name: str, source: ImageCollection) -> list[dict[str, Any]]:
    """All scored predictions of a model on the images of a source, averaged over the label views; cached, resumable.

    If several predictions cover an object, the best-scored stays, since precision counts objects.  This also holds for
    predictions read from a file.  name: of the model; labelled and unlabelled images have separate files.
    """
    views = label_views(models.config.pseudo_labels, models.sources.views)
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
    return _prediction_settings(models, inference) | {"images": content}


def _prediction_settings(models: RunModels, inference: InferenceConfig) -> dict[str, Any]:
    """The settings that predictions depend on."""
    views = label_views(models.config.pseudo_labels, models.sources.views)
    return dataclasses.asdict(inference) | {"views": [dataclasses.astuple(view) for view in views]}


def _say(log: Log, teacher: str, found: LabelStatistics) -> None:
    """Prints the statistics; warnings also go to the log."""
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
