"""Evaluation of a run's finished models on its validation images, anew."""

from __future__ import annotations

import dataclasses

from sskd_fast.evaluation import evaluate_masks
from sskd_fast.train.experiment import Experiment, Results


def evaluate_finished(experiment: Experiment) -> None:
    """Predicts and measures every stage that has weights (or, as the zero-shot teacher, a row) and rewrites its row."""
    rows = {row["name"]: row for row in experiment.rows}
    if not rows:
        raise FileNotFoundError(f"{experiment.folder} holds no finished stage: run --stage all or --stage adapt first")
    truth = experiment.sources.val.ground_truth()
    for name, row in rows.items():
        if not experiment.weights_path(name).exists():
            continue
        model = experiment.load(name)
        predictions = experiment.predict(model, experiment.sources.val)
        experiment.write_predictions(name, predictions)
        measured = evaluate_masks(truth, predictions, max_detections=experiment.config.predict.max_detections)
        result = Results(**(row | {"ap": measured.ap, "ap50": measured.ap50}))
        experiment.add_row(dataclasses.replace(result, params=model.parameter_count()))
