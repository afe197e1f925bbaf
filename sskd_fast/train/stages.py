"""The stages as settings of the one objective: which model, which start, which labels, which weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sskd_fast.data.batches import balance_weights, batches
from sskd_fast.data.instances import Batch
from sskd_fast.data.pseudo_labeled import PseudoLabeled
from sskd_fast.evaluation import evaluate_masks
from sskd_fast.losses.objective import Objective
from sskd_fast.models.segmenter import ModelConfig, Segmenter
from sskd_fast.report import write_report
from sskd_fast.settings import Config, StageConfig
from sskd_fast.train.checkpoint import TrainingState, load_weights, save_weights
from sskd_fast.train.experiment import Experiment, Results
from sskd_fast.train.labels import TeacherLabels, teacher_labels
from sskd_fast.train.loop import Schedule, train
from sskd_fast.train.measure import measure
from sskd_fast.train.objectives import objective_of
from sskd_fast.train.watch import Watch

Start = Literal["pretrained", "backbone", "scratch", "distilled_student"]


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    command: the `--stage` it belongs to.  start: weights at the beginning: the foundation weights, their backbone
    alone, none, or another stage's.  labels_from: the stage whose model labels the unlabelled images.  budget: entries
    of the configuration's `stages` whose steps add up; none for a model that is only evaluated.
    """

    name: str
    command: Literal["pretrain", "adapt", "distill", "refine"]
    model: Literal["teacher", "student"]
    start: Start
    labels_from: str | None
    semi: bool
    pixel: bool
    budget: tuple[str, ...]


# fmt: off
BOTH = ("distilled_student", "refined_student")
PRETRAINING = (
    #     name                  command     model      start      labels from  semi   pixel  budget
    Stage("pretrained_teacher", "pretrain", "teacher", "scratch", None,        False, False, ("pretrained_teacher",)),
    Stage("pretrained_student", "pretrain", "student", "scratch", None,        False, False, ("pretrained_student",)),
)
STAGES = (
    #     name                  command    model      start                labels from           semi   pixel  budget
    Stage("zero_shot_teacher",  "adapt",   "teacher", "pretrained",        None,                 False, False, ()),
    Stage("supervised_teacher", "adapt",   "teacher", "pretrained",        None,                 False, True,  ("supervised_teacher",)),
    Stage("adapted_teacher",    "adapt",   "teacher", "pretrained",        "supervised_teacher", True,  True,  ("adapted_teacher",)),
    Stage("distilled_student",  "distill", "student", "backbone",          "adapted_teacher",    True,  True,  ("distilled_student",)),
    Stage("refined_student",    "refine",  "student", "distilled_student", None,                 False, False, ("refined_student",)),
    Stage("supervised_student", "distill", "student", "backbone",          None,                 False, False, BOTH),
)
# fmt: on


def run_stage(experiment: Experiment, stage: Stage, number: int, total: int) -> Results | None:
    """Trains (unless its budget is empty) and evaluates one stage; writes weights, predictions, its row, the report.
    None where there is nothing to do."""
    config, sources = experiment.config, experiment.sources
    title = f"stage {number} of {total}: {stage.name.replace('_', ' ')}"
    reason = nothing_to_do(experiment, stage)
    if reason:
        experiment.log.say(f"{title} is skipped: {reason}")
        return None
    experiment.outdate(dependents(stage))
    labels = None if stage.labels_from is None else teacher_labels(experiment, stage.labels_from)
    torch.manual_seed(config.seed)
    model = start_model(experiment, stage)
    state = TrainingState(experiment.state_path(stage.name), state_key(config, stage), experiment.resume)
    seconds = 0.0
    if not stage.budget:
        experiment.log.say(f"{title}, not trained")
    else:
        budget = stage_budget(config, stage)
        watch = Watch(experiment.log, stage.name, title, config.train.log_every, part_weights(config, stage))
        objective = stage_objective(config, stage, 1 if labels is None else max(1, round(labels.stride / model.stride)))

        def draw(step: int) -> Iterator[tuple[Batch, Batch | None]]:
            return stage_batches(experiment, budget, labels, step)

        model = train(
            model,
            objective,
            draw,
            Schedule.of(config.train, budget),
            state,
            watch,
            held_out_ap(experiment),
            config.seed,
        )
        seconds = state.seconds + watch.seconds
        facts = {"stage": stage.name, "steps": budget.steps, "seconds": round(seconds, 1), "seed": config.seed}
        save_weights(experiment.weights_path(stage.name), model, sources.classes, facts)
    result = measure(experiment, stage.name, model, seconds)
    state.clear()
    write_report(experiment.folder)
    return result


def nothing_to_do(experiment: Experiment, stage: Stage) -> str:
    """Why a stage is left out, "" for one that is not: a teacher that is a file of predictions cannot be trained, nor
    measured on images that it says nothing of."""
    config: ModelConfig = getattr(experiment.config, stage.model)
    if config.trainable:
        return ""
    if stage.budget:
        return f"the predictions in {config.foundation.results} cannot be trained"
    val = experiment.sources.val
    if start_model(experiment, stage).covers(zip(val.image_ids, val.file_names, strict=True)):
        return ""
    return f"{config.foundation.results} says nothing of the validation images"


def dependents(stage: Stage) -> set[str]:
    """The names of the stages that build on a stage's model, directly or not: its results outdate theirs."""
    direct = [s for s in STAGES if stage.name in (s.start, s.labels_from)]
    return {s.name for s in direct}.union(*(dependents(s) for s in direct))


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


def start_model(experiment: Experiment, stage: Stage) -> Segmenter:
    """The stage's model with the weights it starts from."""
    model = experiment.build(stage.model)
    weights = experiment.foundation_weights(stage.model)
    if stage.start == "pretrained" and weights is not None:
        load_weights(model, weights, experiment.sources.classes, required=False)
    elif stage.start == "backbone" and weights is not None:
        load_weights(model, weights, experiment.sources.classes, parts=model.reusable_parts, required=False)
    elif stage.start == "distilled_student":
        load_weights(model, experiment.weights_path(stage.start), experiment.sources.classes)
    return model.to(experiment.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def stage_objective(config: Config, stage: Stage, label_pool: int = 1) -> Objective:
    """J with the stage's weights; label_pool: how much coarser than the model's masks the pseudo-labels are."""
    lam_pxl = config.train.lam_pxl * stage.pixel
    return objective_of(config, lam_semi=semi_weight(config, stage), lam_pxl=lam_pxl, label_pool=label_pool)


def semi_weight(config: Config, stage: Stage) -> float:
    """lam_semi of a stage: how much its pseudo-labels count; 0 where it has none."""
    return config.train.lam_semi * stage_budget(config, stage).semi_factor if stage.semi else 0.0


def part_weights(config: Config, stage: Stage) -> dict[str, float]:
    """What each logged loss part counts for when parts are compared: its weight in J, for L_pxl without lam_pxl, which
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
    experiment: Experiment, budget: StageConfig, labels: TeacherLabels | None, step: int
) -> Iterator[tuple[Batch, Batch | None]]:
    """Labelled batches and, where there are pseudo-labels, unlabelled ones beside them, from a step on."""
    config, sources = experiment.config, experiment.sources
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


def held_out_ap(experiment: Experiment) -> Callable[[Segmenter], dict[str, float]]:
    """A function model -> AP on the held-out labelled images."""
    truth = experiment.sources.holdout.ground_truth()
    limit = experiment.config.predict.max_detections

    def measure(model: Segmenter) -> dict[str, float]:
        result = evaluate_masks(truth, experiment.predict(model, experiment.sources.holdout), max_detections=limit)
        return {"ap": result.ap, "ap50": result.ap50}

    return measure


def state_key(config: Config, stage: Stage) -> str:
    """A hash of the stage and of every setting its training depends on; a state saved under another is not used."""
    settings = dataclasses.asdict(config)
    for irrelevant in ("output", "device", "predict", "stages"):
        settings.pop(irrelevant)
    for irrelevant in ("workers", "cache_mb", "decoded"):
        settings["data"].pop(irrelevant)
    budget = dataclasses.asdict(stage_budget(config, stage)) if stage.budget else None
    content = [dataclasses.asdict(stage), budget, settings]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
