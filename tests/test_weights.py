"""The shipped foundation weights: their size, facts, and the source-domain AP that the documentation states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.embedded import CLASS_NAMES, write_scenes
from sskd_fast.evaluation import evaluate_masks
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.checkpoint import load_weights, read_metadata
from sskd_fast.models.inference import InferenceConfig, predict
from sskd_fast.models.results import to_results
from sskd_fast.models.settings import ModelConfig
from sskd_fast.run.models import SHIPPED
from sskd_fast.typed_settings import build
from sskd_fast.yaml_settings import load_config

# Source-domain AP on the first 100 scenes of seed 8, as docs/embedded.md states it.
SOURCE_AP = {"teacher": 75.07, "student": 62.06}


@pytest.fixture(scope="module")
def source_scenes(tmp_path_factory: pytest.TempPathFactory) -> CocoInstances:
    folder = tmp_path_factory.mktemp("source")
    return CocoInstances(write_scenes(folder, "source_val", "source", 100, seed=8), folder / "source_val")


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_shipped_weights_reach_the_stated_source_ap(name: str, source_scenes: CocoInstances) -> None:
    metadata = read_metadata(SHIPPED / f"{name}.safetensors")
    classes = metadata["class_names"]
    model = build_segmenter(build(ModelConfig, metadata["model"], "model"), classes)
    load_weights(model, SHIPPED / f"{name}.safetensors", classes)
    assert classes == list(CLASS_NAMES) == source_scenes.class_names
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    samples = [source_scenes[i] for i in range(len(source_scenes))]
    found = predict(model, [s.image for s in samples], InferenceConfig(tile=(64, 64)))
    results = [
        r
        for sample, detections in zip(samples, found, strict=True)
        for r in to_results(detections, sample.image_id, (64, 64), source_scenes.category_ids)
    ]
    assert evaluate_masks(source_scenes.ground_truth(), results).ap == pytest.approx(SOURCE_AP[name], abs=0.3)


def test_shipped_weights_are_small_and_those_of_the_preset() -> None:
    files = [SHIPPED / "teacher.safetensors", SHIPPED / "student.safetensors"]
    assert sum(f.stat().st_size for f in files) <= 8_000_000
    config = load_config([], preset="pretrain")
    for file in files:
        facts = read_metadata(file)["facts"]
        stage = getattr(config.stages, f"pretrained_{file.stem}")
        assert facts["stage"] == f"pretrained_{file.stem}" and facts["steps"] == stage.steps and facts["seed"] == 0
        assert facts["seconds"] > 60


def test_weights_folder_holds_nothing_else() -> None:
    assert sorted(p.name for p in Path(SHIPPED).iterdir()) == ["student.safetensors", "teacher.safetensors"]
