"""Pseudo-labels from a teacher's scored predictions: thresholds, selection, a resumable cache and statistics.

Predictions and labels travel as a COCO results list, ground truth as a COCO instances dict.
"""

from __future__ import annotations

from sskd_fast.pseudo_labels.cache import cache_key, label_images, read_labels
from sskd_fast.pseudo_labels.select import Selection, select_labels
from sskd_fast.pseudo_labels.settings import PseudoLabelConfig
from sskd_fast.pseudo_labels.statistics import LabelStatistics, label_statistics, statistics_by_image
from sskd_fast.pseudo_labels.thresholds import calibrate_thresholds, equally_many, uncalibrated_warning

__all__ = [
    "LabelStatistics",
    "PseudoLabelConfig",
    "Selection",
    "cache_key",
    "calibrate_thresholds",
    "equally_many",
    "label_images",
    "label_statistics",
    "read_labels",
    "select_labels",
    "statistics_by_image",
    "uncalibrated_warning",
]
