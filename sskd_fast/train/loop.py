"""The training loop. A stage is one call of `train`; stages differ only in the arguments."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sskd_fast.data.instances import Batch
from sskd_fast.losses.objective import Objective
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.train.checkpoint import TrainingState
from sskd_fast.train.compiled import without_graphs
from sskd_fast.train.engine import Engine
from sskd_fast.train.moving_average import update_average
from sskd_fast.train.online_labels import OnlineLabels
from sskd_fast.train.progress import Progress
from sskd_fast.train.schedule import Schedule


def train(
    model: Segmenter,
    objective: Objective,
    draw: Callable[[int], Iterator[tuple[Batch, Batch | None]]],
    schedule: Schedule,
    state: TrainingState,
    progress: Progress,
    evaluate: Callable[[Segmenter], dict[str, float]] | None,
    seed: int,
    online: OnlineLabels | None = None,
) -> Segmenter:
    """Trains `model` for the schedule's steps and returns its exponential moving average, the model to evaluate.

    draw(step): the batches (labelled, unlabelled) from a step on, so that a resumed stage draws the same ones.  state:
    saves the progress, and restores it on resume.  evaluate: measures AP on held-out images.  online: labels unlabelled
    batches with the moving average.
    Raises FloatingPointError if the loss is not finite.
    """
    optimizer = build_optimizer(model, schedule)
    average = copy.deepcopy(model).requires_grad_(False)
    engine = Engine(model, objective, optimizer, schedule.train.micro_batch, schedule.train.compile)
    if schedule.train.compile and not engine.compiled:
        progress.log.say(f"  train.compile: a model of kind {model.config.kind} is not compiled")
    modules = {
        "model": model,
        "average": average,
        "contrast": objective.contrast,
        "gradient_share": objective.gradient_share,
        "scaler": engine.scaler if engine.scaler.is_enabled() else None,
    }
    start = state.restore(modules, optimizer)
    measure_at = {
        round(schedule.steps * (i + 1) / schedule.train.evaluations) for i in range(schedule.train.evaluations)
    }
    device = next(model.parameters()).device
    batches = draw(start)
    model.train()
    progress.begin(start, schedule.steps)
    for step in range(start, schedule.steps):
        clock = time.perf_counter()
        labeled, unlabeled = next(batches)
        labeled, unlabeled = to_device(labeled, device), None if unlabeled is None else to_device(unlabeled, device)
        if online is not None:
            unlabeled = online(average, unlabeled, step / schedule.steps)
        progress.drawn(labeled, unlabeled)
        data_seconds = time.perf_counter() - clock

        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * schedule.factor(step)
        output = engine.gradients((labeled, unlabeled), step / schedule.steps, seed * 1_000_003 + step)

        clock = time.perf_counter()
        norm = engine.update(schedule.train.clip)
        update_average(average, model, min(schedule.train.ema, (1 + step) / (10 + step)))
        backward = output.seconds["backward"] + time.perf_counter() - clock
        seconds = {"data": data_seconds, **output.seconds, "backward": backward}

        progress.step(step, output, norm, schedule.lr * schedule.factor(step), seconds)
        if evaluate is not None and step + 1 in measure_at:
            with progress.paused():
                progress.measured(step, evaluate(average))
        if (step + 1) % schedule.train.save_every == 0 and step + 1 < schedule.steps:
            state.save(step + 1, modules, optimizer, progress.cost)
    del batches  # ends the loader processes, so that their CPU seconds are known
    progress.end()
    without_graphs(model)
    return average


def build_optimizer(model: Segmenter, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW without weight decay on norms, biases and vectors, and with a separate learning rate for the backbone."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith(model.backbone_parts), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "base_lr": schedule.lr * (schedule.train.backbone_lr if backbone else 1.0),
                "weight_decay": schedule.train.weight_decay if decayed else 0.0,
            }
            for (backbone, decayed), parameters in groups.items()
        ],
        lr=schedule.lr,
        betas=schedule.train.betas,
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its images on the device; the loss moves the instances when it pads them."""
    if device.type == "cpu":
        return batch
    weak, strong, valid = (x.to(device, non_blocking=True) for x in (batch.weak, batch.strong, batch.valid))
    return replace(batch, weak=weak, strong=strong, valid=valid)
