"""The configurations of the paper's experiments: its numbers, one path missing, and all stages on stand-ins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sskd_fast._env import without_value_checks
from sskd_fast.method import FITTED, ROW_ORDER, STAGE
from sskd_fast.models.build import build_segmenter
from sskd_fast.run.__main__ import main
from sskd_fast.run.stage_settings import stage_budget, stage_objective
from sskd_fast.run.step_memory import fitting_images, step_memory
from sskd_fast.settings import check_settings
from sskd_fast.yaml_settings import load_config
from tests.official_layouts import write_ade20k, write_cityscapes, write_coco

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FRACTIONS = {
    "cityscapes_5": 0.05, "cityscapes_10": 0.1, "cityscapes_30": 0.3, "ade20k_10": 0.1,
    "coco_1": 0.01, "coco_2": 0.02, "coco_5": 0.05, "coco_10": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", FRACTIONS)
def test_hyper_parameters_are_the_papers(name: str) -> None:
    config = load_config([CONFIGS / f"{name}.yaml"], ["data.root=somewhere"])
    check_settings(config)
    train, data, views, contrast = config.train, config.data, config.views, config.contrast
    assert data.labeled_fraction == FRACTIONS[name] and data.name == name and data.format == name.split("_")[0]
    assert (train.lr, train.backbone_lr, train.weight_decay, train.clip) == (5e-5, 0.1, 0.1, 0.01)
    assert (train.schedule, train.lam_pxl, train.lam_semi) == ("poly", 0.1, 1.0)
    assert (contrast.num_negatives, contrast.temperature) == (200, (0.3, 0.07))
    assert views.size == ((512, 1024) if name.startswith("cityscapes") else (512, 512))
    # The teacher, which resizes what it sees to a square, predicts at the scale that it was trained at.
    assert (config.teacher.tile, config.predict.tile) == ((0, 0), (0, 0))
    assert config.student.tile == ((1024, 2048) if name.startswith("cityscapes") else (0, 0))
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
          mask_width: 16, layers: 1, heads: 2, feedforward: 32, embedding: 16, precision: float32, tile: [64, 128]}
views: {size: [64, 128], min_pixels: 4}
predict: {batch: 8, overlap: 16}
loss: {points: 128}
contrast: {max_anchors: 8, num_negatives: 8}
data: {labeled_fraction: 0.5, workers: 0}
stages: {supervised_teacher: {labeled_batch: 2}, adapted_teacher: {labeled_batch: 1, unlabeled_batch: 1},
         distilled_student: {labeled_batch: 1, unlabeled_batch: 1}, refined_student: {labeled_batch: 2}}
num_queries: 10
"""


def test_a_data_set_has_a_dry_run_at_its_crop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It needs no path to the data."""
    assert main(["--config", str(CONFIGS / "nuclei.yaml"), "--dry-run", "--json", str(tmp_path / "costs.json")]) == 0
    costs = json.loads((tmp_path / "costs.json").read_text())
    printed = capsys.readouterr().out
    assert set(costs) == {"student", "teacher"} and "fewer parameters" in printed and "are estimates" in printed
    for cost in costs.values():
        assert cost["size"] == [96, 96] and cost["images_at_once"] == {"80": cost["batch"], "24": cost["batch"]}
        assert f"steps of {cost['batch']} crops of 96 x 96 in {cost['precision']}" in printed
        assert f"of which fit {cost['batch']} at once on 80 GB, {cost['batch']} at once on 24 GB" in printed
        assert 0 < cost["flops"] < cost["train_flops"] and cost["seconds_a_step"] >= 0
        assert 0 < cost["memory_gb_an_image"] < cost["memory_gb"] < 21


@pytest.mark.slow
def test_stage_1_of_the_paper_fits_24_gigabytes_with_adapters() -> None:
    """The teacher's own size at the paper's crop, on shapes: one image at a time, which accumulates gradients of 8."""
    config = load_config([CONFIGS / "cityscapes_10.yaml"], ["teacher.foundation.lora_rank=16"])
    stage = STAGE["adapted_teacher"]
    budget = stage_budget(config, stage)
    assert config.views.size == (512, 1024) and budget.labeled_batch + budget.unlabeled_batch == 8
    with torch.device("meta"), without_value_checks():
        foundation = dataclasses.replace(config.teacher.foundation, pretrained=False)
        teacher = dataclasses.replace(config.teacher, foundation=foundation, num_queries=config.num_queries)
        model = build_segmenter(teacher, [f"class{i}" for i in range(8)], weights=False)
    assert model.parameter_count() > 559_000_000
    found = step_memory(model, stage_objective(config, stage), config.views.sides, (1, 0), 60)
    assert fitting_images(found.peak, found.peak, 1, 24) == 1
    assert found.peak > found.lasting + found.kept > 6e9


def test_dry_run_of_the_default_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "student: steps of 24 crops of 64 x 64 in float32" in printed
    assert "teacher: steps of 16 crops of 64 x 64 in float32" in printed
    assert "the student has 13.5 times fewer parameters" in printed


def test_costs_go_to_a_file_in_a_dry_run_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "costs.json"]) == 2
    assert "--json FILE is the file for the costs of --dry-run" in capsys.readouterr().err


# What has to be other than in the YAML file where there are neither weights nor a GPU: tiny models of the teacher's own
# classes, the student's own layers with random weights, and crops of 64 x 128 in place of 512 x 1024.
@pytest.mark.slow
def test_the_papers_own_models_run_all_stages(tiny_foundation: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("timm")
    write_cityscapes(tmp_path / "data", {"train": {"aachen": 12, "bochum": 12}, "val": {"frankfurt": 2}})
    changed = [
        f"teacher.foundation.detector={tiny_foundation('mm_grounding_dino')}",
        f"teacher.foundation.masks={tiny_foundation('sam2')}",
        "student.backbone_pretrained=false",
        "views.size=[64,128]",
        "student.tile=[64,128]",
    ]
    place = [f"data.root={tmp_path / 'data'}", "--max-steps", "2", "--output", str(tmp_path / "run")]
    assert main(["--config", str(CONFIGS / "cityscapes_10.yaml"), *place, *changed]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [row["name"] for row in metrics["rows"]] == [name for name in ROW_ORDER if name in STAGE and name != FITTED]
    assert (metrics["labeled_images"], metrics["unlabeled_images"], metrics["val_images"]) == (2, 22, 2)
    assert metrics["rows"][-1]["params"] == 50_114_185 and "cityscapes_ap" in metrics["rows"][0]


def test_a_student_that_cannot_be_had_is_named_before_the_teacher_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    write_cityscapes(tmp_path / "data")
    (tmp_path / "small.yaml").write_text(SMALL)
    files = ["--config", str(CONFIGS / "cityscapes_10.yaml"), "--config", str(tmp_path / "small.yaml")]
    place = [f"data.root={tmp_path / 'data'}", "--max-steps", "2", "--output", str(tmp_path / "run")]
    weights = f"student.backbone_checkpoint={tmp_path / 'nowhere.pth'}"
    assert main([*files, *place, "student.backbone=timm/vit_tiny_patch16_224", weights]) == 2
    said = capsys.readouterr().err
    assert "model.backbone_checkpoint:" in said and "nowhere.pth does not exist" in said and "stage 1" not in said


WRITERS: dict[str, Callable[[Path], object]] = {
    "cityscapes_10": write_cityscapes,
    "ade20k_10": write_ade20k,
    "coco_10": write_coco,
}


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
    assert [row["name"] for row in metrics["rows"]] == [name for name in ROW_ORDER if name in STAGE and name != FITTED]
    assert metrics["dataset"] == name
    assert ("cityscapes_ap" in metrics["rows"][0]) == (name == "cityscapes_10")
