"""The supervised student's steps and views: as set, or chosen on the labelled images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from sskd_fast.journal import Journal
from sskd_fast.method import BASELINE, STAGE
from sskd_fast.run.baseline import Candidate, best_of, best_supervised
from sskd_fast.run.models import RunModels
from sskd_fast.run.training import Run, stage_training, state_key
from sskd_fast.settings import BaselineConfig
from sskd_fast.train.progress import Log


@pytest.fixture
def log(untrained_run: RunModels) -> Iterator[Log]:
    log = Log(untrained_run.results.folder)
    yield log
    log.close()


def searching(models: RunModels, **settings: Any) -> RunModels:
    return replace(models, config=replace(models.config, baseline=BaselineConfig(folds=2, **settings)))


def test_without_a_search_the_settings_hold(untrained_run: RunModels, log: Log) -> None:
    config = replace(untrained_run.config, baseline=BaselineConfig(strength=0.5))
    models = replace(untrained_run, config=config)
    training = stage_training(models, STAGE[BASELINE])
    assert best_supervised(Run(models, log), training, "") is training
    assert training.budget == config.stages.supervised_student
    assert training.views.scale == pytest.approx((0.7**0.5, 1.4**0.5)) and training.views.weak_color == 0.2
    for name in ("matched_student", "distilled_student"):
        assert stage_training(models, STAGE[name]).views == models.sources.views
    assert not models.results.baseline_path.exists()


def test_the_best_of_a_planted_grid_is_trained(untrained_run: RunModels, log: Log) -> None:
    """Each fold's AP is in the journal already, as after an interruption: nothing is left to train."""
    models = searching(untrained_run, steps=(30, 10), strengths=(0.5, 2.0))
    training = stage_training(models, STAGE[BASELINE])
    planted = {(10, 0.5): (20.0, 30.0), (30, 0.5): (10.0, 39.0), (10, 2.0): (21.0, 31.0), (30, 2.0): (26.0, 26.0)}
    path = models.results.folder / "cache" / "baseline.jsonl"
    with Journal(path, f"{state_key(models, training)} in 2 folds") as journal:
        for (steps, strength), aps in planted.items():
            for fold, ap in enumerate(aps, 1):
                journal.append([{"steps": steps, "strength": strength, "fold": fold, "ap": ap}])
    chosen = best_supervised(Run(models, log, resume=True), training, "")
    assert chosen.budget.steps == 10 and chosen.fold == 0 and chosen.labeled is training.labeled
    assert chosen.views.scale == pytest.approx((0.7**2, 1.4**2)) and chosen.views.weak_color == 0.8
    choice = json.loads(models.results.baseline_path.read_text())
    assert choice["folds"] == 2 and choice["chosen"] == {"steps": 10, "strength": 2.0}
    table = {(row["steps"], row["strength"]): row["ap"] for row in choice["candidates"]}
    assert table == {(10, 0.5): 25.0, (30, 0.5): 24.5, (10, 2.0): 26.0, (30, 2.0): 26.0}


def test_of_equal_candidates_the_shorter_is_chosen() -> None:
    assert best_of({Candidate(300, 1.0): 5.0, Candidate(20, 1.5): 5.0, Candidate(10, 1.0): 4.0}) == Candidate(20, 1.5)


def test_candidates_are_trained_without_the_fold_they_are_measured_on(untrained_run: RunModels, log: Log) -> None:
    models = searching(untrained_run, steps=(1, 2), strengths=(1.0,))
    chosen = best_supervised(Run(models, log), stage_training(models, STAGE[BASELINE]), "stage")
    choice = json.loads(models.results.baseline_path.read_text())
    assert [(row["steps"], row["strength"]) for row in choice["candidates"]] == [(1, 1.0), (2, 1.0)]
    assert chosen.budget.steps == choice["chosen"]["steps"] and len(chosen.labeled) == 11
    lines = (models.results.folder / "cache" / "baseline.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 2 * 2
    logged = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert {(r["fold"], r["steps"]) for r in logged if "loss" in r} == {(1, 1), (2, 1), (1, 2), (2, 2)}
    assert not list((models.results.folder / "checkpoints").rglob("*.pt"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 1}, "folds: expected 0 for no search, or at least 2, found 1"),
        ({"steps": ()}, r"steps: expected at least one number of steps, each above 0, found \[\]"),
        ({"strengths": (-1.0,)}, r"strength, strengths: expected factors from 0 up, found \[-1.0, 1.0\]"),
    ],
)
def test_wrong_searches_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BaselineConfig(**settings)
