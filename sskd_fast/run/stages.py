"""The stages of a run: each one trains by its row of the method's table, and is measured."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sskd_fast.data.batches import balance_weights, batches
from sskd_fast.data.instances import Batch
from sskd_fast.data.pseudo_labeled import PseudoLabeled
from sskd_fast.evaluation import evaluate_masks
from sskd_fast.losses.objective import Objective
from sskd_fast.method import STAGES, Stage, dependents, stages_of
from sskd_fast.models.segmenter import ModelConfig, Segmenter
from sskd_fast.report import write_report
from sskd_fast.run.labels import TeacherLabels, teacher_labels
from sskd_fast.run.measure import measure
from sskd_fast.run.models import RunModels
from sskd_fast.run.sources import Sources
from sskd_fast.settings import Config
from sskd_fast.train.checkpoint import TrainingState
from sskd_fast.train.loop import train
from sskd_fast.train.progress import Log, Progress
from sskd_fast.train.schedule import Schedule, StageConfig


@dataclass(frozen=True)
class Run:
    """Everything that running stages takes.

    resume: unfinished stages go on from their saved state, finished ones are kept.
    """

    models: RunModels
    log: Log
    resume: bool = False


def run_stages(run: Run, command: str) -> None:
    """The stages of a command, in the table's order; with resume, those that are finished are kept."""
    chosen = stages_of(command)
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


def run_stage(run: Run, stage: Stage, title: str) -> None:
    """Trains (unless its budget is empty) and evaluates one stage; writes weights, predictions, its row, the report."""
    models, results = run.models, run.models.results
    results.outdate(dependents(stage))
    labels = None if stage.labels_from is None else teacher_labels(models, run.log, stage.labels_from)
    torch.manual_seed(models.config.seed)
    model = models.start(stage)
    state = TrainingState(results.state_path(stage.name), state_key(models.config, stage), run.resume)
    seconds = 0.0
    if stage.budget:
        model, seconds = train_stage(run, stage, title, model, labels, state)
    else:
        run.log.say(f"{title}, not trained")
    measure_aloud(run, stage, model, seconds)
    models.add_figures([stage.name])
    state.clear()
    write_report(results.folder)


def train_stage(
    run: Run, stage: Stage, title: str, model: Segmenter, labels: TeacherLabels | None, state: TrainingState
) -> tuple[Segmenter, float]:
    """The model that a stage's training makes of `model`, its weights saved, and the seconds it took."""
    models, config = run.models, run.models.config
    budget = stage_budget(config, stage)
    progress = Progress(run.log, stage.name, title, config.train.log_every, part_weights(config, stage))
    label_pool = 1 if labels is None else max(1, round(labels.stride / model.stride))

    def draw(step: int) -> Iterator[tuple[Batch, Batch | None]]:
        return stage_batches(config, models.sources, budget, labels, step)

    model = train(
        model, stage_objective(config, stage, label_pool), draw, Schedule(config.train, budget), state, progress,
        held_out_ap(models), config.seed,
    )  # fmt: skip
    seconds = state.seconds + progress.seconds
    facts = {"stage": stage.name, "steps": budget.steps, "seconds": round(seconds, 1), "seed": config.seed}
    models.save(stage.name, model, facts)
    return model, seconds


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
    config: ModelConfig = getattr(models.config, stage.model)
    if config.trainable:
        return ""
    if stage.budget:
        return f"the predictions in {config.foundation.results} cannot be trained"
    val = models.sources.val
    if models.start(stage).covers(zip(val.image_ids, val.file_names, strict=True)):
        return ""
    return f"{config.foundation.results} says nothing of the validation images"


def stage_budget(config: Config, stage: Stage) -> StageConfig:
    """The stage's budget: that of its first entry with the steps of all added up; a stage without unlabelled images
    draws labelled ones in their place, so that budgets compare image by image."""
    parts: list[StageConfig] = [getattr(config.stages, name) for name in stage.budget]
    limit = config.train.max_steps
    steps = sum(min(part.steps, limit) if limit else part.steps for part in parts)
    first = parts[0]
    if stage.labels_from is None:
        first = dataclasses.replace(first, labeled_batch=first.labeled_batch + first.unlabeled_batch, unlabeled_batch=0)
    return dataclasses.replace(first, steps=steps)


def stage_objective(config: Config, stage: Stage, label_pool: int = 1) -> Objective:
    """J with the stage's weights; label_pool: how much coarser than the model's masks the pseudo-labels are."""
    lam_pxl = config.train.lam_pxl * stage.pixel
    return Objective.of(
        config.loss, config.contrast, lam_semi=semi_weight(config, stage), lam_pxl=lam_pxl, label_pool=label_pool,
        semi_fade=config.train.semi_fade, semi_masks=config.train.semi_masks,
        pxl_gradient_share=config.train.pxl_gradient_share,
    )  # fmt: skip


def semi_weight(config: Config, stage: Stage) -> float:
    """lam_semi of a stage: how much its pseudo-labels count; 0 if it has none."""
    return config.train.lam_semi * stage_budget(config, stage).semi_factor if stage.semi else 0.0


def part_weights(config: Config, stage: Stage) -> dict[str, float]:
    """Weights of the logged loss parts when they are compared: a part's weight in J, for L_pxl without lam_pxl, which
    makes it small by design."""
    loss, t = config.loss, config.train
    weights = {
        "class": loss.class_weight, "mask": loss.mask_weight, "dice": loss.dice_weight, "heat": loss.heat_weight,
        "detector": 1.0,
    }  # fmt: skip
    parts = {f"sup_{n}": w for n, w in weights.items()} | ({"pxl": 1.0} if stage.pixel else {})
    semi = weights | {n: w * t.semi_masks for n, w in weights.items() if n in ("mask", "dice")}
    return parts | ({f"semi_{n}": w * semi_weight(config, stage) for n, w in semi.items()} if stage.semi else {})


def stage_batches(
    config: Config, sources: Sources, budget: StageConfig, labels: TeacherLabels | None, step: int
) -> Iterator[tuple[Batch, Batch | None]]:
    """Labelled batches and, if there are pseudo-labels, unlabelled ones beside them, from a step on."""
    key = config.data.balance_key

    def stream(source: Any, size: int, seed: int) -> Iterator[Batch]:
        known = key and all(key in record.extra for record in source.records)
        weights = balance_weights(source.image_field(key), damped=True) if known else None
        return batches(
            source, size, sources.views, seed=seed, start_step=step, workers=config.data.workers, weights=weights
        )

    if labels is None or budget.unlabeled_batch == 0:
        size = budget.labeled_batch + budget.unlabeled_batch
        return ((batch, None) for batch in stream(sources.labeled, size, config.seed))
    labeled = stream(sources.labeled, budget.labeled_batch, config.seed)
    source = PseudoLabeled(
        sources.unlabeled,
        labels.results,
        sources.labeled.category_ids,
        class_names=sources.classes,
        name="pseudo-labels",
    )
    return zip(labeled, stream(source, budget.unlabeled_batch, config.seed + 1), strict=False)


def held_out_ap(models: RunModels) -> Callable[[Segmenter], dict[str, float]]:
    """A function model -> AP on the held-out labelled images."""
    holdout, limit = models.sources.holdout, models.config.predict.max_detections
    truth = holdout.ground_truth()

    def evaluate(model: Segmenter) -> dict[str, float]:
        result = evaluate_masks(truth, models.predict(model, holdout), max_detections=limit)
        return {"ap": result.ap, "ap50": result.ap50}

    return evaluate


def state_key(config: Config, stage: Stage) -> str:
    """A hash of the stage and of every setting its training depends on; a state saved under another is not used."""
    settings = dataclasses.asdict(config)
    for irrelevant in ("output", "device", "predict", "stages", "origins"):
        settings.pop(irrelevant)
    for irrelevant in ("workers", "cache_mb", "decoded"):
        settings["data"].pop(irrelevant)
    budget = dataclasses.asdict(stage_budget(config, stage)) if stage.budget else None
    content = [dataclasses.asdict(stage), budget, settings]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
