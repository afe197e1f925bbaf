"""Models to export, their descriptions, and how tests call them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from sskd_fast.data.embedded import CLASS_NAMES, write_scenes
from sskd_fast.exported.file_description import FileDescription
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.checkpoint import Description, load_weights, read_metadata, save_checkpoint
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.models.settings import ModelConfig
from sskd_fast.run.models import SHIPPED
from sskd_fast.typed_settings import build

INFERENCE = InferenceConfig(tile=(64, 64), overlap=16, score_floor=0.05)
IDS = (3, 5, 8, 13)
TINY = ModelConfig(channels=(8, 8), blocks=(1, 1), width=8, mask_width=4, layers=1, feedforward=8, num_queries=3)


def description(model: Segmenter, inference: InferenceConfig = INFERENCE) -> Description:
    return Description(model.config, CLASS_NAMES, IDS, inference, stretch=True)


def of_file(model: Segmenter, inference: InferenceConfig = INFERENCE) -> FileDescription:
    return FileDescription.of(model, description(model, inference))


def tiny(**settings: Any) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(dataclasses.replace(TINY, **settings), CLASS_NAMES).eval()


def shipped_student() -> Segmenter:
    """The student that ships with the package, on the classes of the embedded data."""
    metadata = read_metadata(SHIPPED / "student.safetensors")
    model = build_segmenter(build(ModelConfig, metadata["model"], "model"), metadata["class_names"])
    load_weights(model, SHIPPED / "student.safetensors", metadata["class_names"])
    return model.eval()


def write_run(folder: Path, model: Segmenter, images: int) -> Path:
    """A run's folder with a finished student, and scenes as its validation images; returns the folder."""
    save_checkpoint(folder / "checkpoints" / "refined_student.safetensors", model, description(model))
    truth = json.loads(write_scenes(folder, "val", "source", images, seed=8).read_text())
    (folder / "ground_truth.json").write_text(json.dumps(truth | {"images_dir": "val"}))
    return folder
