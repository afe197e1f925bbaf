"""The one objective from a run's settings."""

from __future__ import annotations

from sskd_fast.losses.contrast import InstancePixelContrast
from sskd_fast.losses.objective import Objective
from sskd_fast.losses.set_loss import SetLoss
from sskd_fast.settings import Config


def objective_of(config: Config, *, lam_semi: float, lam_pxl: float, label_pool: int = 1) -> Objective:
    """J with these weights; label_pool: how many times coarser than the model's masks the pseudo-labels are."""
    c, t = config.contrast, config.train
    contrast = None
    if lam_pxl > 0:
        contrast = InstancePixelContrast(
            num_negatives=c.num_negatives, temperature=c.temperature, cues=c.cues, scope=c.scope, form=c.form,
            margin=c.margin, hard_share=c.hard_share, max_anchors=c.max_anchors or None, objectness=c.objectness,
            memory_bank=c.memory_bank, backend=c.backend,
        )  # fmt: skip
    return Objective(SetLoss(config.loss), contrast, lam_semi, lam_pxl, label_pool, t.semi_fade, t.semi_masks)
