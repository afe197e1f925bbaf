"""The one objective: J = L_sup(labelled) + lam_semi L_semi(unlabelled) + lam_pxl L_pxl(both)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sskd_fast.data.instances import Batch, Instances
from sskd_fast.losses.contrast import ContrastConfig, InstancePixelContrast
from sskd_fast.losses.set_loss import SetLoss, SetLossConfig, SetLossOutput
from sskd_fast.models.segmenter import Predictions, Segmenter


@dataclass
class ObjectiveOutput:
    """loss: J; parts: every term and diagnostic by name; seconds: forward, matching, losses, contrast."""

    loss: Tensor
    parts: dict[str, Tensor]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """J with its weights. A stage is one setting of (lam_semi, lam_pxl); a term of weight 0 is not computed.

    label_pool: how many times coarser than the model's masks the pseudo-labels were drawn (see SetLoss).  semi_fade:
    share of the stage, at its end, over which lam_semi falls linearly to 0, so that the labels have the last word.
    semi_masks: weight of the pseudo-labels' masks relative to their classes .
    """

    set_loss: SetLoss
    contrast: InstancePixelContrast | None
    lam_semi: float
    lam_pxl: float
    label_pool: int = 1
    semi_fade: float = 0.0
    semi_masks: float = 1.0

    @classmethod
    def of(
        cls, loss: SetLossConfig, contrast: ContrastConfig, *, lam_semi: float, lam_pxl: float, label_pool: int = 1,
        semi_fade: float = 0.0, semi_masks: float = 1.0,
    ) -> Objective:  # fmt: skip
        """J from settings; the contrast is built if its weight is above 0."""
        pixel = InstancePixelContrast(contrast) if lam_pxl > 0 else None
        return cls(SetLoss(loss), pixel, lam_semi, lam_pxl, label_pool, semi_fade, semi_masks)

    def semi_weight(self, progress: float) -> float:
        """lam_semi when a share `progress` of the stage is over."""
        return self.lam_semi * (min(1.0, (1 - progress) / self.semi_fade) if self.semi_fade > 0 else 1.0)

    def __call__(
        self, model: Segmenter, labeled: Batch, unlabeled: Batch | None, *, progress: float, seed: int
    ) -> ObjectiveOutput:
        """labeled: images with ground truth; unlabeled: images with pseudo-labels as targets, or None.

        progress: share of the stage that is over, in [0, 1]; seed: of this step's negatives.
        """
        start = time.perf_counter()
        both = [labeled] if unlabeled is None else [labeled, unlabeled]
        encoded = model.encode(torch.cat([batch.weak for batch in both]))
        predictions = model.decode(encoded)
        forward = time.perf_counter()

        count = len(labeled.weak)
        sup = self.set_loss(predictions.part(slice(0, count)), labeled.targets, labeled.valid)
        loss, parts, matching = sup.loss, _named(sup, "sup"), sup.seconds
        if unlabeled is not None and self.lam_semi > 0:
            semi = self.set_loss(
                predictions.part(slice(count, None)), unlabeled.targets, unlabeled.valid,
                label_pool=self.label_pool, semi_masks=self.semi_masks,
            )  # fmt: skip
            loss, matching = loss + self.semi_weight(progress) * semi.loss, matching + semi.seconds
            parts |= _named(semi, "semi")
        losses = time.perf_counter()

        if self.contrast is not None and self.lam_pxl > 0:
            pixel, diagnostics = self._contrast(self.contrast, model, encoded, predictions, both, progress, seed)
            loss = loss + self.lam_pxl * pixel
            parts |= {"pxl": pixel} | diagnostics
        end = time.perf_counter()
        seconds = {
            "forward": forward - start, "matching": matching, "losses": losses - forward - matching,
            "contrast": end - losses,
        }  # fmt: skip
        return ObjectiveOutput(loss, parts, seconds)

    @staticmethod
    def _contrast(
        contrast: InstancePixelContrast, model: Segmenter, encoded: Any, predictions: Predictions,
        both: list[Batch], progress: float, seed: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """L_pxl between the views; the strong view's pass and projection carry no gradient."""
        weak = model.embed(encoded)
        with torch.no_grad():
            strong = model.embed(model.encode(torch.cat([batch.strong for batch in both])))
        size = (weak.shape[-2], weak.shape[-1])
        valid = (
            F.interpolate(torch.cat([batch.valid for batch in both]).float().unsqueeze(1), size=size, mode="area") > 0.5
        )
        ids = [instance_map(t, size, weak.device) for t in both[0].targets]
        ids += [torch.full(size, -1, dtype=torch.int64, device=weak.device) for b in both[1:] for _ in b.targets]
        output = contrast(
            predictions.mask_logits, predictions.class_logits, weak, strong, progress=progress, seed=seed,
            valid=valid.squeeze(1), instance_ids=torch.stack(ids),
        )  # fmt: skip
        return output.loss, output.diagnostics


def instance_map(instances: Instances, size: tuple[int, int], device: torch.device) -> Tensor:
    """(h, w) int64: 1 + index of the instance that covers most of the cell, 0 where background covers half of it."""
    if not len(instances):
        return torch.zeros(size, dtype=torch.int64, device=device)
    share = F.interpolate(instances.masks.to(device).float().unsqueeze(0), size=size, mode="area")[0]
    best, index = share.max(0)
    return torch.where(best >= 0.5, index + 1, 0)


def _named(output: SetLossOutput, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}_{name}": value for name, value in output.parts.items()} | {f"{prefix}_matched": output.matched}
