"""Labels from the moving average while the model trains: weak view in, labels for the strong view out.

Source: Mean Teacher (Tarvainen and Valpola, 2017) with thresholds on scores, as in Unbiased Teacher (2021).
Shape letters: B images, n instances, H x W pixels of a view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sskd_fast.data.instances import Batch, Instances
from sskd_fast.models.inference import Detection, InferenceConfig, cut, merge, read_queries
from sskd_fast.models.segmenter import Segmenter


@dataclass(frozen=True)
class OnlineConfig:
    """Labels of the moving average instead of a teacher's, in a stage with unlabelled images.

    start: share of the stage after which they take over, 1 = never.  score: from this score on, a prediction is a
    label.  unsure: from this score on, training ignores the region of a prediction that is not a label.
    Raises ValueError for a setting out of range.
    """

    start: float = 1.0
    score: float = 0.5
    unsure: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise ValueError(f"start: expected a share of the stage in [0, 1], 1 for never, found {self.start}")
        if not 0 < self.unsure <= self.score < 1:
            raise ValueError(f"unsure, score: expected 0 < unsure <= score < 1, found {self.unsure}, {self.score}")


@dataclass(frozen=True)
class OnlineLabels:
    """Gives the unlabelled batches of a stage their labels at each step.

    taught: True if the batches come with a teacher's labels.  If not, they are left out until the moving average takes
    over.  nms_iou: if two predictions of a class overlap more than this, the better-scored one stays.
    """

    config: OnlineConfig
    taught: bool
    weigh_by_score: bool = True
    nms_iou: float = 0.6

    def __call__(self, average: Segmenter, unlabeled: Batch | None, progress: float) -> Batch | None:
        """The batch of a step for the objective, None to leave it out; progress: as for the objective.

        Once the moving average labels, the strong view takes the place of the weak one in training.  Regions that the
        teacher is unsure of are ignored.
        """
        if unlabeled is None or (progress < self.config.start and not self.taught):
            return None
        return unlabeled if progress < self.config.start else self._labelled(average, unlabeled)

    @torch.no_grad()
    def _labelled(self, average: Segmenter, batch: Batch) -> Batch:
        predictions = average.eval()(batch.weak)
        probs = average.class_probs(predictions)
        valid, targets = batch.valid.clone(), []
        for image, (masks, classes) in enumerate(zip(predictions.mask_logits, probs, strict=True)):
            found = self._found(masks, classes, (batch.weak.shape[-2], batch.weak.shape[-1]))
            sure = found.scores >= self.config.score
            labels, unsure = found.select(sure), found.masks[~sure].any(0)
            valid[image] &= (labels.masks.any(0) | ~unsure).to(valid.device)
            targets.append(labels if self.weigh_by_score else replace(labels, scores=torch.ones_like(labels.scores)))
        return replace(batch, weak=batch.strong, strong=batch.weak, valid=valid, targets=targets)

    def _found(self, mask_logits: Tensor, probs: Tensor, size: tuple[int, int]) -> Instances:
        """The detections of a view with at least the unsure score; mask_logits (K, h, w), probs (K, C)."""
        inference = InferenceConfig(tile=size, overlap=0, score_floor=self.config.unsure, nms_iou=self.nms_iou)
        read = zip(*read_queries(mask_logits, probs, inference), strict=True)
        found = [cut(mask, 0, 0, label, score, (0, 0, *size)) for mask, label, score in read]
        return instances_of(merge([detection for detection in found if detection is not None], inference), size)


def instances_of(detections: list[Detection], size: tuple[int, int]) -> Instances:
    """The detections of a view of H x W pixels as instances."""
    masks = np.zeros((len(detections), *size), dtype=np.bool_)
    for mask, d in zip(masks, detections, strict=True):
        top, left, bottom, right = d.box
        mask[top:bottom, left:right] = d.mask
    return Instances(
        torch.from_numpy(masks),
        torch.tensor([d.label for d in detections], dtype=torch.int64),
        torch.tensor([d.score for d in detections], dtype=torch.float32),
        torch.zeros(len(detections), dtype=torch.bool),
    )
