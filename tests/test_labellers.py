"""Labellers of the unlabelled images for the student: another stage, an untrained teacher, or the student itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from sskd_fast.method import STAGE, STAGES
from sskd_fast.run.labels import TeacherLabels, teacher_labels
from sskd_fast.run.models import RunModels
from sskd_fast.run.stages import labelled_by
from sskd_fast.run.thresholds import Thresholds
from sskd_fast.run.training import Training, online_labels, stage_training, training_batches
from sskd_fast.settings import check_settings
from sskd_fast.train.online_labels import OnlineConfig
from sskd_fast.train.progress import Log
from sskd_fast.typed_settings import ConfigError
from sskd_fast.yaml_settings import load_config


def distillation(models: RunModels, results: Sequence[dict[str, Any]] = (), **budget: int) -> Training:
    training = stage_training(models, STAGE["distilled_student"], TeacherLabels(list(results), (2.0, 2.0)))
    return dataclasses.replace(training, budget=dataclasses.replace(training.budget, **budget))


def test_the_settings_name_who_labels_for_the_student_alone() -> None:
    changed = [labelled_by(stage, "supervised_student") for stage in STAGES]
    for stage, own in zip(STAGES, changed, strict=True):
        expected = "supervised_student" if stage.name == "distilled_student" else stage.labels_from
        assert own == dataclasses.replace(stage, labels_from=expected)


def test_an_untrained_teacher_labels_as_it_is(untrained_run: RunModels) -> None:
    model = untrained_run.load("zero_shot_teacher")
    started = untrained_run.start(STAGE["zero_shot_teacher"])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), started.parameters(), strict=True))
    thresholds = Thresholds.of(untrained_run, model, "zero_shot_teacher", [])
    assert thresholds.of_folds == [] and {r["image_id"] for r in thresholds.unseen} <= {*range(1, 12)}
    assert thresholds.unseen


def test_nobody_gives_images_without_labels(untrained_run: RunModels) -> None:
    log = Log(untrained_run.results.folder)
    assert teacher_labels(untrained_run, log, "none") == TeacherLabels([], (1.0, 1.0))
    log.close()
    with pytest.raises(ConfigError, match=r"pseudo_labels\.teacher='none': nothing labels the unlabelled images"):
        check_settings(load_config([], ["pseudo_labels.teacher=none"]))
    check_settings(load_config([], ["pseudo_labels.teacher=none", "online.start=0.3"]))


def test_the_moving_average_labels_in_the_distillation_alone(untrained_run: RunModels) -> None:
    config, training = untrained_run.config, distillation(untrained_run)
    assert online_labels(config, training) is None
    online = dataclasses.replace(config, online=OnlineConfig(start=0.3))
    found = online_labels(online, training)
    assert found is not None and found.taught and found.config.start == 0.3
    alone = dataclasses.replace(training, stage=labelled_by(training.stage, "none"))
    found = online_labels(online, alone)
    assert found is not None and not found.taught
    assert online_labels(online, stage_training(untrained_run, STAGE["refined_student"])) is None


def test_distillation_may_do_without_labelled_images(untrained_run: RunModels) -> None:
    training = distillation(untrained_run, labeled_batch=0, unlabeled_batch=3)
    batches = training_batches(untrained_run.config, untrained_run.sources, training, 0)
    for _ in range(2):
        labeled, unlabeled = next(batches)
        assert labeled.image_ids == labeled.targets == [] and labeled.weak.shape == (0, 3, *training.views.size)
        assert unlabeled is not None and len(unlabeled.image_ids) == 3


def test_without_labels_of_any_kind_there_is_nothing_to_train_on(untrained_run: RunModels) -> None:
    training = dataclasses.replace(distillation(untrained_run, labeled_batch=0), labels=None)
    with pytest.raises(ConfigError, match=r"stages\.distilled_student\.labeled_batch: found 0, but no pseudo-label"):
        training_batches(untrained_run.config, untrained_run.sources, training, 0)
