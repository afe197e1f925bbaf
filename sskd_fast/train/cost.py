"""The cost of a training: steps, images seen, seconds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sskd_fast.data.instances import Batch


@dataclass
class Cost:
    """The cost of a stage so far.  Seconds are those of the first rank.

    labeled_seen, unlabeled_seen: images in the batches, counted each time they are drawn.  seconds, cpu_seconds:
    training time, by the wall clock and of all threads and loader processes; neither includes AP measured in between.
    label_seconds: wall-clock time to make the stage's pseudo-labels, including the training of the fold models that
    set their thresholds.  Steps lost to an interruption do not count.
    """

    steps: int = 0
    labeled_seen: int = 0
    unlabeled_seen: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    label_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def count(self, labeled: Batch, unlabeled: Batch | None) -> None:
        """Adds the batches of one step."""
        self.steps += 1
        self.labeled_seen += labeled.of
        self.unlabeled_seen += 0 if unlabeled is None else unlabeled.of


COST_KEYS = tuple(field.name for field in dataclasses.fields(Cost))
