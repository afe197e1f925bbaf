"""Settings of pseudo-labelling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Labeller = Literal["adapted_teacher", "supervised_teacher", "zero_shot_teacher", "supervised_student", "none"]


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Settings that decide which predictions become labels.

    teacher: the stage whose model labels for the student's distillation, trained before it.  "none" leaves labelling to
    the student's own moving average (`online`).
    views: number of flips and turns, among those of training, over which the teacher's predictions are averaged (at
    most 8 for each of the `zooms`, between which they alternate; 1 = the image itself).
    folds: number of parts of the labelled images.  For each part, a fold model is trained like the teacher on the other
    parts, for a share `fold_steps` of its steps.  It predicts the held-out part.  target_precision: precision that the
    per-class thresholds must reach on these predictions.  unsure_precision: training ignores pixels of predictions
    between the threshold of this precision and that of target_precision; 0 = off.
    shrink: n0.  In calibration, the precision of a class's own n results counts n / (n + n0), that of all classes
    n0 / (n + n0); 0 = its own alone.  The best n0 is p (1 - p) over the variance of precisions among classes at one
    score: 20 for p = 0.7 and a standard deviation of 0.1.
    max_per_image: labels per image, 0 = 300 or the number of detections, if larger.
    truth: train on the hidden true labels of the unlabelled images, if `data.labeled_fraction` or the embedded data set
    hides them.  This is not a result but an upper bound on what perfect labels would give.
    shard: images per Parquet file of labels, for sets whose labels do not fit into memory; 0 = one JSON file for all.
    """

    teacher: Labeller = "adapted_teacher"
    views: int = 4
    zooms: tuple[float, ...] = (1.0, 1.25)
    folds: int = 3
    fold_steps: float = 0.5
    target_precision: float = 0.7
    unsure_precision: float = 0.4
    iou: float = 0.5
    nms_iou: float = 0.6
    minimum_matches: int = 10
    shrink: float = 20.0
    max_per_image: int = 0
    weigh_by_score: bool = True
    truth: bool = False
    shard: int = 0

    def labels_limit(self, detections: int) -> int:
        """The most labels of an image, for this limit of detections."""
        return self.max_per_image or max(300, detections)

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds: expected at least 2, found {self.folds}")
        if not 0 < self.fold_steps <= 1:
            raise ValueError(f"fold_steps: expected a share in (0, 1], such as 0.5, found {self.fold_steps}")
        if not self.shrink >= 0:
            raise ValueError(f"shrink: expected a number of results, 0 for none, found {self.shrink}")
        if self.shard < 0:
            raise ValueError(f"shard: expected images per file, such as 10000, or 0 for one file, found {self.shard}")
