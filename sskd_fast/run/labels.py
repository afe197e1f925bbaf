"""Pseudo-labels of a run: a stage's model labels the unlabelled images, with thresholds from its fold models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sskd_fast import __version__
from sskd_fast.data.formats.coco import complete_coco
from sskd_fast.files import write_json
from sskd_fast.pseudo_labels import (
    LabelStatistics,
    cache_key,
    label_statistics,
    statistics_by_image,
)
from sskd_fast.run.models import RunModels
from sskd_fast.run.sources import Sources
from sskd_fast.run.thresholds import (
    cached_predictions,
    kept_selection,
    label_selection,
    prediction_settings,
)
from sskd_fast.train.progress import Log

if TYPE_CHECKING:
    from sskd_fast.pseudo_labels.shards import LabelShards
    from sskd_fast.run.shard_labels import ShardLabeller, Work


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

    source, model = models.sources.unlabeled, models.load(teacher)
    selection, views = kept_selection(models, log, model, teacher), models.label_views
    inference = models.inference_of(model.config)
    key = prediction_settings(models, inference) | {"selection": dataclasses.asdict(selection)}
    return ShardLabeller(
        model, inference, views, models.sources.labeled.category_ids, selection, source.images_dir,
        source.stretch, models.results.shards_path(teacher), cache_key(model.state_dict(), key),
    )  # fmt: skip


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
