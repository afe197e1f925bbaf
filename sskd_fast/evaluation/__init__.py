"""Average precision of predictions that travel as a COCO results list: COCO's, and that of a data set's own judges."""

from __future__ import annotations

from sskd_fast.evaluation.cityscapes_ap import CityscapesAP, evaluate_cityscapes
from sskd_fast.evaluation.coco_ap import MaskAP, evaluate_masks
from sskd_fast.evaluation.comparison import Gain, compare_masks
from sskd_fast.evaluation.official import official_figures, require_official

__all__ = [
    "CityscapesAP", "Gain", "MaskAP", "compare_masks", "evaluate_cityscapes", "evaluate_masks", "official_figures",
    "require_official",
]  # fmt: skip
