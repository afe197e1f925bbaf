"""Costs of a run: parameters, FLOPs, memory and time of teacher and student, without data or weights.

Models are built and run on PyTorch's meta device: shapes are computed, numbers are not.  FLOPs are those of
torch.utils.flop_counter (two for a multiplication with its addition; matrix products, convolutions and attention).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sskd_fast._env import without_value_checks
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.segmenter import ModelConfig, Segmenter
from sskd_fast.settings import Config

_CLASSES = [f"class{i}" for i in range(8)]
# Weight, gradient, AdamW's two moments and the moving average, in float32.
_BYTES_A_PARAMETER = 20
# What one large GPU sustains in training, less than half of what its data sheet says; for an order of magnitude.
SUSTAINED_FLOPS = {"float32": 2e13, "bfloat16": 1e14, "float16": 1e14}


def dry_run(config: Config, size: Sequence[int]) -> dict[str, dict[str, Any]]:
    """{"student": {...}, "teacher": {...}} for crops of `size` (height, width) and eight classes, whatever the data's.

    params, trainable_params; flops: of one crop's prediction; train_flops: of one step (weak view forward and backward,
    strong view forward); memory_gb: weights, gradients, optimizer, average, and what the backward pass keeps, masks of
    given boxes apart; seconds_a_step: train_flops over SUSTAINED_FLOPS; batch, size, precision.
    """
    return {name: _cost(config, name, size) for name in ("student", "teacher")}


def _cost(config: Config, name: Literal["student", "teacher"], size: Sequence[int]) -> dict[str, Any]:
    settings: ModelConfig = getattr(config, name)
    if not settings.trainable:
        return {"params": 0, "flops": 0, "kind": settings.kind}
    foundation = dataclasses.replace(settings.foundation, pretrained=False, prompts=())
    settings = dataclasses.replace(
        settings, foundation=foundation, num_queries=config.num_queries or settings.num_queries
    )
    # The device also while they run: positions and the like are made on the way.
    with torch.device("meta"), without_value_checks():
        model = build_segmenter(settings, _CLASSES, weights=False).to("meta")
        images = torch.empty(1, 3, *size)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        kept = kept_bytes(model, images)
        model.requires_grad_(False).eval()
        flops, encoding = count_flops(model, images), count_flops(model, images, encode_only=True)
    budget = config.stages.adapted_teacher if name == "teacher" else config.stages.distilled_student
    batch = budget.labeled_batch + budget.unlabeled_batch
    per_step = batch * (3 * flops + encoding)
    return {
        "kind": settings.kind,
        "params": model.parameter_count(),
        "trainable_params": trainable,
        "flops": flops,
        "train_flops": per_step,
        "memory_gb": round((_BYTES_A_PARAMETER * trainable + batch * kept) / 1e9, 2),
        "seconds_a_step": round(per_step / SUSTAINED_FLOPS[settings.precision], 3),
        "batch": batch,
        "size": list(size),
        "precision": settings.precision,
    }


def count_flops(model: Segmenter, images: Tensor, *, encode_only: bool = False) -> int:
    """FLOPs of a prediction, or of encoding alone, for these images; the model's parameters must be frozen."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoded = model.encode(images)
        if not encode_only:
            model.decode(encoded)
    return int(counter.get_total_flops())


def kept_bytes(model: Segmenter, images: Tensor) -> int:
    """Bytes that the backward pass of a prediction keeps, parameters apart; floats count two bytes in bfloat16."""
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []
    short = model.config.precision != "float32"

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            alive.append(tensor)
            sizes[storage._cdata] = storage.nbytes() // (2 if short and tensor.is_floating_point() else 1)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.eval()
        for module in model.modules():  # only these, because others look at values while they train
            module.training = bool(getattr(module, "gradient_checkpointing", False))
        encoded = model.encode(images)
        model.decode(encoded)
        model.embed(encoded)
    return sum(sizes.values())


def cost_text(costs: dict[str, dict[str, Any]]) -> str:
    """The costs as a table, what a step of each model is, and what the teacher costs more."""
    lines = [f"{'':18}" + "".join(f"{name:>12}" for name in costs)]
    for title, key, unit in (
        ("parameters, M", "params", 1e6), ("trained, M", "trainable_params", 1e6), ("GFLOPs a crop", "flops", 1e9),
        ("TFLOPs a step", "train_flops", 1e12), ("memory, GB", "memory_gb", 1), ("seconds a step", "seconds_a_step", 1),
    ):  # fmt: skip
        values = [f"{cost[key] / unit:.2f}" if key in cost else "-" for cost in costs.values()]
        lines.append(f"{title:18}" + "".join(f"{value:>12}" for value in values))
    for name, cost in costs.items():
        if "batch" in cost:
            height, width = cost["size"]
            lines.append(f"{name}: steps of {cost['batch']} crops of {height} x {width} in {cost['precision']}")
    lines.append("memory and seconds are estimates: nothing was run; seconds are those of one large GPU")
    student, teacher = costs["student"], costs["teacher"]
    if teacher["params"]:
        lines.append(
            f"the student has {teacher['params'] / student['params']:.1f} times fewer parameters and "
            f"{100 * (1 - student['flops'] / teacher['flops']):.0f} % fewer FLOPs"
        )
    return "\n".join(lines)
