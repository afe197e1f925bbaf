"""The configurations of the paper's experiments: its numbers, one path missing, and all stages on stand-ins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sskd_fast.config import load_config
from sskd_fast.run import check, main
from sskd_fast.train.experiment import ROW_ORDER
from tests.official_layouts import write_ade20k, write_cityscapes, write_coco

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FRACTIONS = {
    "cityscapes_5": 0.05, "cityscapes_10": 0.1, "cityscapes_30": 0.3, "ade20k_10": 0.1,
    "coco_1": 0.01, "coco_2": 0.02, "coco_5": 0.05, "coco_10": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", FRACTIONS)
def test_hyper_parameters_are_the_papers(name: str) -> None:
    config = load_config([CONFIGS / f"{name}.yaml"], ["data.root=somewhere"])
    check(config)
    train, data, views, contrast = config.train, config.data, config.views, config.contrast
    assert data.labeled_fraction == FRACTIONS[name] and data.name == name and data.format == name.split("_")[0]
    assert (train.lr, train.backbone_lr, train.weight_decay, train.clip) == (5e-5, 0.1, 0.1, 0.01)
    assert (train.schedule, train.lam_pxl, train.lam_semi) == ("poly", 0.1, 1.0)
    assert (contrast.num_negatives, contrast.temperature) == (200, (0.3, 0.07))
    assert views.size == ((512, 1024) if name.startswith("cityscapes") else (512, 512))
    assert (views.hflip, views.vflip, views.rot90, views.weak_color) == (True, False, False, 0.0)
    assert (views.strong_color, views.grayscale, views.blur) == ((0.4, 0.4, 0.4, 0.1), 0.2, (0.1, 2.0))
    assert (config.loss.masks, config.loss.points, config.num_queries) == ("points", 12544, 100)
    for stage in ("supervised_teacher", "adapted_teacher", "distilled_student", "refined_student"):
        budget = getattr(config.stages, stage)
        assert (budget.steps, budget.labeled_batch + budget.unlabeled_batch) == (90_000, 8)


SMALL = """
teacher_weights: ""
teacher: {kind: mask_transformer, backbone: conv, channels: [8, 16, 32], width: 32, mask_width: 16, layers: 1, heads: 2,
          feedforward: 32, embedding: 16, precision: float32, gradient_checkpointing: false}
student: {backbone: conv, backbone_pretrained: false, pixel_decoder: fpn, channels: [8, 16, 32], width: 32,
          mask_width: 16, layers: 1, heads: 2, feedforward: 32, embedding: 16, precision: float32}
views: {size: [64, 128], min_pixels: 4}
predict: {tile: [64, 128], batch: 8, overlap: 16}
loss: {points: 128}
contrast: {max_anchors: 8, num_negatives: 8}
data: {labeled_fraction: 0.5, workers: 0}
stages: {supervised_teacher: {labeled_batch: 2}, adapted_teacher: {labeled_batch: 1, unlabeled_batch: 1},
         distilled_student: {labeled_batch: 1, unlabeled_batch: 1}, refined_student: {labeled_batch: 2}}
num_queries: 10
"""
WRITERS: dict[str, Callable[[Path], object]] = {
    "cityscapes_10": write_cityscapes, "ade20k_10": write_ade20k, "coco_10": write_coco
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["cityscapes_10", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ade20k_10", "coco_10"))]
)
def test_two_steps_of_every_stage_run_on_stand_ins(tmp_path: Path, name: str) -> None:
    """The configuration as it is, with small models and crops in place of those that need a GPU."""
    WRITERS[name](tmp_path / "data")
    (tmp_path / "small.yaml").write_text(SMALL)
    files = ["--config", str(CONFIGS / f"{name}.yaml"), "--config", str(tmp_path / "small.yaml")]
    output = ["--output", str(tmp_path / "run")]
    assert main([*files, f"data.root={tmp_path / 'data'}", "--max-steps", "2", *output]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [row["name"] for row in metrics["rows"]] == list(ROW_ORDER) and metrics["dataset"] == name
    assert ("cityscapes_ap" in metrics["rows"][0]) == (name == "cityscapes_10")
