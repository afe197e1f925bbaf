"""Costs of a run: parameters, FLOPs, memory and time of teacher and student, without data or weights.

Models are built and run on PyTorch's meta device, which computes shapes but no numbers.  FLOPs are those of
torch.utils.flop_counter (two for a multiply-add; matrix products, convolutions and attention).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from sskd_fast._env import without_value_checks
from sskd_fast.method import STAGE
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.models.settings import ModelConfig
from sskd_fast.run.stage_settings import stage_budget, stage_objective
from sskd_fast.run.step_memory import fitting_images, step_memory
from sskd_fast.settings import Config

_CLASSES = [f"class{i}" for i in range(8)]
ModelName: TypeAlias = Literal["student", "teacher"]
# The stage whose steps are costed.
_STAGES: dict[ModelName, str] = {"student": "distilled_student", "teacher": "adapted_teacher"}
# Instances of a crowded image; the detector learns from all of them.
_INSTANCES = 60
# Memory of common GPUs in GB.
GPU_SIZES = (80, 24)
# Sustained FLOP/s of a large GPU in training, less than half of its data sheet; an order of magnitude.
SUSTAINED_FLOPS = {"float32": 2e13, "bfloat16": 1e14, "float16": 1e14}


def dry_run(config: Config, size: Sequence[int]) -> dict[str, dict[str, Any]]:
    """{"student": {...}, "teacher": {...}} for crops of `size` (height, width) and eight classes, whatever the data's.

    The figures of `model_cost`, and those of a training step.  batch: its images.  memory_gb, memory_gb_an_image: GPU
    memory of a step with all images at once, or with one at a time (see `step_memory`).  images_at_once: memory of a
    GPU in GB -> images of the batch that fit at once, 0 if not even one does.
    """
    return {name: model_cost(config, name, size) | _memory(config, name, size) for name in ("student", "teacher")}


def model_cost(config: Config, name: ModelName, size: Sequence[int]) -> dict[str, Any]:
    """Size and compute of a model, without its memory.

    params, trainable_params. flops: of one crop's prediction. train_flops: of one step (weak view forward and backward,
    strong view forward). seconds_a_step: train_flops over SUSTAINED_FLOPS. Also batch, size, precision.
    """
    settings: ModelConfig = getattr(config, name)
    if not settings.trainable:
        return {"params": 0, "flops": 0, "kind": settings.kind}
    # The device is also set while models run: they create tensors, such as positions, on the way.
    with torch.device("meta"), without_value_checks():
        model = _build(config, name)
        images = torch.empty(1, 3, *size)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        model.requires_grad_(False).eval()
        flops, encoding = count_flops(model, images)
    batch = sum(_images(config, name))
    per_step = batch * (3 * flops + encoding)
    return {
        "kind": settings.kind,
        "params": model.parameter_count(),
        "trainable_params": trainable,
        "flops": flops,
        "train_flops": per_step,
        "seconds_a_step": round(per_step / SUSTAINED_FLOPS[settings.precision], 3),
        "batch": batch,
        "size": list(size),
        "precision": settings.precision,
    }


def _memory(config: Config, name: ModelName, size: Sequence[int]) -> dict[str, Any]:
    if not getattr(config, name).trainable:
        return {}
    objective = stage_objective(config, STAGE[_STAGES[name]])
    labeled, unlabeled = _images(config, name)
    batch = labeled + unlabeled
    one, every = (
        step_memory(_build(config, name), objective, size, images, _INSTANCES).peak
        for images in ((1, 0) if labeled else (0, 1), (labeled, unlabeled))
    )
    return {
        "memory_gb": round(every / 1e9, 2),
        "memory_gb_an_image": round(one / 1e9, 2),
        "images_at_once": {str(gb): fitting_images(one, every, batch, gb) for gb in GPU_SIZES},
    }


def _images(config: Config, name: ModelName) -> tuple[int, int]:
    """Labelled and unlabelled images in a step of the costed stage."""
    budget = stage_budget(config, STAGE[_STAGES[name]])
    return budget.labeled_batch, budget.unlabeled_batch


def _build(config: Config, name: ModelName) -> Segmenter:
    """The model on the meta device, without weights or files."""
    settings: ModelConfig = getattr(config, name)
    foundation = dataclasses.replace(settings.foundation, pretrained=False, prompts=())
    queries = config.num_queries or settings.num_queries
    settings = dataclasses.replace(settings, foundation=foundation, num_queries=queries)
    with torch.device("meta"), without_value_checks():
        return build_segmenter(settings, _CLASSES, weights=False).to("meta")


def count_flops(model: Segmenter, images: Tensor) -> tuple[int, int]:
    """FLOPs of a prediction and, of these, of encoding for these images; the model's parameters must be frozen."""
    from torch.utils.flop_counter import FlopCounterMode  # it imports Triton, for which other commands need not wait

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoded = model.encode(images)
        encoding = counter.get_total_flops()
        model.decode(encoded)
    return int(counter.get_total_flops()), int(encoding)


def cost_text(costs: dict[str, dict[str, Any]]) -> str:
    """The costs as a table, a description of each model's step, and the student's savings."""
    lines = [f"{'':18}" + "".join(f"{name:>12}" for name in costs)]
    for title, key, unit in (
        ("parameters, M", "params", 1e6),
        ("trained, M", "trainable_params", 1e6),
        ("GFLOPs per crop", "flops", 1e9),
        ("TFLOPs per step", "train_flops", 1e12),
        ("memory, GB", "memory_gb", 1),
        ("1 image at once", "memory_gb_an_image", 1),
        ("seconds per step", "seconds_a_step", 1),
    ):
        values = [f"{cost[key] / unit:.2f}" if key in cost else "-" for cost in costs.values()]
        lines.append(f"{title:18}" + "".join(f"{value:>12}" for value in values))
    for name, cost in costs.items():
        if "batch" in cost:
            height, width = cost["size"]
            lines.append(f"{name}: steps of {cost['batch']} crops of {height} x {width} in {cost['precision']}")
            at_once = [f"{images} at once on {gb} GB" for gb, images in cost["images_at_once"].items()]
            lines.append(f"{'':{len(name)}}  of which fit {', '.join(at_once)}")
    lines.append("memory and seconds are estimates: nothing was run; seconds are those of one large GPU")
    student, teacher = costs["student"], costs["teacher"]
    if teacher["params"]:
        lines.append(
            f"the student has {teacher['params'] / student['params']:.1f} times fewer parameters and "
            f"{100 * (1 - student['flops'] / teacher['flops']):.0f} % fewer FLOPs"
        )
    return "\n".join(lines)
