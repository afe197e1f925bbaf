"""A trained model applied: from a checkpoint, a run's folder or a hub repository to masks, boxes, scores and names."""

from __future__ import annotations

from sskd_fast.predictor.locate import ModelError, load
from sskd_fast.predictor.prediction import Prediction
from sskd_fast.predictor.predictor import ImageLike, Predictor

__all__ = ["ImageLike", "ModelError", "Prediction", "Predictor", "load"]
