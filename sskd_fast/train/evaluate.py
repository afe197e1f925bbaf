"""Evaluation of a run's models on its validation images, anew."""

from __future__ import annotations

from sskd_fast.train.experiment import Experiment
from sskd_fast.train.measure import measure
from sskd_fast.train.stages import STAGES, start_model


def evaluate_finished(experiment: Experiment) -> None:
    """Predicts and measures every model that has a row, and rewrites its row; training seconds stay.

    Raises FileNotFoundError where the folder has no row yet.
    """
    rows = {row["name"]: row for row in experiment.rows}
    if not rows:
        raise FileNotFoundError(f"{experiment.folder} holds no finished stage: run --stage all or --stage adapt first")
    for stage in STAGES:
        if stage.name in rows:
            model = experiment.load(stage.name) if stage.budget else start_model(experiment, stage)
            measure(experiment, stage.name, model, rows[stage.name]["seconds"])
