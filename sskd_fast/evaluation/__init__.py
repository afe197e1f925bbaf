"""Quality of COCO results lists: mask AP by COCO and by official evaluations, comparisons, and quality per image."""

from __future__ import annotations

from sskd_fast.evaluation.cityscapes_ap import CityscapesAP, evaluate_cityscapes
from sskd_fast.evaluation.coco_ap import MaskAP, evaluate_masks
from sskd_fast.evaluation.comparison import Gain, SeedGain, compare_masks, drawn_ap, gain_of, gain_over_seeds
from sskd_fast.evaluation.image_quality import ImageQualities, ImageQuality, image_qualities
from sskd_fast.evaluation.mask_resolution import at_stride, stride_ceiling
from sskd_fast.evaluation.official import official_figures, require_official
from sskd_fast.evaluation.touching import evaluate_touching

__all__ = [
    "CityscapesAP", "Gain", "ImageQualities", "ImageQuality", "MaskAP", "SeedGain", "at_stride", "compare_masks",
    "drawn_ap", "evaluate_cityscapes", "evaluate_masks", "evaluate_touching", "gain_of", "gain_over_seeds",
    "image_qualities", "official_figures", "require_official", "stride_ceiling",
]  # fmt: skip
