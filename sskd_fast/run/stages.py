"""The stages of a run: each one trains by its row of the method's table, and is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from sskd_fast.method import BASELINE, STAGES, Stage, dependents, stages_of
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.report import write_report
from sskd_fast.run.baseline import best_supervised
from sskd_fast.run.folds import train_folds
from sskd_fast.run.labels import teacher_labels
from sskd_fast.run.measure import measure
from sskd_fast.run.models import RunModels
from sskd_fast.run.training import Run, stage_training, train_model, training_state


def run_stages(run: Run, command: str, only: Collection[str] = ()) -> None:
    """The stages of a command, in the table's order; with resume, those that are finished are kept.

    only: names of stages; the command's others are left out.
    """
    config = run.models.config
    chosen = [
        labelled_by(stage, config.pseudo_labels.teacher)
        for stage in stages_of(command, fitted=bool(config.teacher.warm_start))
        if not only or stage.name in only
    ]
    finished = {row["name"] for row in run.models.results.rows} if run.resume else set()
    if any(s.model == "student" and s.name not in finished for s in chosen):
        # Its turn comes after the teacher's training and labelling: what cannot be had is said now.
        run.models.foundation_weights("student")
        run.models.build("student")
    for number, stage in enumerate(chosen, 1):
        title = f"stage {number} of {len(chosen)}: {stage.words}"
        if stage.name in finished:
            run.log.say(f"{title} is finished, kept")
        elif reason := nothing_to_do(run.models, stage):
            run.log.say(f"{title} is skipped: {reason}")
        else:
            run_stage(run, stage, title)


def labelled_by(stage: Stage, teacher: str) -> Stage:
    """The stage, with pseudo-labels of this teacher if the student is distilled in it."""
    student = stage.model == "student" and stage.labels_from is not None
    return dataclasses.replace(stage, labels_from=teacher) if student else stage


def run_stage(run: Run, stage: Stage, title: str) -> None:
    """Trains (unless its budget is empty) and evaluates one stage; writes weights, predictions, its row, the report."""
    models, results = run.models, run.models.results
    results.outdate(dependents(stage))
    labels = None if stage.labels_from is None else teacher_labels(models, run.log, stage.labels_from)
    seconds = 0.0
    if stage.budget:
        training = stage_training(models, stage, labels)
        if stage.name == BASELINE:
            training = best_supervised(run, training, title)
        state = training_state(run, training, stage.name)
        model, facts = train_model(run, training, title, state)
        models.save(stage.name, model, facts)
        seconds = facts["seconds"]
        labeller = models.config.pseudo_labels
        if (stage.teaches or stage.name == labeller.teacher) and not labeller.truth:
            train_folds(run, stage, title, labels)
    else:
        model = models.start(stage)
        run.log.say(f"{title}, not trained")
    measure_aloud(run, stage, model, seconds)
    models.add_figures([stage.name])
    if stage.budget:
        state.clear()
    write_report(results.folder)


def measure_aloud(run: Run, stage: Stage, model: Segmenter, seconds: float) -> None:
    """Measures a stage's model on the validation images, and says its figures."""
    row = measure(run.models, stage.name, model, seconds)
    beside = "".join(f", {key.replace('_', ' ')} {value:.1f}" for key, value in row.official.items())
    images = len(run.models.sources.val)
    run.log.say(f"  {stage.words}: AP {row.ap:.1f}, AP50 {row.ap50:.1f}{beside} on {images} images")


def evaluate_finished(run: Run) -> None:
    """Predicts and measures every model that has a row, and rewrites its row; training seconds stay.

    Raises FileNotFoundError if the folder has no row yet.
    """
    models, results = run.models, run.models.results
    rows = {row["name"]: row for row in results.rows}
    if not rows:
        raise FileNotFoundError(f"{results.folder} holds no finished stage: run --stage all or --stage adapt first")
    for stage in STAGES:
        if stage.name in rows:
            model = models.load(stage.name) if stage.budget else models.start(stage)
            measure_aloud(run, stage, model, rows[stage.name]["seconds"])


def nothing_to_do(models: RunModels, stage: Stage) -> str:
    """The reason to leave a stage out, "" for none: a teacher that is a file of predictions cannot be trained, nor
    measured on images that it says nothing of."""
    config = models.config_of(stage)
    if config.trainable:
        return ""
    if stage.budget:
        return f"the predictions in {', '.join(config.foundation.results_files)} cannot be trained"
    val = models.sources.val
    if models.start(stage).covers(zip(val.image_ids, val.file_names, strict=True)):
        return ""
    return f"{', '.join(config.foundation.results_files)} says nothing of the validation images"
