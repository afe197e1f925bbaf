"""The instance-aware pixel-wise contrastive loss: the module around the three operators.

Shape letters: B images, K queries, C classes, D embedding width, A anchors, M candidates, R negatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sskd_fast import ops, ranks
from sskd_fast.losses.anchors import Pixels, draw_anchors, pixel_rows, rows_of
from sskd_fast.losses.contrast_settings import ContrastConfig, ContrastOutput, require
from sskd_fast.losses.joint_batch import WHOLE, JointBatch
from sskd_fast.losses.memory_bank import MemoryBank
from sskd_fast.losses.training_step import TrainingStep

# Draws for each hard negative, of which the most similar are taken.
_DRAWS_PER_HARD = 4
# Diagnostics use this many anchors and, in the expected form, draw this many negatives for them.
_WATCHED_ANCHORS = 128
_WATCHED_NEGATIVES = 32


DIAGNOSTICS = ("margin", "fnr", "fnr_foreground", "fnr_background", "other_instance_share")
# The forms of ContrastConfig that InstancePixelContrast computes.
FORMS = ("sampled", "expected")


class InstancePixelContrast(nn.Module):
    """NT-Xent between two views of every anchor pixel, against pixels that likely lie on other instances.

    config: its settings; keyword arguments override them, as in `InstancePixelContrast(num_negatives=200)`.
    Raises ValueError as `ContrastConfig` does, TypeError for an unknown setting.
    Source: L_pxl of semi-supervised foundation-model distillation; cue "object" and objectness are this project's own.
    """

    def __init__(self, config: ContrastConfig | None = None, **settings: Any) -> None:
        super().__init__()
        self.config = replace(config or ContrastConfig(), **settings)
        found = self.config.form
        require(found in FORMS, f"form: InstancePixelContrast is one of {', '.join(FORMS)}, found {found!r}")
        self.num_hard = round(self.config.hard_share * self.config.num_negatives)
        self.bank = MemoryBank(self.config.memory_bank) if self.config.memory_bank else None

    def temperature(self, progress: float) -> float:
        """The temperature at `progress` of the training, in [0, 1]. Raises ValueError outside."""
        return self.config.temperature_at(progress)

    def of_step(self, step: TrainingStep) -> ContrastOutput:
        """The loss of a training step between its two views, the strong one without gradient."""
        weak, strong, has_strong = step.embeddings(self.config.strong_every)
        size = (weak.shape[-2], weak.shape[-1])
        return self(
            step.predictions.mask_logits, step.predictions.class_logits, weak, strong, progress=step.progress,
            seed=step.seed, valid=step.valid(size), instance_ids=step.true_instances(size), numbers=step.numbers,
            joint=step.joint, has_strong=has_strong,
        )  # fmt: skip

    def forward(
        self,
        mask_logits: Tensor,
        class_logits: Tensor,
        embeddings_weak: Tensor,
        embeddings_strong: Tensor,
        *,
        progress: float,
        seed: int,
        valid: Tensor | None = None,
        instance_ids: Tensor | None = None,
        numbers: Sequence[int] | None = None,
        joint: JointBatch = WHOLE,
        has_strong: Tensor | None = None,
    ) -> ContrastOutput:
        """The loss of a batch of image pairs, two views of one geometry.

        mask_logits (B, K, H, W) and class_logits (B, K, C+1) of the weak view, without gradient.  embeddings_weak (B,
        D, h, w), with gradient.  embeddings_strong (B, D, h, w), without. progress: in [0, 1], sets the temperature.
        seed: of this step. valid (B, h, w) bool: False for pixels that are neither anchor nor candidate (padding).
        instance_ids (B, h, w) int64 for the diagnostics: 0 background, -1 unknown.  joint: the joint batch; the loss is
        a mean over its anchors.  numbers: of the images in it, which seed the draws of their anchors.  Candidates are
        the pixels of this batch and, with `all_ranks`, of the other ranks' current batches.  has_strong (B,) bool:
        images with a strong view, which alone have anchors; all by default.  The loss is 0 without anchors.
        Raises ValueError or TypeError naming an argument of the wrong shape or range.
        """
        temperature = self.temperature(progress)
        shape = check_shapes(mask_logits, embeddings_weak, embeddings_strong, valid, instance_ids)
        candidates = pixel_rows(
            mask_logits, class_logits, embeddings_weak, instance_ids, cues=self.config.cues,
            weighted=self.config.objectness, backend=self.config.backend,
        )  # fmt: skip
        strong = rows_of(embeddings_strong.detach())
        usable = valid
        if has_strong is not None:
            on_these = has_strong[:, None, None].expand(-1, *embeddings_weak.shape[-2:])
            usable = on_these if valid is None else on_these & valid
        anchor_index = draw_anchors(shape, usable, self.config.max_anchors, seed, strong.device, numbers)
        anchors = candidates.select(anchor_index)
        positives = F.normalize(strong.index_select(0, anchor_index), dim=-1)
        own = anchor_index
        if valid is not None:
            kept = valid.flatten()
            candidates = candidates.select(kept.nonzero()[:, 0])
            own = (kept.cumsum(0) - 1).index_select(0, anchor_index)
        fresh = candidates
        seed += numbers[0] << 44 if numbers else 0  # other negatives in every part of the joint batch
        if self.config.all_ranks and ranks.count() > 1:
            candidates = candidates.join(candidates.map(ranks.rows_of_others).elsewhere())
        if self.bank is not None:
            candidates = self.bank.extend(candidates)
        if self.config.form == "expected":
            loss = self._expected(anchors, positives, candidates, temperature)
            count = min(self.config.num_negatives, _WATCHED_NEGATIVES)
            step = max(1, math.ceil(len(own) / _WATCHED_ANCHORS))
            anchors, positives = anchors.select(torch.arange(0, len(own), step, device=own.device)), positives[::step]
            negatives = self._draw(anchors, candidates, count, seed, own[::step])
        else:
            negatives = self._negatives(anchors, candidates, seed, own)
            loss = ops.pixel_contrast(
                anchors.embedding, positives, candidates.embedding, negatives, temperature, margin=self.config.margin,
                normalize=False, backend=self.config.backend,
            )  # fmt: skip
        loss = loss * joint.share("anchors", loss.new_tensor(float(len(own))))
        with torch.no_grad():
            output = ContrastOutput(loss, diagnose(anchors, positives, candidates, negatives))
            if self.bank is not None and self.training and joint.learns:
                self.bank.add(fresh, own, seed, joint.parts)
        return output

    def _negatives(self, anchors: Pixels, candidates: Pixels, seed: int, own: Tensor) -> Tensor:
        """Indices (A, R) of negatives: drawn and, with `hard_share`, in part the hardest of further draws."""
        if self.num_hard == 0:
            return self._draw(anchors, candidates, self.config.num_negatives, seed, own)
        plain = self.config.num_negatives - self.num_hard
        drawn = self._draw(anchors, candidates, plain + _DRAWS_PER_HARD * self.num_hard, seed, own)
        embeddings = anchors.embedding, candidates.embedding
        hard = ops.hardest_negatives(
            *embeddings, drawn[:, plain:].contiguous(), self.num_hard, backend=self.config.backend
        )
        return torch.cat([drawn[:, :plain], hard], 1)

    def _draw(self, anchors: Pixels, candidates: Pixels, count: int, seed: int, own: Tensor) -> Tensor:
        negatives = ops.sample_negatives(
            anchors.image[:, None].float() if anchors.scores is None else anchors.scores,
            candidates.scores,
            count,
            seed=seed,
            anchor_group=anchors.image,
            candidate_group=candidates.image,
            scope=self.config.scope,
            backend=self.config.backend,
            candidate_weight=candidates.weight,
        )
        # With scores, an anchor is never its own negative; without them it must be masked out.
        return negatives if anchors.scores is not None else negatives.masked_fill(negatives == own[:, None], -1)

    def _expected(self, anchors: Pixels, positives: Tensor, candidates: Pixels, temperature: float) -> Tensor:
        return ops.expected_pixel_contrast(
            anchors.embedding,
            positives,
            candidates.embedding,
            anchors.scores,
            candidates.scores,
            self.config.num_negatives,
            temperature,
            anchor_group=anchors.image,
            candidate_group=candidates.image,
            scope=self.config.scope,
            normalize=False,
            backend=self.config.backend,
            candidate_weight=candidates.weight,
        )


def diagnose(anchors: Pixels, positives: Tensor, candidates: Pixels, negatives: Tensor) -> dict[str, Tensor]:
    """The diagnostics of `ContrastOutput`; similarities are measured on a part of the anchors."""
    step = max(1, math.ceil(len(negatives) / _WATCHED_ANCHORS))
    watched, drawn = anchors.embedding[::step], negatives[::step]
    margin = watched.new_tensor(math.nan)
    if len(candidates.label) and len(negatives):
        pushed = torch.einsum("ard,ad->ar", F.embedding(drawn.clamp_min(0), candidates.embedding), watched)
        margin = (watched * positives[::step]).sum(-1).mean() - pushed[drawn >= 0].mean()
        drawn_label = candidates.label.index_select(0, negatives.clamp_min(0).flatten()).view(negatives.shape)
    else:
        drawn_label = torch.full_like(negatives, -1)
    label = anchors.label[:, None]
    known = (negatives >= 0) & (drawn_label >= 0) & (label >= 0)
    false = (known & (drawn_label == label)).sum(1)
    other = (known & (drawn_label > 0) & (drawn_label != label)).sum(1)
    count = known.sum(1)
    foreground = label[:, 0] > 0
    return {
        "margin": margin,
        "fnr": false.sum() / count.sum(),
        "fnr_foreground": (false * foreground).sum() / (count * foreground).sum(),
        "fnr_background": (false * ~foreground).sum() / (count * ~foreground).sum(),
        "other_instance_share": (other * foreground).sum() / (count * foreground).sum(),
    }


def check_shapes(
    mask_logits: Tensor, weak: Tensor, strong: Tensor, valid: Tensor | None, instance_ids: Tensor | None
) -> tuple[int, int]:
    """Check the shapes and return (B, N). Raises ValueError or TypeError."""
    require(weak.dim() == 4, f"embeddings_weak: found shape {tuple(weak.shape)}, expected (B, D, h, w)")
    images, _, height, width = weak.shape
    wanted = (images, height, width)
    found = tuple(strong.shape)
    require(found == tuple(weak.shape), f"embeddings_strong: found shape {found}, expected {tuple(weak.shape)}")
    require(len(mask_logits) == images, f"mask_logits: found {len(mask_logits)} images, expected {images}")
    for name, value in (("valid", valid), ("instance_ids", instance_ids)):
        if value is not None:
            require(tuple(value.shape) == wanted, f"{name}: found shape {tuple(value.shape)}, expected {wanted}")
    if valid is not None and valid.dtype != torch.bool:
        raise TypeError(f"valid: expected bool, found {valid.dtype}")
    return images, height * width
