"""Features, answers to prompts and predictions of SAM 3.

Shape letters: B images, C classes, K queries per class, F channels, P places of the coarsest map, S side of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sskd_fast.models.class_queries import ClassQueries, match_within_classes, query_losses
from sskd_fast.models.segmenter import Answers, JointTotal, Predictions, own_total

if TYPE_CHECKING:
    from sskd_fast.models.sam3 import Sam3


@dataclass
class Encoded:
    """maps: SAM 3's features, finest first, the last (B, F, S/14, S/14); position: its encoding, of the same shape."""

    maps: tuple[Tensor, ...]
    position: Tensor

    def part(self, rows: slice) -> Encoded:
        """The features of some images of the batch."""
        return Encoded(tuple(m[rows] for m in self.maps), self.position[rows])


@dataclass
class Asked:
    """SAM 3's answers to all prompts on all images.

    queries: scores and boxes.  states (B, C, K, F): of the queries.  memory (B, C, P, F): the coarsest map conditioned
    on the prompt.
    """

    queries: ClassQueries
    states: Tensor
    memory: Tensor

    def part(self, rows: slice) -> Asked:
        """The answers on some images of the batch."""
        return Asked(self.queries.part(rows), self.states[rows], self.memory[rows])


@dataclass
class Sam3Predictions(Predictions):
    """Predictions whose queries are matched to instances of their own class, from `model`, `encoded` and `asked`."""

    promptable: ClassVar[bool] = True
    model: Sam3 | None = None
    encoded: Encoded | None = None
    asked: Asked | None = None

    def part(self, rows: slice) -> Predictions:
        """The predictions of some images of the batch."""
        assert self.encoded is not None and self.asked is not None
        return Sam3Predictions(
            self.mask_logits[rows],
            self.class_logits[rows],
            self.pixel_features[rows],
            model=self.model,
            encoded=self.encoded.part(rows),
            asked=self.asked.part(rows),
        )

    def answer(
        self,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        weights: Sequence[Tensor] | None = None,
        valid: Tensor | None = None,
        masked: Sequence[Tensor] | None = None,
        total: JointTotal = own_total,
    ) -> Answers:
        """The masks of the queries matched to boxes and labels, and the losses of `query_losses`."""
        assert self.model is not None and self.encoded is not None and self.asked is not None
        assigned = match_within_classes(self.asked.queries, boxes, labels)
        weights = weights or [torch.ones(len(b), device=b.device) for b in boxes]
        terms = query_losses(self.asked.queries, assigned, boxes, labels, weights, valid, total)
        if masked is not None:
            count = max(1, *(len(index) for index in masked))
            rows = zip(assigned, masked, strict=True)
            assigned = torch.stack([F.pad(row[index], (0, count - len(index)), value=-1) for row, index in rows])
        image, instance = torch.nonzero(assigned >= 0, as_tuple=True)
        drawn = self.model.draw(self.encoded, self.asked, image, assigned[image, instance])
        masks = drawn.new_zeros((*assigned.shape, *drawn.shape[1:])).index_put((image, instance), drawn)
        return Answers(masks, terms, assigned >= 0)
