"""The one objective from a run's settings."""

from __future__ import annotations

from sskd_fast.losses.contrast import InstancePixelContrast
from sskd_fast.losses.objective import Objective
from sskd_fast.losses.set_loss import SetLoss
from sskd_fast.settings import Config


def objective_of(config: Config, *, lam_semi: float, lam_pxl: float, label_pool: int = 1) -> Objective:
    """J with these weights; label_pool: how many times coarser than the model's masks the pseudo-labels are."""
    t = config.train
    contrast = InstancePixelContrast(config.contrast) if lam_pxl > 0 else None
    return Objective(SetLoss(config.loss), contrast, lam_semi, lam_pxl, label_pool, t.semi_fade, t.semi_masks)
