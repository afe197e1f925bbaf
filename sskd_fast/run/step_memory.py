"""The memory of a training step, counted on tensors without values: all tensors alive at once, weights included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sskd_fast.data.instances import Batch, Instances
from sskd_fast.losses.objective import Objective
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.run.without_values import backward, dropping_values, without_values

# The rest of a GPU's memory is left to CUDA itself, the workspaces of its libraries, and gaps between tensors.
_USABLE = 0.9


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step.

    lasting: weights, their moving average and AdamW's two moments.  kept: activations saved for the backward pass.
    peak: the most that is alive at once, including gradients and recomputed activations.
    """

    lasting: int
    kept: int
    peak: int


def step_memory(
    model: Segmenter,
    objective: Objective,
    size: Sequence[int],
    images: tuple[int, int],
    instances: int,
    *,
    device: Literal["cpu", "cuda"] = "cuda",
) -> StepMemory:
    """The memory of a step of a model on the meta device; the model cannot be used afterwards.

    size: height and width of the crops; images: labelled and unlabelled images in one forward pass; instances: of each.
    The step accumulates gradients with others, so gradients exist from its start.
    """
    labeled, unlabeled = images
    with without_values(device) as live:
        dropping_values(model).train()
        for module in model.modules():
            if hasattr(module, "layerdrop"):
                module.training = False  # in training, a random value would decide if its layers are dropped
        trained = [p for p in model.parameters() if p.requires_grad]
        beside = [_beside(t) for t in (*model.state_dict().values(), *trained, *trained)]
        lasting = live.now
        for parameter in trained:
            parameter.grad = _beside(parameter)
        before = live.now
        batches = _batch(labeled, size, instances), _batch(unlabeled, size, instances) if unlabeled else None
        loss = objective(model, *batches, progress=0.5, seed=0).loss
        kept = live.now - before
        backward(loss)
        peak = live.peak
        del beside
    # AdamW takes the square root of the second moments of all weights at once.
    stepping = before + sum(p.numel() * p.element_size() for p in trained) if device == "cuda" else 0
    return StepMemory(lasting, kept, max(peak, stepping))


def fitting_images(one: int, all_of: int, batch: int, gigabytes: float) -> int:
    """The most images, up to `batch`, whose forward pass fits a GPU's memory; 0 if a single one does not.

    one, all_of: peak bytes of a step with one image and with `batch` images.  In between, the peak lies below the
    straight line, since it is the maximum of sums that grow linearly with the images.
    """
    usable = _USABLE * gigabytes * 1e9
    if one > usable:
        return 0
    more = (all_of - one) / max(1, batch - 1)
    return batch if all_of <= usable else 1 + int((usable - one) / more)


def _beside(tensor: Tensor) -> Tensor:
    """Another tensor of the same size; empty_like on shapes runs in Python, at several times the cost."""
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _batch(images: int, size: Sequence[int], instances: int) -> Batch:
    views: list[Tensor] = [torch.empty(images, 3, *size) for _ in range(2)]
    targets = [
        Instances(
            torch.empty(instances, *size, dtype=torch.bool),
            torch.empty(instances, dtype=torch.int64),
            torch.empty(instances),
            torch.empty(instances, dtype=torch.bool),
        )
        for _ in range(images)
    ]
    return Batch(views[0], views[1], torch.empty(images, *size, dtype=torch.bool), targets, list(range(images)))
