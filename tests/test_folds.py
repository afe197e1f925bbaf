"""Fold models: what they are trained on, and the thresholds that come from their predictions."""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import Any

import pytest
import torch

from sskd_fast.method import FITTED, STAGE, STAGES
from sskd_fast.run.folds import fold_seconds, fold_trainings
from sskd_fast.run.labels import TeacherLabels
from sskd_fast.run.models import RunModels
from sskd_fast.run.thresholds import Thresholds
from sskd_fast.run.training import Training, stage_training, state_key, training_batches


def drawn(models: RunModels, training: Training, steps: int = 12) -> set[int]:
    """Ids of the labelled images in the first batches of a training."""
    batches = islice(training_batches(models.config, models.sources, training, 0), steps)
    return {image_id for labeled, _ in batches for image_id in labeled.image_ids}


def test_a_fold_model_never_sees_its_fold(untrained_run: RunModels) -> None:
    everything = set(untrained_run.sources.labeled.image_ids)
    for stage, labels in (("supervised_teacher", None), ("adapted_teacher", TeacherLabels([], (4.0, 4.0)))):
        trainings = fold_trainings(untrained_run, STAGE[stage], labels)
        assert len(trainings) == 3 == len(untrained_run.sources.folds)
        for number, (training, fold) in enumerate(zip(trainings, untrained_run.sources.folds, strict=True), 1):
            assert drawn(untrained_run, training) == everything - set(fold) and training.fold == number
            whole = stage_training(untrained_run, STAGE[stage], labels)
            assert training.budget.steps == max(1, round(whole.budget.steps / 4)) and training.labels is labels
        assert len({state_key(untrained_run, t) for t in [*trainings, whole]}) == 4


def test_every_model_of_a_run_draws_every_labelled_image(untrained_run: RunModels) -> None:
    assert len(untrained_run.sources.labeled) == 11
    for stage in STAGES:
        if stage.budget:
            labels = TeacherLabels([], (4.0, 4.0)) if stage.labels_from else None
            training = stage_training(untrained_run, stage, labels)
            assert drawn(untrained_run, training) == set(untrained_run.sources.labeled.image_ids), stage.name


def graded(models: RunModels, grades: str) -> list[dict[str, Any]]:
    """Results of falling score from 0.9 on: "r" is right, "w" has the wrong class; no two of one class are right."""
    truth = models.sources.labeled.ground_truth()["annotations"]
    first = {a["category_id"]: a for a in reversed(truth)}
    ids, results = sorted(first), []
    for rank, grade in enumerate(grades):
        found = {key: first[ids[rank % 4]][key] for key in ("image_id", "category_id", "segmentation")}
        if grade == "w":
            found["category_id"] = ids[(rank + 1) % 4]
        results.append(found | {"score": (9 - rank) / 10})
    return results


def test_thresholds_of_unseen_predictions_by_hand(untrained_run: RunModels) -> None:
    """Precision by rank: 1, 1/2, 2/3, 3/4. With two right ones at least, the pooled 0.7 holds down to the fourth."""
    ids, pooled = untrained_run.sources.labeled.category_ids, 0.6
    unseen = graded(untrained_run, "rwrr")
    thresholds = Thresholds(untrained_run, unseen, [], [])
    assert thresholds.at(0.7) == dict.fromkeys(ids, pooled)
    assert thresholds.at(0.9, quiet=True) == dict.fromkeys(ids, pooled)  # the most precise


def test_a_teacher_keeps_as_many_labels_as_its_fold_models(untrained_run: RunModels) -> None:
    """Fold untrained_run keep 2 and 3 of a class from 0.6 on, so the teacher keeps its first 2 (2.5, to even)."""
    ids = untrained_run.sources.labeled.category_ids

    def of_class(*scores: float) -> list[dict[str, Any]]:
        return [{"image_id": 1, "category_id": ids[0], "score": score} for score in scores]

    folds = [of_class(0.9, 0.6, 0.5), of_class(0.8, 0.7, 0.6)]
    sample = of_class(0.2, 0.95, 0.97, 0.85)
    thresholds = Thresholds(untrained_run, graded(untrained_run, "rwrr"), sample, folds)
    assert thresholds.at(0.7) == {ids[0]: 0.95, **dict.fromkeys(ids[1:], 0.6)}


def test_other_folds_than_those_of_the_teacher_are_refused(untrained_run: RunModels) -> None:
    with pytest.raises(FileNotFoundError, match=r"teacher_fold_1_of_3.safetensors does not exist: leave pseudo_lab"):
        untrained_run.load_fold("adapted_teacher", 1)


def test_fold_models_start_from_a_fitted_teacher_that_has_not_seen_their_fold(untrained_run: RunModels) -> None:
    teacher = untrained_run.config.teacher
    given = dataclasses.replace(teacher.foundation, results="predictions.json")
    teacher = dataclasses.replace(teacher, warm_start="results", foundation=given)
    models = dataclasses.replace(untrained_run, config=dataclasses.replace(untrained_run.config, teacher=teacher))
    names = [FITTED, *(models.results.fold_name(FITTED, number, 3) for number in (1, 2))]
    written = []
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        written.append(models.build("teacher", weights=False))
        models.save(name, written[-1], {"stage": FITTED, "seconds": 1.0})
    for fold, model in enumerate(written):
        for stage in ("supervised_teacher", "adapted_teacher"):
            started = models.start(STAGE[stage], fold).state_dict()
            assert all(torch.equal(started[key], value) for key, value in model.state_dict().items()), (stage, fold)
    with pytest.raises(FileNotFoundError, match=r"fitted_teacher_fold_3_of_3.safetensors does not exist.*fitted teach"):
        models.start(STAGE["supervised_teacher"], 3)


def test_the_training_of_fold_models_counts_as_labelling(untrained_run: RunModels) -> None:
    assert fold_seconds(untrained_run, "adapted_teacher") == 0
    model = untrained_run.start(STAGE["adapted_teacher"])
    for number, seconds in ((1, 10.0), (2, 2.5), (3, 4.0)):
        name = untrained_run.results.fold_name("adapted_teacher", number, 3)
        untrained_run.save(name, model, {"stage": "adapted_teacher", "seconds": seconds})
    assert fold_seconds(untrained_run, "adapted_teacher") == 16.5
    assert fold_seconds(untrained_run, "supervised_teacher") == 0
    name = untrained_run.results.fold_name(FITTED, 1, 3)
    untrained_run.save(name, model, {"stage": FITTED, "seconds": 3.0})
    assert fold_seconds(untrained_run, "supervised_teacher") == fold_seconds(untrained_run, FITTED) == 3.0
    assert fold_seconds(untrained_run, "adapted_teacher") == 16.5
