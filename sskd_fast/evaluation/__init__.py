"""COCO mask AP of predictions that travel as a COCO results list."""

from __future__ import annotations

from sskd_fast.evaluation.coco_ap import MaskAP, evaluate_masks

__all__ = ["MaskAP", "evaluate_masks"]
