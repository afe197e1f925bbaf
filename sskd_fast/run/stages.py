"""The stages of a run: each trains according to its row of the method's table, and is measured."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping

from sskd_fast.method import BASELINE, FITTED, STAGES, Stage, dependents, stages_of, views_rows, words_of
from sskd_fast.models.augmented import IDENTITY
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.report import write_report
from sskd_fast.run.baseline import best_supervised
from sskd_fast.run.folds import fold_seconds, train_folds
from sskd_fast.run.labels import teacher_labels
from sskd_fast.run.made_with import made_with
from sskd_fast.run.measure import measure
from sskd_fast.run.models import RunModels
from sskd_fast.run.stage_settings import check_shares
from sskd_fast.run.training import Run, facts_of, stage_training, train_model, training_state
from sskd_fast.settings import Config
from sskd_fast.train.cost import COST_KEYS, Cost


def run_stages(run: Run, command: str, only: Collection[str] = ()) -> None:
    """Runs the stages of a command, in the table's order; with resume, finished ones are kept.

    only: run only these stages of the command.
    """
    chosen = stages_to_run(run.models.config, command, only)
    for stage in chosen:
        check_shares(run.models.config, stage)
    finished = {row["name"] for row in run.models.results.rows} if run.resume else set()
    if any(s.model == "student" and s.name not in finished for s in chosen):
        # Report missing weights now, before the teacher trains and labels.
        run.models.foundation_weights("student")
        run.models.build("student")
    for number, stage in enumerate(chosen, 1):
        title = f"stage {number} of {len(chosen)}: {stage.words}"
        if stage.name in finished:
            run.log.say(f"{title} is finished, kept")
            run.models.results.state_path(stage.name).unlink(missing_ok=True)  # left if killed after the row
        elif reason := nothing_to_do(run.models, stage):
            run.log.say(f"{title} is skipped: {reason}")
        else:
            run_stage(run, stage, title)


def stages_to_run(config: Config, command: str, only: Collection[str] = ()) -> list[Stage]:
    """The stages of a command in the table's order, with the labeller from the settings."""
    return [
        labelled_by(stage, config.pseudo_labels.teacher)
        for stage in stages_of(command, fitted=bool(config.teacher.warm_start))
        if not only or stage.name in only
    ]


def labelled_by(stage: Stage, teacher: str) -> Stage:
    """The stage, with pseudo-labels of this teacher if it distils the student."""
    student = stage.model == "student" and stage.labels_from is not None
    return dataclasses.replace(stage, labels_from=teacher) if student else stage


def run_stage(run: Run, stage: Stage, title: str) -> None:
    """Trains (unless its budget is empty) and evaluates one stage; writes weights, predictions, its row, the report."""
    models, results = run.models, run.models.results
    own = {stage.name} if any(row["name"] == stage.name for row in results.rows) else set()
    results.outdate({*own, *dependents(stage), *views_rows([stage.name])})
    labels, label_seconds = None, 0.0
    if stage.labels_from is not None:
        clock = time.perf_counter()
        labels = teacher_labels(models, run.log, stage.labels_from)
        label_seconds = time.perf_counter() - clock + fold_seconds(models, stage.labels_from)
    cost = Cost()
    if stage.budget:
        training = stage_training(models, stage, labels)
        if stage.name == BASELINE:
            training = best_supervised(run, training, title)
        state = training_state(run, training, stage.name, Cost(label_seconds=label_seconds))
        model, cost = train_model(run, training, title, state)
        models.save(stage.name, model, facts_of(run, training, cost))
        labeller = models.config.pseudo_labels
        if (stage.teaches or stage.name in (FITTED, labeller.teacher)) and not labeller.truth:
            train_folds(run, stage, title, labels)
    else:
        model = models.start(stage)
        run.log.say(f"{title}, not trained")
    measure_aloud(run, stage, model, dataclasses.asdict(cost), results.keep_basis(made_with(models, stage)))
    models.add_figures([stage.name])
    if stage.budget:
        state.clear()
    write_report(results.folder)


def measure_aloud(run: Run, stage: Stage, model: Segmenter, cost: Mapping[str, float], made: str) -> None:
    """Measures a stage's model on the validation images and prints the figures.

    A trained model is also measured averaged over the views in which the teacher labels.  The stage's own row comes
    last, since it marks the stage as finished.  made: key of the model's basis.
    """
    views = run.models.label_views
    averaged = [(name, views) for name in views_rows([stage.name]) if views != IDENTITY]
    for name, seen in [*averaged, (stage.name, IDENTITY)]:
        row = measure(run.models, name, model, cost, seen, made)
        beside = "".join(f", {key.replace('_', ' ')} {value:.1f}" for key, value in row.official.items())
        images = f"{len(run.models.sources.val)} images" + (f", {row.views} views of each" if row.views > 1 else "")
        run.log.say(f"  {words_of(name)}: AP {row.ap:.1f}, AP50 {row.ap50:.1f}{beside} on {images}")


def evaluate_finished(run: Run) -> None:
    """Predicts and measures every model that has a row, and rewrites its row; costs are kept.

    Raises FileNotFoundError if the folder has no row yet.
    """
    models, results = run.models, run.models.results
    rows = {row["name"]: row for row in results.rows}
    if not rows:
        raise FileNotFoundError(f"{results.folder} holds no finished stage: run --stage all or --stage adapt first")
    for stage in STAGES:
        if stage.name in rows:
            model = models.load(stage.name) if stage.budget else models.start(stage)
            row = rows[stage.name]
            cost = {key: row[key] for key in COST_KEYS if key in row}
            measure_aloud(run, stage, model, cost, row.get("made_with", ""))


def nothing_to_do(models: RunModels, stage: Stage) -> str:
    """The reason to leave a stage out, "" if there is none.

    A teacher that is a file of predictions cannot be trained, nor measured on images without predictions.
    """
    config = models.config_of(stage)
    if config.trainable:
        return ""
    if stage.budget:
        return f"the predictions in {', '.join(config.foundation.results_files)} cannot be trained"
    val = models.sources.val
    if models.start(stage).covers(record.named_by for record in val.records):
        return ""
    return f"{', '.join(config.foundation.results_files)} says nothing of the validation images"
