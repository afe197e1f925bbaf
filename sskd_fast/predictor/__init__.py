"""Inference with trained models: loads a checkpoint, run or hub repository and predicts masks, boxes and classes."""

from __future__ import annotations

from sskd_fast.predictor.locate import load
from sskd_fast.predictor.prediction import Prediction
from sskd_fast.predictor.predictor import ImageLike, ModelError, Predictor

__all__ = ["ImageLike", "ModelError", "Prediction", "Predictor", "load"]
