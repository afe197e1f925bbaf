"""The models of a run: built for its classes, loaded with initial or final weights, and applied."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from sskd_fast.data.errors import named
from sskd_fast.data.source import ImageCollection
from sskd_fast.method import FITTED, STAGE, Stage
from sskd_fast.models.augmented import IDENTITY, Augmentation, augmentations
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.checkpoint import (
    Description,
    Origin,
    Origins,
    describe_again,
    load_weights,
    missing_fields,
    read_metadata,
    save_checkpoint,
)
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.licences import Ancestor, ancestors_of, as_labels, distinct
from sskd_fast.models.packaged import PACKAGED
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.models.settings import PACKAGE, ModelConfig
from sskd_fast.run.basis import foundations
from sskd_fast.run.contents import Digests, digests_of, model_contents, set_contents
from sskd_fast.run.given_results import check_results
from sskd_fast.run.results import RunResults, spanning_rows
from sskd_fast.run.sources import Sources
from sskd_fast.settings import Config
from sskd_fast.source_prediction import predict_source

SHIPPED = Path(__file__).parent.parent / "weights"


@dataclass
class RunModels:
    """Builds, loads and applies the models of a run, from its settings and image sets."""

    config: Config
    sources: Sources
    results: RunResults
    device: torch.device

    def foundation_weights(self, model: Literal["teacher", "student"]) -> Path | None:
        """The safetensors file that a model starts from.

        None for a random start, or if the model's own settings name the weights.  Raises FileNotFoundError if the file
        is missing.
        """
        value = self.config.teacher_weights if model == "teacher" else self.config.student_weights
        config: ModelConfig = getattr(self.config, model)
        if not value or (value == "embedded" and (config.kind, config.backbone) != ("mask_transformer", "conv")):
            return None
        path = SHIPPED / f"{model}.safetensors" if value == "embedded" else Path(value)
        if not path.exists():
            raise FileNotFoundError(
                f"{model}_weights: {path} does not exist; give a safetensors file, 'embedded' or '' for none"
            )
        return path

    def config_of(self, stage: Stage) -> ModelConfig:
        """The settings of a stage's model; for a zero-shot teacher that another is fitted to, those of its file."""
        config: ModelConfig = getattr(self.config, stage.model)
        if config.warm_start and stage.start == "pretrained" and not stage.budget:
            return dataclasses.replace(config, kind=config.warm_start, warm_start="")
        return config

    def build(
        self, model: Literal["teacher", "student"], *, weights: bool = True, config: ModelConfig | None = None
    ) -> Segmenter:
        """The teacher or the student for the run's classes and queries.

        weights: True to load the weights that its settings name.  config: settings to use instead of the run's.
        """
        config = dataclasses.replace(config or getattr(self.config, model), num_queries=self.sources.num_queries)
        built, s = build_segmenter(config, self.sources.classes, weights=weights), self.sources
        every = [r for part in (s.labeled, s.unlabeled, s.val) for r in part.records]
        built.check_images(record.named_by for record in every)
        return built

    def start(self, stage: Stage, fold: int = 0) -> Segmenter:
        """The stage's model with its initial weights, on the run's device.

        fold: number of a held-out fold, 0 for none.  Its model starts from a fitted teacher that has not seen the fold.
        Raises FileNotFoundError if that teacher was not trained with this number of folds.
        """
        config, classes = self.config_of(stage), self.sources.classes
        model, weights = self.build(stage.model, config=config), self.foundation_weights(stage.model)
        if stage.start == "pretrained" and config.warm_start and stage.name != FITTED:
            fitted = self._fold_weights(FITTED, fold) if fold else self.results.weights_path(FITTED)
            load_weights(model, fitted, classes)
        elif stage.start == "pretrained" and weights is not None and config.trainable:
            load_weights(model, weights, classes, required=False)
        elif stage.start == "backbone" and weights is not None:
            load_weights(model, weights, classes, parts=model.reusable_parts, required=False)
        elif stage.start in STAGE:
            load_weights(model, self.results.weights_path(stage.start), classes)
        return self._placed(model)

    def load(self, stage: str) -> Segmenter:
        """The finished model of a stage; the initial model if the stage does not train."""
        if not STAGE[stage].budget:
            return self.start(STAGE[stage])
        model = self.build(STAGE[stage].model, weights=False, config=self.config_of(STAGE[stage]))
        if model.config.trainable:
            load_weights(model, self.results.weights_path(stage), self.sources.classes)
        return self._placed(model)

    def load_fold(self, stage: str, number: int) -> Segmenter:
        """A fold model of a stage.  Raises FileNotFoundError if the stage was not trained with this number of folds."""
        model = self.build(STAGE[stage].model, weights=False)
        load_weights(model, self._fold_weights(stage, number), self.sources.classes)
        return self._placed(model)

    def _fold_weights(self, stage: str, number: int) -> Path:
        path = self.results.weights_path(self.results.fold_name(stage, number, len(self.sources.folds)))
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist: leave pseudo_labels.folds as it was, or train the {STAGE[stage].words} again "
                "with --stage adapt"
            )
        return path

    def save(self, stage: str, model: Segmenter, facts: Mapping[str, Any]) -> None:
        """Writes a stage's finished model with everything that inference needs; facts: such as steps and seconds."""
        s = self.sources
        description = Description(
            model=model.config,
            class_names=tuple(s.classes),
            category_ids=tuple(s.labeled.category_ids),
            inference=self.inference_of(model.config),
            stretch=s.labeled.stretch,
            views=self.label_views,
            origins=self.origins,
            ancestors=self.ancestors(facts.get("stage", stage)),
            facts=dict(facts),
        )
        save_checkpoint(self.results.weights_path(stage), model, description)

    def complete(self, stage: str) -> None:
        """Rewrites a stage's checkpoint if an earlier version, which saved less, wrote it."""
        path = self.results.weights_path(stage)
        metadata = read_metadata(path)
        if missing_fields(metadata):
            self.save(stage, self.load(stage), metadata.get("facts", {}))

    @property
    def origins(self) -> Origins:
        """Licences and sources stated in the settings, and those of the embedded weights and images."""
        stated, shipped = self.config.origins, Origin("Apache-2.0", "ships with sskd_fast")
        own, student = self.config.data.own, self.config.student
        packaged = PACKAGED.get(student.backbone.removeprefix("timm/"))
        if packaged is not None and student.backbone_checkpoint == PACKAGE and stated.backbone == Origin():
            stated = dataclasses.replace(stated, backbone=Origin(packaged.licence, packaged.source))
        return Origins(
            teacher=shipped if self._shipped("teacher", stated.teacher) else stated.teacher,
            backbone=shipped if self._shipped("student", stated.backbone) else stated.backbone,
            data=stated.data if own or stated.data != Origin() else Origin("Apache-2.0", "drawn by sskd_fast"),
        )

    def ancestors(self, stage: str) -> tuple[Ancestor, ...]:
        """The models that a stage's model starts from and, if a teacher labelled for it, those of the teacher."""
        own = self._ancestors(STAGE[stage].model)
        kinds = {STAGE[name].model for name in foundations(self.config, stage)}
        taught = STAGE[stage].model == "student" and "teacher" in kinds
        return own + (as_labels(self._ancestors("teacher")) if taught else ())

    def _ancestors(self, model: Literal["teacher", "student"]) -> tuple[Ancestor, ...]:
        weights = self.foundation_weights(model)
        written = read_metadata(weights).get("ancestors", []) if weights is not None else []
        return distinct((*ancestors_of(getattr(self.config, model)), *(Ancestor(**fields) for fields in written)))

    def _shipped(self, model: Literal["teacher", "student"], stated: Origin) -> bool:
        weights = self.foundation_weights(model)
        return stated == Origin() and weights is not None and weights.parent == SHIPPED

    def add_figures(self, stages: Iterable[str]) -> None:
        """Adds the run's figures so far, inference settings and origins to these stages' checkpoints."""
        rows = {row["name"]: row for row in self.results.rows}
        for stage in stages:
            path = self.results.weights_path(stage)
            if stage in rows and path.exists():
                self.complete(stage)
                figures = {key: rows[stage][key] for key in ("ap", "ap50")} | dict(self.results.header)
                figures |= {"rows": list(rows.values()), **spanning_rows(self.results.details)}
                inference = self.inference_of(self.config_of(STAGE[stage]))
                made_from: dict[str, Any] = {"origins": self.origins, "ancestors": self.ancestors(stage)}
                describe_again(path, figures=figures, inference=inference, views=self.label_views, **made_from)

    def _placed(self, model: Segmenter) -> Segmenter:
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def inference_of(self, model: ModelConfig) -> InferenceConfig:
        """The inference settings of a model: in its own `tile`, else `predict.tile`, else the training crop."""
        predict, sources = self.config.predict, self.sources
        if any(model.tile):
            predict = dataclasses.replace(predict, tile=model.tile)
        return predict.resolved(sources.views.size, sources.zoom, sources.detections)

    @property
    def trained_at(self) -> InferenceConfig:
        """The settings of prediction in tiles of the size of a training crop, and so at its scale."""
        predict = dataclasses.replace(self.config.predict, tile=self.sources.views.size)
        return predict.resolved(self.sources.views.size, self.sources.zoom, self.sources.detections)

    @property
    def label_views(self) -> tuple[Augmentation, ...]:
        """The views over which the teacher's predictions are averaged: a subset of the views in training."""
        labels, views = self.config.pseudo_labels, self.sources.views
        flips = {"hflip": views.hflip, "vflip": views.vflip, "rot90": views.rot90}
        return tuple(augmentations(labels.views, labels.zooms, **flips))

    @cached_property
    def contents(self) -> dict[str, str]:
        """Description -> hash of the files that the run reads; computed once."""
        found = set_contents(self.sources, self.unlabeled_digests)
        for kind in ("teacher", "student"):
            config: ModelConfig = getattr(self.config, kind)
            found |= model_contents(kind, config, self.foundation_weights(kind))
        return found

    @cached_property
    def unlabeled_digests(self) -> Digests:
        """The digests of the files of the unlabelled images; computed once."""
        return digests_of(self.sources.unlabeled)

    def predict(
        self,
        model: Segmenter,
        source: ImageCollection,
        indices: Iterable[int] | None = None,
        views: Sequence[Augmentation] = IDENTITY,
    ) -> list[dict[str, Any]]:
        """COCO results of the model on the images of a source, averaged over views of each image.

        Raises FoundationError like `predicted`.
        """
        ids = source.category_ids or self.sources.labeled.category_ids
        return predicted(model, self.inference_of(model.config), source, ids, indices, views)


def predicted(
    model: Segmenter,
    inference: InferenceConfig,
    source: ImageCollection,
    category_ids: Sequence[int],
    indices: Iterable[int] | None = None,
    views: Sequence[Augmentation] = IDENTITY,
) -> list[dict[str, Any]]:
    """Like `predict_source`, but images in the model's file of predictions, if it has one, get those predictions.

    Raises FoundationError if a file of predictions has categories that the data set lacks, or masks of another size
    than their image.
    """
    known: list[dict[str, Any]] = []
    unknown = []
    sizes = {}
    for index in range(len(source)) if indices is None else indices:
        record = source.records[index]
        results = model.results_of(*record.named_by)
        if results is None:
            unknown.append(index)
        elif results:
            known += [{"image_id": record.image_id, **result} for result in results]
            sizes[record.image_id] = source.size(index)
    check_results(known, named(model.config.foundation.results_files), category_ids, sizes)
    return known + predict_source(model, inference, source, category_ids, unknown, views)
