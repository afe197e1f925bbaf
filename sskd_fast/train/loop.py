"""The training loop. One stage is one call of `train`; stages differ in what they pass, not in how they run."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sskd_fast.data.instances import Batch
from sskd_fast.losses.objective import Objective
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.settings import StageConfig, TrainConfig
from sskd_fast.train.checkpoint import TrainingState
from sskd_fast.train.watch import Watch


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a stage trains."""

    steps: int
    lr: float
    backbone_lr: float
    weight_decay: float
    betas: tuple[float, float]
    clip: float
    warmup: int
    decay: str
    ema: float
    save_every: int
    evaluations: int

    @classmethod
    def of(cls, t: TrainConfig, budget: StageConfig) -> Schedule:
        """That of a stage: what all stages share, and the stage's own steps and learning rate."""
        return cls(
            steps=budget.steps, lr=t.lr * budget.lr_factor, backbone_lr=t.backbone_lr, weight_decay=t.weight_decay,
            betas=t.betas, clip=t.clip, warmup=t.warmup, decay=t.schedule, ema=t.ema, save_every=t.save_every,
            evaluations=t.evaluations,
        )  # fmt: skip

    def factor(self, step: int) -> float:
        """Learning-rate factor of a step: linear warm-up, then cosine down to 2 % or polynomial with power 0.9."""
        rise = min(1.0, (step + 1) / max(1, min(self.warmup, self.steps // 4)))
        done = step / max(1, self.steps)
        fall = 0.02 + 0.49 * (1 + math.cos(math.pi * done)) if self.decay == "cosine" else (1 - done) ** 0.9
        return rise * fall


def train(
    model: Segmenter,
    objective: Objective,
    draw: Callable[[int], Iterator[tuple[Batch, Batch | None]]],
    schedule: Schedule,
    state: TrainingState,
    watch: Watch,
    evaluate: Callable[[Segmenter], dict[str, float]] | None,
    seed: int,
) -> Segmenter:
    """Trains `model` for the schedule's steps and returns its exponential moving average, which is what a stage is
    judged by.

    draw(step): the batches (labelled, unlabelled) from a step on, so that an interrupted stage goes on with the same
    ones.  state: where progress is saved and, if it holds any, taken up.  evaluate: AP on held-out images.
    Raises FloatingPointError where the loss is not finite.
    """
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = build_optimizer(model, schedule)
    modules = {"model": model, "average": average, "contrast": objective.contrast}
    start = state.restore(modules, optimizer)
    measure_at = {round(schedule.steps * (i + 1) / schedule.evaluations) for i in range(schedule.evaluations)}
    device = next(model.parameters()).device
    batches = draw(start)
    model.train()
    watch.begin(start, schedule.steps)
    for step in range(start, schedule.steps):
        clock = time.perf_counter()
        labeled, unlabeled = next(batches)
        labeled, unlabeled = to_device(labeled, device), None if unlabeled is None else to_device(unlabeled, device)
        data_seconds = time.perf_counter() - clock

        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * schedule.factor(step)
        output = objective(model, labeled, unlabeled, progress=step / schedule.steps, seed=seed * 1_000_003 + step)

        clock = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimizer.step()
        update_average(average, model, min(schedule.ema, (1 + step) / (10 + step)))
        seconds = {"data": data_seconds, **output.seconds, "backward": time.perf_counter() - clock}

        watch.step(step, output, norm, schedule.lr * schedule.factor(step), seconds)
        if evaluate is not None and step + 1 in measure_at:
            with watch.paused():
                watch.measured(step, evaluate(average))
        if (step + 1) % schedule.save_every == 0 and step + 1 < schedule.steps:
            state.save(step + 1, modules, optimizer, watch.seconds)
    watch.end()
    return average


def build_optimizer(model: Segmenter, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW; no weight decay on norms, biases and vectors; the backbone at its own learning rate."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith(model.backbone_parts), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "base_lr": schedule.lr * (schedule.backbone_lr if backbone else 1.0),
                "weight_decay": schedule.weight_decay if decayed else 0.0,
            }
            for (backbone, decayed), parameters in groups.items()
        ],
        lr=schedule.lr,
        betas=schedule.betas,
    )


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model for parameters; buffers (batch statistics) are the model's."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, current in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(current)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its images on the device; the instances follow when the loss pads them."""
    if device.type == "cpu":
        return batch
    return Batch(
        batch.weak.to(device, non_blocking=True), batch.strong.to(device, non_blocking=True),
        batch.valid.to(device, non_blocking=True), batch.targets, batch.image_ids,
    )  # fmt: skip
