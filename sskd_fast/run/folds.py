"""Fold models: short trainings like a stage's own; each holds out a fold of the labelled images and is tested on it.

If a teacher starts from one that was fitted to predictions, its fold models start from that one's, so that no model
that they start from has learned the labels of the fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sskd_fast.data.labeled import LabeledImages
from sskd_fast.evaluation import evaluate_masks
from sskd_fast.method import ADAPTATION, FITTED, Stage
from sskd_fast.models.checkpoint import read_metadata
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.run.labels import TeacherLabels
from sskd_fast.run.models import RunModels
from sskd_fast.run.training import Run, Training, facts_of, stage_training, train_model, training_state


def fold_trainings(models: RunModels, stage: Stage, labels: TeacherLabels | None) -> list[Training]:
    """The trainings of a stage's fold models: its objective, start and pseudo-labels, and a share of its steps.

    The pseudo-labels are on other images, but their teacher has seen the labels of all folds.
    """
    whole, share = stage_training(models, stage, labels), models.config.pseudo_labels.fold_steps
    budget = replace(whole.budget, steps=max(1, round(share * whole.budget.steps)))
    return [without_fold(whole, fold, number, budget=budget) for number, fold in enumerate(models.sources.folds, 1)]


def without_fold(whole: Training, fold: Sequence[int], number: int, **changes: Any) -> Training:
    """The training without a fold of the labelled images.

    fold: ids of its images.  number: of the fold.  changes: of other fields of the training.
    """
    left_out = set(fold)
    others = whole.labeled.subset(i for i in whole.labeled.image_ids if i not in left_out)
    return replace(whole, labeled=others, fold=number, **changes)


def train_folds(run: Run, stage: Stage, title: str, labels: TeacherLabels | None) -> None:
    """Trains the fold models of a stage and writes their weights; with resume, finished ones are kept."""
    models, results, count = run.models, run.models.results, len(run.models.sources.folds)
    for training, fold in zip(fold_trainings(models, stage, labels), models.sources.folds, strict=True):
        name = results.fold_name(stage.name, training.fold, count)
        path, state = results.weights_path(name), training_state(run, training, name)
        if run.resume and path.exists() and read_metadata(path)["facts"]["key"] == state.key:
            state.clear()
            continue
        own = models.sources.labeled.subset(fold)
        shown = f"{title}, fold {training.fold} of {count}"
        model, cost = train_model(run, training, shown, state, mask_ap(models, own))
        models.save(name, model, facts_of(run, training, cost) | {"fold": training.fold, "key": state.key})
        state.clear()


def fold_seconds(models: RunModels, teacher: str) -> float:
    """The training seconds of a teacher's fold models, which only serve its labels; 0 if it has none.

    Those of a fitted teacher are included in the supervised teacher's, which start from them.
    """
    results, count = models.results, len(models.sources.folds)
    teachers = (FITTED, teacher) if teacher == ADAPTATION[1] else (teacher,)
    names = [results.fold_name(name, number, count) for name in teachers for number in range(1, count + 1)]
    paths = [path for name in names if (path := results.weights_path(name)).exists()]
    return sum(float(read_metadata(path)["facts"]["seconds"]) for path in paths)


def mask_ap(models: RunModels, source: LabeledImages) -> Callable[[Segmenter], dict[str, float]]:
    """A function model -> its AP and AP50 on labelled images."""
    truth, limit = source.ground_truth(), models.sources.detections

    def evaluate(model: Segmenter) -> dict[str, float]:
        result = evaluate_masks(truth, models.predict(model, source), max_detections=limit)
        return {"ap": result.ap, "ap50": result.ap50}

    return evaluate
