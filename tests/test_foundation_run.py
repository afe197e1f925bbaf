"""The stages with teachers and students of transformers: tiny models of the real classes, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from sskd_fast.data.embedded import write_scenes
from sskd_fast.train.experiment import ROW_ORDER

pytest.importorskip("transformers")

BUDGET = [
    "--preset", "smoke", "--max-steps", "2", "train.save_every=1", "train.evaluations=1", "train.log_every=1",
    "pseudo_labels.views=1", "predict.score_floor=0.0", "num_queries=5",
    # Random teachers are sure of nothing: whatever touches an object of its class is a label.
    "pseudo_labels.minimum_matches=1", "pseudo_labels.target_precision=0", "pseudo_labels.iou=0.01",
]  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a small COCO data set: 8 images of which half keep their labels, and 3 for validation."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, "train", "target", 8, seed=31)
    write_scenes(folder, "val", "target", 3, seed=32)
    return [
        "--labeled", str(folder / "train.json"), "--images", str(folder / "train"), "--labeled-fraction", "0.5",
        "--val", str(folder / "val.json"), "--val-images", str(folder / "val"),
    ]  # fmt: skip


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sskd_fast.run", "--output", str(folder), *BUDGET, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads((folder / "metrics.json").read_text())["rows"]}


@pytest.mark.slow
def test_composite_teacher_through_all_stages(
    tiny_foundation: Callable[[str], Path], scenes: list[str], tmp_path: Path
) -> None:
    """Zero-shot, adaptation with the detector's own loss and SAM 2's masks, distillation, refinement."""
    folder = tmp_path / "run"
    teacher = [
        "teacher.kind=grounded_sam", f"teacher.foundation.detector={tiny_foundation('mm_grounding_dino')}",
        f"teacher.foundation.masks={tiny_foundation('sam2')}", "teacher.gradient_checkpointing=true",
    ]  # fmt: skip
    result = run(folder, *scenes, *teacher)
    assert result.returncode == 0, result.stderr
    assert list(rows_of(folder)) == list(ROW_ORDER)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    adapted = [line for line in lines if line.get("stage") == "adapted_teacher" and "loss" in line]
    assert {"sup_detector", "sup_mask", "sup_dice", "semi_detector", "pxl", "margin"} <= set(adapted[-1])
    with safe_open(str(folder / "checkpoints" / "adapted_teacher.safetensors"), "pt") as file:
        names = set(file.keys())
    assert any(n.startswith("detector.model.") for n in names) and any(n.startswith("sam.") for n in names)
