"""One training by a row of the method's table: its images, budget, objective, batches, and the trained model."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sskd_fast import _process, ranks
from sskd_fast.data.batches import balance_weights, batches, derived_seed
from sskd_fast.data.copy_paste import paste_instances
from sskd_fast.data.instances import Batch
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.pseudo_labeled import PseudoLabeled
from sskd_fast.data.views import Views
from sskd_fast.method import BASELINE, Stage
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.run.basis import Basis
from sskd_fast.run.labels import TeacherLabels
from sskd_fast.run.made_with import made_with
from sskd_fast.run.models import RunModels
from sskd_fast.run.sources import Sources
from sskd_fast.run.stage_settings import part_weights, stage_budget, stage_objective
from sskd_fast.settings import Config
from sskd_fast.train.checkpoint import TrainingState, end_piece, saved_key
from sskd_fast.train.cost import Cost
from sskd_fast.train.loop import train
from sskd_fast.train.online_labels import OnlineLabels
from sskd_fast.train.progress import Log, Progress, SilentLog
from sskd_fast.train.schedule import Schedule, StageConfig
from sskd_fast.typed_settings import ConfigError


@dataclass(frozen=True)
class Run:
    """Everything needed to run stages.

    resume: unfinished stages resume from their saved state, finished ones are kept.  deadline: on the clock of
    time.monotonic; after it, the run raises PieceOver as soon as its state is saved.
    """

    models: RunModels
    log: Log
    resume: bool = False
    deadline: float = math.inf


@dataclass(frozen=True)
class Training:
    """The training of a stage's model on all labelled images, or of a fold model on those outside its fold.

    views: of its images.  labels: pseudo-labels, in addition to the labels of `labeled`.  fold: number of the held-out
    fold, from 1 on; 0 for none.
    """

    stage: Stage
    labeled: LabeledImages
    budget: StageConfig
    views: Views
    labels: TeacherLabels | None = None
    fold: int = 0


def stage_training(models: RunModels, stage: Stage, labels: TeacherLabels | None = None) -> Training:
    """The training of a stage's own model, on every labelled image."""
    config, sources = models.config, models.sources
    views = views_at(models, config.baseline.strength) if stage.name == BASELINE else sources.views
    return Training(stage, sources.labeled, stage_budget(config, stage), views, labels)


def views_at(models: RunModels, strength: float) -> Views:
    """The run's views at another strength (see ViewsConfig.at_strength)."""
    sources = models.sources
    return models.config.views.at_strength(strength).resolved(sources.views.size, sources.zoom)


def training_state(run: Run, training: Training, name: str, cost: Cost | None = None) -> TrainingState:
    """The state of an unfinished training, saved under a name and, with resume, restored.

    cost: of the training besides its steps.
    """
    models, key = run.models, state_key(run.models, training)
    path, basis = models.results.state_path(name), trained_with(models, training.stage)
    models.results.keep_basis(basis)
    saved = saved_key(path) if run.resume else None
    if saved not in (None, key):
        before = models.results.basis(str(saved).partition("-")[0])
        changes = "it was begun by an earlier version" if before is None else "; ".join(before.changes(basis))
        run.log.say(f"  what was trained of it is left, it starts over: {changes or 'its training is another one'}")
    return TrainingState(path, key, run.resume, cost or Cost(), deadline=run.deadline)


def train_model(
    run: Run,
    training: Training,
    title: str,
    state: TrainingState,
    evaluate: Callable[[Segmenter], dict[str, float]] | None = None,
) -> tuple[Segmenter, Cost]:
    """The trained model and the cost of its training.  evaluate: measures the AP of a fold model on its fold."""
    end_piece(run.deadline)

    def measured(model: Segmenter) -> dict[str, float]:
        found = evaluate(model) if evaluate is not None else {}
        ranks.dismiss()
        return found

    ranks.order(_follow_training, run.models, training, evaluate is not None)
    return _trained(run.models, run.log, training, title, state, None if evaluate is None else measured)


def _follow_training(models: RunModels, training: Training, measured: bool) -> None:
    """Takes part in a training of the first rank.  measured: True if AP is measured on the way, by all ranks."""
    _process.keep_freed_memory()
    if models.config.train.threads:
        torch.set_num_threads(models.config.train.threads)

    def help_measuring(model: Segmenter) -> dict[str, float]:
        ranks.follow()
        return {"ap": math.nan}

    state = TrainingState(Path(), "", resume=False)
    _trained(models, SilentLog(), training, "", state, help_measuring if measured else None)


def _trained(
    models: RunModels,
    log: Log,
    training: Training,
    title: str,
    state: TrainingState,
    evaluate: Callable[[Segmenter], dict[str, float]] | None,
) -> tuple[Segmenter, Cost]:
    """The trained model and the cost of its training, on all ranks together."""
    config, stage, budget, labels = models.config, training.stage, training.budget, training.labels
    torch.manual_seed(config.seed)
    model = models.start(stage, training.fold)
    if ranks.number():
        torch.manual_seed(derived_seed(config.seed, ranks.number()))
    progress = Progress(log, stage.name, title, config.train.log_every, part_weights(config, stage), fold=training.fold)
    label_pool = 1 if labels is None else coarser_by(labels.cell, model.cell_size(models.sources.views.size))

    def draw(step: int) -> Iterator[tuple[Batch, Batch | None]]:
        return training_batches(config, models.sources, training, step)

    model = train(
        model, stage_objective(config, stage, label_pool), draw, Schedule(config.train, budget), state, progress,
        evaluate, config.seed, online_labels(config, training),
    )  # fmt: skip
    return model, state.cost + progress.cost


def coarser_by(labels: tuple[float, float], masks: tuple[float, float]) -> int:
    """The larger of the two ratios, by height and by width, of a cell of the labels to one of the model's masks."""
    return max(1, *(round(theirs / own) for theirs, own in zip(labels, masks, strict=True)))


def facts_of(run: Run, training: Training, cost: Cost) -> dict[str, Any]:
    """The facts of a training for its checkpoint."""
    seed, seconds = run.models.config.seed, round(cost.seconds, 1)
    return {"stage": training.stage.name, "steps": training.budget.steps, "seconds": seconds, "seed": seed}


def online_labels(config: Config, training: Training) -> OnlineLabels | None:
    """Labels of the moving average for the unlabelled images of the student's distillation; None unless set."""
    if training.stage.name != "distilled_student" or config.online.start == 1:
        return None
    taught = config.pseudo_labels.truth or training.stage.labels_from != "none"
    return OnlineLabels(config.online, taught, config.pseudo_labels.weigh_by_score, config.predict.nms_iou)


def training_batches(
    config: Config, sources: Sources, training: Training, step: int
) -> Iterator[tuple[Batch, Batch | None]]:
    """Labelled batches and, if there are pseudo-labels, unlabelled ones, from a step on."""
    key, budget, labels = config.data.balance_key, training.budget, training.labels
    if labels is None and training.stage.labels_from is not None and budget.labeled_batch == 0:
        raise ConfigError(
            f"stages.{training.stage.name}.labeled_batch: found 0, but no pseudo-label is sure enough to train on "
            "instead; expected labelled images, or a lower pseudo_labels.target_precision"
        )

    def stream(source: Any, size: int, seed: int) -> Iterator[Batch]:
        known = key and all(key in record.extra for record in source.records)
        weights = balance_weights(source.image_field(key), damped=True) if known else None
        return batches(
            source, size, training.views, seed=seed, start_step=step, workers=config.data.workers, weights=weights,
            share=ranks.share(size),
        )  # fmt: skip

    if labels is None or budget.unlabeled_batch == 0:
        size = budget.labeled_batch + budget.unlabeled_batch
        alone = ((batch, None) for batch in stream(training.labeled, size, config.seed))
        return _pasted(alone, training.views, config.seed, step)
    source = PseudoLabeled(
        sources.unlabeled,
        labels.results,
        sources.labeled.category_ids,
        class_names=sources.classes,
        name="pseudo-labels",
        weighted=config.pseudo_labels.weigh_by_score,
    )
    unlabeled = stream(source, budget.unlabeled_batch, config.seed + 1)
    if budget.labeled_batch == 0:
        return zip(itertools.repeat(Batch.empty(*training.views.size)), unlabeled, strict=False)
    both = zip(stream(training.labeled, budget.labeled_batch, config.seed), unlabeled, strict=False)
    return _pasted(both, training.views, config.seed, step)


def _pasted(
    pairs: Iterator[tuple[Batch, Batch | None]], views: Views, seed: int, step: int
) -> Iterator[tuple[Batch, Batch | None]]:
    """The batches from `step` on, with labelled instances pasted on some views if set.

    Each rank pastes instances from its own share of the labelled images.
    """
    if not views.paste:
        yield from pairs
    for number, (labeled, unlabeled) in enumerate(pairs, step):
        own, other = (derived_seed(seed, number, 2 * ranks.number() + kind) for kind in (0, 1))
        yield (
            paste_instances(labeled, labeled, views.paste, views.min_pixels, own),
            unlabeled and paste_instances(unlabeled, labeled, views.paste, views.min_pixels, other),
        )


def trained_with(models: RunModels, stage: Stage) -> Basis:
    """The basis of a stage's training, without the search for its budget and views, which belong to the training."""
    return made_with(models, stage).without("baseline")


def state_key(models: RunModels, training: Training) -> str:
    """A key from the training's basis and a hash of the training; states saved under other keys are not used."""
    of_training = [dataclasses.asdict(part) for part in (training.stage, training.budget, training.views)]
    content = json.dumps([*of_training, training.labeled.image_ids], sort_keys=True)
    return f"{trained_with(models, training.stage).key}-{hashlib.sha256(content.encode()).hexdigest()}"
