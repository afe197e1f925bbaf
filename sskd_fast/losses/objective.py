"""The objective: J = L_sup(labelled) + lam_semi L_semi(unlabelled) + lam_pxl L_pxl(both)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from sskd_fast.data.instances import Batch
from sskd_fast.losses.boundary_contrast import BoundaryContrast
from sskd_fast.losses.contrast import InstancePixelContrast
from sskd_fast.losses.contrast_settings import ContrastConfig
from sskd_fast.losses.gradient_share import GradientShare
from sskd_fast.losses.joint_batch import WHOLE, JointBatch
from sskd_fast.losses.mask_ownership import MaskOwnership
from sskd_fast.losses.mask_prototypes import MaskPrototypes
from sskd_fast.losses.set_loss import SetLoss, SetLossConfig, SetLossOutput
from sskd_fast.losses.training_step import Part, TrainingStep
from sskd_fast.models.segmenter import Segmenter

PixelLoss: TypeAlias = InstancePixelContrast | BoundaryContrast | MaskPrototypes | MaskOwnership
# `contrast.form` -> class of L_pxl; InstancePixelContrast computes all other forms.
_FORMS: dict[str, type[PixelLoss]] = {
    "boundary": BoundaryContrast,
    "prototypes": MaskPrototypes,
    "ownership": MaskOwnership,
}


@dataclass
class ObjectiveOutput:
    """The value of the objective.

    loss: J, or the contribution of a part of the joint batch.  parts: every term and diagnostic by name.  seconds: of
    forward, matching, losses and contrast.  means: names of the parts that are means over images, not terms of J.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    seconds: dict[str, float] = field(default_factory=dict)
    means: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Objective:
    """J with its weights. A stage is one setting of (lam_semi, lam_pxl); terms with weight 0 are not computed.

    label_pool: stride of the pseudo-labels' masks divided by that of the model's masks (see SetLoss).  semi_fade: final
    share of the stage over which lam_semi falls linearly to 0, so that the labels have the last word.  semi_masks:
    weight of the pseudo-labels' masks relative to their classes.  gradient_share: sets the weight of L_pxl instead of
    lam_pxl.  sharded: True if every part of the joint batch must call the model as often as the others.
    """

    set_loss: SetLoss
    contrast: PixelLoss | None
    lam_semi: float
    lam_pxl: float
    label_pool: int = 1
    semi_fade: float = 0.0
    semi_masks: float = 1.0
    gradient_share: GradientShare | None = None
    sharded: bool = False

    @classmethod
    def of(
        cls, loss: SetLossConfig, contrast: ContrastConfig, *, lam_semi: float, lam_pxl: float, label_pool: int = 1,
        semi_fade: float = 0.0, semi_masks: float = 1.0, pxl_gradient_share: float = 0.0,
    ) -> Objective:  # fmt: skip
        """J from settings; L_pxl is built if lam_pxl is above 0.

        pxl_gradient_share: target norm of L_pxl's gradient as a share of the rest's, 0 for the fixed weight lam_pxl.
        """
        pixel = _FORMS.get(contrast.form, InstancePixelContrast)(contrast) if lam_pxl > 0 else None
        share = GradientShare(pxl_gradient_share) if pixel is not None and pxl_gradient_share > 0 else None
        return cls(SetLoss(loss), pixel, lam_semi, lam_pxl, label_pool, semi_fade, semi_masks, share)

    def semi_weight(self, progress: float) -> float:
        """lam_semi after a share `progress` of the stage."""
        return self.lam_semi * (min(1.0, (1 - progress) / self.semi_fade) if self.semi_fade > 0 else 1.0)

    def __call__(
        self, model: Segmenter, labeled: Batch, unlabeled: Batch | None, *, progress: float, seed: int,
        joint: JointBatch = WHOLE,
    ) -> ObjectiveOutput:  # fmt: skip
        """J of the model on these images.

        labeled: images with ground truth, possibly none; unlabeled: images with pseudo-labels as targets, or None.
        progress: completed share of the stage, in [0, 1]; seed: of this step's negatives; joint: the joint batch of
        which these images are a part.
        """
        start = time.perf_counter()
        both = [labeled] if unlabeled is None else [labeled, unlabeled]
        encoded = model.encode(torch.cat([batch.weak for batch in both]))
        predictions = model.decode(encoded)
        forward = time.perf_counter()

        count = len(labeled.weak)
        sure = predictions.part(slice(0, count))
        # In the joint batch, unlabelled images follow labelled ones.
        starts = [labeled.first] if unlabeled is None else [labeled.first, labeled.of + unlabeled.first]
        numbers = [first + i for first, batch in zip(starts, both, strict=True) for i in range(len(batch.weak))]
        step = TrainingStep(
            model, encoded, predictions, [], progress, seed, joint.within("pxl "), numbers, self.sharded
        )
        loss, matching = predictions.class_logits.new_zeros(()), 0.0
        parts: dict[str, Tensor] = {}
        if count:
            sup = self.set_loss(
                sure, labeled.targets, labeled.valid, joint=joint.within("sup "), seed=seed, first=starts[0]
            )
            step.parts.append(Part(labeled, sure, True, sup))
            loss, parts, matching = sup.loss, _named(sup, "sup"), sup.seconds
        if unlabeled is not None:
            unsure, semi, weight = predictions.part(slice(count, None)), None, self.semi_weight(progress)
            if self.lam_semi > 0:
                semi = self.set_loss(
                    unsure, unlabeled.targets, unlabeled.valid, label_pool=self.label_pool, semi_masks=self.semi_masks,
                    joint=joint.within("semi "), seed=seed, first=starts[-1],
                )  # fmt: skip
                loss, matching = loss + weight * semi.loss, matching + semi.seconds
                parts |= _named(semi, "semi")
            step.parts.append(Part(unlabeled, unsure, False, semi, weight, self.label_pool))
        losses, means = time.perf_counter(), {"sup_matched", "semi_matched"}

        if self.contrast is not None and self.lam_pxl > 0:
            pixel = self.contrast.of_step(step)
            parts, means = parts | {"pxl": pixel.loss} | pixel.diagnostics, means | pixel.diagnostics.keys()
            weight = self.lam_pxl
            if self.gradient_share is not None:
                share = self.gradient_share(loss, pixel.loss, model.parameters(), joint)
                parts, means = parts | share, means | share.keys()
                weight = self.gradient_share.weight
            loss = loss + weight * pixel.loss
        end = time.perf_counter()
        seconds = {
            "forward": forward - start,
            "matching": matching,
            "losses": losses - forward - matching,
            "contrast": end - losses,
        }
        return ObjectiveOutput(loss, parts, seconds, frozenset(means & parts.keys()))


class ModelObjective(nn.Module):
    """A model and its objective as one module for DDP: its forward uses every parameter that a step trains."""

    def __init__(self, model: Segmenter, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(
        self, labeled: Batch, unlabeled: Batch | None, progress: float, seed: int, joint: JointBatch
    ) -> ObjectiveOutput:
        """J of the model; see `Objective`."""
        return self.objective(self.model, labeled, unlabeled, progress=progress, seed=seed, joint=joint)


def _named(output: SetLossOutput, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}_{name}": value for name, value in output.parts.items()} | {f"{prefix}_matched": output.matched}
