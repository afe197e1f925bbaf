"""The supervised student's steps and views, chosen by cross-validation on the labelled images alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sskd_fast.files import write_json
from sskd_fast.journal import Journal
from sskd_fast.run.folds import mask_ap, without_fold
from sskd_fast.run.models import RunModels
from sskd_fast.run.sources import kept_folds
from sskd_fast.run.training import Run, Training, state_key, train_model, training_state, views_at


@dataclass(frozen=True, order=True)
class Candidate:
    """A candidate for the supervised student: number of steps and strength of the views."""

    steps: int
    strength: float

    def __str__(self) -> str:
        return f"{self.steps} steps at strength {self.strength:g}"

    def of(self, models: RunModels, training: Training) -> Training:
        """The training with these steps and views."""
        budget = replace(training.budget, steps=self.steps)
        return replace(training, budget=budget, views=views_at(models, self.strength))


def best_supervised(run: Run, training: Training, title: str) -> Training:
    """The training itself or, with `baseline.folds`, the training of the best candidate in cross-validation.

    Every candidate has its own full schedule: a longer training cut short has not reached its lowest learning rate, so
    it would be underrated.  Validation images are not used.  The choice and its table go to baseline.json.
    """
    models, config = run.models, run.models.config.baseline
    if not config.folds:
        return training
    folds = kept_folds(models.config, training.labeled, models.results.folder / "splits", config.folds)
    if not folds:
        run.log.say("warning: baseline.folds: one labelled image or group cannot be cross-validated, nothing is chosen")
        return training
    table = cross_validated(run, training, folds, title)
    best = best_of(table)
    rows = [{"steps": c.steps, "strength": c.strength, "ap": ap} for c, ap in table.items()]
    choice = {"folds": len(folds), "candidates": rows, "chosen": {"steps": best.steps, "strength": best.strength}}
    write_json(models.results.baseline_path, choice)
    run.log.say(f"  the supervised student takes {best}, the best of {len(table)} in {len(folds)} folds")
    run.log.write({"event": "baseline", **choice})
    return best.of(models, training)


def best_of(table: Mapping[Candidate, float]) -> Candidate:
    """The candidate with the highest AP; the fewest steps break a tie."""
    return max(sorted(table), key=lambda candidate: table[candidate])


def cross_validated(run: Run, training: Training, folds: Sequence[Sequence[int]], title: str) -> dict[Candidate, float]:
    """Candidate -> its mean AP on the held-out folds.

    cache/baseline.jsonl keeps the AP of each fold; with resume, these are not measured again.
    """
    models, config, limit = run.models, run.models.config.baseline, run.models.config.train.max_steps
    steps = sorted({min(number, limit) if limit else number for number in config.steps})
    journal_path = models.results.folder / "cache" / "baseline.jsonl"
    if not run.resume:
        journal_path.unlink(missing_ok=True)
    table = {}
    with Journal(journal_path, f"{state_key(models, training)} in {len(folds)} folds") as journal:
        for candidate in (Candidate(number, strength) for strength in config.strengths for number in steps):
            aps = [_fold_ap(run, candidate, training, folds, n, title, journal) for n in range(len(folds))]
            table[candidate] = statistics.fmean([ap for ap in aps if math.isfinite(ap)] or [0.0])
            run.log.say(f"  {candidate}: AP {table[candidate]:.1f} on labelled images it has not seen")
    return table


def _fold_ap(
    run: Run, candidate: Candidate, training: Training, folds: Sequence[Sequence[int]], number: int, title: str,
    journal: Journal,
) -> float:  # fmt: skip
    """The AP of a candidate on a fold: read from the journal, or measured and written there."""
    key: dict[str, Any] = {"steps": candidate.steps, "strength": candidate.strength, "fold": number + 1}
    for record in journal.records:
        if key.items() <= record.items():
            return float(record["ap"])
    models = run.models
    part = without_fold(candidate.of(models, training), folds[number], number + 1)
    tried = f"{part.stage.name}_{candidate.steps}_{candidate.strength:g}"
    state = training_state(run, part, models.results.fold_name(tried, part.fold, len(folds)))
    model, _ = train_model(run, part, f"{title}, {candidate}, fold {part.fold} of {len(folds)}", state)
    ap = mask_ap(models, models.sources.labeled.subset(folds[number]))(model)["ap"]
    journal.append([key | {"ap": ap}])
    state.clear()
    return ap
