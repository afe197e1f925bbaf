"""Models to export, their descriptions, and how tests call them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from sskd_fast.data.embedded import CLASS_NAMES
from sskd_fast.exported.file_description import FileDescription
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.checkpoint import Description
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.mask_transformer import MaskTransformer
from sskd_fast.models.segmenter import ModelConfig, Segmenter

INFERENCE = InferenceConfig(tile=(64, 64), overlap=16, score_floor=0.05)
IDS = (3, 5, 8, 13)
TINY = ModelConfig(channels=(8, 8), blocks=(1, 1), width=8, mask_width=4, layers=1, feedforward=8, num_queries=3)


def description(model: Segmenter, inference: InferenceConfig = INFERENCE) -> Description:
    return Description(model.config, CLASS_NAMES, IDS, inference, stretch=True)


def of_file(model: Segmenter, inference: InferenceConfig = INFERENCE) -> FileDescription:
    return FileDescription.of(model, description(model, inference))


def tiny(**settings: Any) -> MaskTransformer:
    torch.manual_seed(0)
    model = build_segmenter(dataclasses.replace(TINY, **settings), CLASS_NAMES).eval()
    assert isinstance(model, MaskTransformer)
    return model
