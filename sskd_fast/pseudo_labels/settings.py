"""Settings of pseudo-labelling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Labeller = Literal["adapted_teacher", "supervised_teacher", "zero_shot_teacher", "supervised_student", "none"]


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Choice of the predictions that become labels.

    teacher: the stage whose model labels for the student's distillation, trained before it; "none" leaves that to the
    student's own moving average (`online`).
    views: over how many of the flips and turns that training draws the teacher's predictions are averaged (8 at most; 1
    = the image as it is); they take turns at the `zooms`.  folds: the labelled images are divided into so many; for
    each, a fold model is trained like the teacher on the others, for a share `fold_steps` of its steps, and predicts
    the images it has not seen.  target_precision: what the per-class thresholds reach on these predictions.
    unsure_precision: predictions between the threshold of this precision and the first one
    are neither object nor background in training (0 = none).  shrink: n0; the precision of a class's own n results
    counts n / (n + n0) when its threshold is found, that of all classes n0 / (n + n0); 0 = its own alone.  The best n0
    is p (1 - p) over the variance of precisions among classes at one score: 20 for p = 0.7 and a deviation of 0.1.
    max_per_image: labels of an image, 0 = 300 or as many as there are detections.  truth: train on the hidden true
    labels of the unlabelled images instead (they exist where `data.labeled_fraction` or the embedded data set hides
    them): no result, but the upper bound of what labels, however good, can give with the other settings.  shard: images
    whose labels are one Parquet file, read when an image is, for sets whose labels do not fit into memory; 0 = one JSON
    file for all.
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
        """Labels of an image at most, for so many detections."""
        return self.max_per_image or max(300, detections)

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds: expected at least 2, found {self.folds}")
        if not 0 < self.fold_steps <= 1:
            raise ValueError(f"fold_steps: expected a share in (0, 1], such as 0.5, found {self.fold_steps}")
        if not self.shrink >= 0:
            raise ValueError(f"shrink: expected a number of results, 0 for none, found {self.shrink}")
        if self.shard < 0:
            raise ValueError(f"shard: expected images a file, such as 10000, or 0 for one file, found {self.shard}")
