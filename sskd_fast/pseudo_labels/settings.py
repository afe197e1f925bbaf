"""Settings of pseudo-labelling."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Choice of the predictions that become labels.

    views: over how many of the flips and turns that training draws the teacher's predictions are averaged (8 at most; 1
    = the image as it is); they take turns at the `zooms`.  target_precision: what the per-class thresholds reach on the
    held-out labelled images.  unsure_precision: predictions between the threshold of this precision and the first one
    are neither object nor background in training (0 = none).  truth: train on the hidden true labels of the unlabelled
    images instead (they exist where `data.labeled_fraction` or the embedded data set hides them): no result, but the
    upper bound of what labels, however good, can give with the other settings.
    """

    views: int = 4
    zooms: tuple[float, ...] = (1.0, 1.25)
    target_precision: float = 0.7
    unsure_precision: float = 0.4
    iou: float = 0.5
    nms_iou: float = 0.6
    minimum_matches: int = 10
    max_per_image: int = 300
    weigh_by_score: bool = True
    truth: bool = False
