"""The input of L_pxl in a training step: the model, its predictions on the batches, and their labels.

Shape letters: B images, G padded instances, D embedding width, H x W pixels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sskd_fast.data.instances import Batch, Instances
from sskd_fast.losses.joint_batch import WHOLE, JointBatch
from sskd_fast.losses.set_loss import SetLossOutput
from sskd_fast.models.segmenter import Predictions, Segmenter


@dataclass(frozen=True)
class Part:
    """One batch of a step.

    predictions: of its weak view.  true: True for ground truth, False for pseudo-labels.  set_loss: of this batch, None
    if it was not computed.  weight: of its labels relative to ground truth.  label_pool: stride of the labels divided
    by that of the model's masks.
    """

    batch: Batch
    predictions: Predictions
    true: bool
    set_loss: SetLossOutput | None
    weight: float = 1.0
    label_pool: int = 1


@dataclass(frozen=True)
class TrainingStep:
    """The batches of a step and the model's predictions.

    encoded, predictions: of the weak views of all parts, in order.  progress: completed share of the stage.  seed: of
    the step's random choices.  joint: the joint batch that the parts belong to.  numbers: of their images in it, 0, 1,
    ... by default.  sharded: True if every process must call the model as often as the others.
    """

    model: Segmenter
    encoded: Any
    predictions: Predictions
    parts: list[Part]
    progress: float
    seed: int
    joint: JointBatch = WHOLE
    numbers: Sequence[int] | None = None
    sharded: bool = False

    def weighted_mean(self, sums: Callable[[Part], tuple[Tensor, Tensor]]) -> Tensor:
        """A mean over all parts; sums(part) gives numerator and denominator, both weighted by the part's weight.

        Parts without a set loss are left out.  The denominator is summed over the joint batch.
        """
        total = weight = self.predictions.mask_logits.new_zeros(())
        for part in self.parts:
            if part.set_loss is not None:
                value, mass = sums(part)
                total, weight = total + part.weight * value, weight + part.weight * mass
        return total / self.joint.total("pixels", weight).clamp(min=1e-6)

    def embeddings(self, every: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (B, D, h, w) of the weak and, without gradient, of the strong views; (B,) bool: has a strong view.

        Of every `every` images of the joint batch, one has a strong view, in turns over the seeds; the others have 0.
        """
        weak = self.model.embed(self.encoded)
        images = torch.cat([part.batch.strong for part in self.parts])
        numbers = range(len(images)) if self.numbers is None else self.numbers
        index = [i for i, number in enumerate(numbers) if (number + self.seed) % every == 0]
        strong, has_strong = torch.zeros_like(weak), torch.zeros(len(images), dtype=torch.bool, device=weak.device)
        if index or self.sharded:
            with torch.no_grad():
                found = self.model.embed(self.model.encode(images[index or [0]]))
            strong[index], has_strong[index] = found[: len(index)], True
        return weak, strong, has_strong

    def valid(self, size: tuple[int, int]) -> Tensor:
        """Mask (B, h, w) bool of cells that are mostly valid."""
        valid = torch.cat([part.batch.valid for part in self.parts])
        return F.interpolate(valid.float().unsqueeze(1), size=size, mode="area").squeeze(1) > 0.5

    def true_instances(self, size: tuple[int, int]) -> Tensor:
        """Instances (B, h, w) int64 of the ground truth, as in `instance_map`; -1 on pseudo-labelled images."""
        device = self.predictions.mask_logits.device
        unknown = torch.full(size, -1, dtype=torch.int64, device=device)
        return torch.stack(
            [instance_map(t, size, device) if p.true else unknown for p in self.parts for t in p.batch.targets]
        )

    def instances(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Instances (B, h, w) int64 of labels and pseudo-labels, as in `instance_map`, and weights (B, h, w) of cells.

        The weight of a cell is the score of its instance, or 1 on background, times the weight of the part.
        """
        device = self.predictions.mask_logits.device
        ids, weights = [], []
        for part in self.parts:
            for record in part.batch.targets:
                ids.append(instance_map(record, size, device))
                scores = torch.cat([torch.ones(1), record.scores.float()]).to(device)
                weights.append(part.weight * scores[ids[-1]])
        return torch.stack(ids), torch.stack(weights)


def instance_map(instances: Instances, size: tuple[int, int], device: torch.device) -> Tensor:
    """Map (h, w) int64: 1 + index of the instance that covers most of a cell, 0 if background covers half of it."""
    if not len(instances):
        return torch.zeros(size, dtype=torch.int64, device=device)
    share = F.interpolate(instances.masks.to(device).float().unsqueeze(0), size=size, mode="area")[0]
    best, index = share.max(0)
    return torch.where(best >= 0.5, index + 1, 0)
