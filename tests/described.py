"""Checkpoints of models that no run has trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sskd_fast.models.checkpoint import Description, save_checkpoint
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.segmenter import Segmenter


def save_described(path: Path, model: Segmenter, class_names: Sequence[str], **facts: Any) -> None:
    """Writes a checkpoint with categories 1..C and tiles of 64 x 64 pixels."""
    ids = tuple(range(1, len(class_names) + 1))
    save_checkpoint(
        path,
        model,
        Description(model.config, tuple(class_names), ids, InferenceConfig((64, 64)), facts=facts),
    )
