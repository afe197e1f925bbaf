"""The stages with teachers and students of transformers: tiny models of the real classes, through the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sskd_fast.data.embedded import write_scenes
from sskd_fast.method import EVERY_RUN, ROW_ORDER
from sskd_fast.models.checkpoint import read_description
from sskd_fast.run.__main__ import main

pytest.importorskip("transformers")

BUDGET = [
    "--preset", "smoke", "--max-steps", "2", "train.save_every=1", "train.evaluations=1", "train.log_every=1",
    "pseudo_labels.views=1", "predict.score_floor=0.0", "num_queries=5", "train.lam_pxl=0.1",
    # Random teachers are sure of nothing: whatever touches an object of its class is a label.
    "pseudo_labels.minimum_matches=1", "pseudo_labels.target_precision=0", "pseudo_labels.iou=0.01",
]  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a small COCO data set: 8 images of which half keep their labels, and 3 for validation."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, "train", "target", 8, seed=31)
    val = write_scenes(folder, "val", "target", 3, seed=32)
    content = json.loads(val.read_text())
    for record in content["images"]:
        record["id"] += 1000
    for annotation in content["annotations"]:
        annotation["image_id"] += 1000
    val.write_text(json.dumps(content))
    return [
        "--labeled", str(folder / "train.json"), "--images", str(folder / "train"), "--labeled-fraction", "0.5",
        "--val", str(folder / "val.json"), "--val-images", str(folder / "val"),
    ]  # fmt: skip


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sskd_fast.run", "--output", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800)


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads((folder / "metrics.json").read_text())["rows"]}


@pytest.mark.slow
def test_composite_teacher_through_all_stages(
    tiny_foundation: Callable[[str], Path], scenes: list[str], tmp_path: Path
) -> None:
    """Zero-shot, adaptation with the detector's own loss and SAM 2's masks, distillation, refinement."""
    folder = tmp_path / "run"
    teacher = [
        "teacher.kind=grounded_sam",
        f"teacher.foundation.detector={tiny_foundation('mm_grounding_dino')}",
        f"teacher.foundation.masks={tiny_foundation('sam2')}",
        "teacher.gradient_checkpointing=true",
    ]
    result = run(folder, *BUDGET, *scenes, *teacher)
    assert result.returncode == 0, result.stderr
    assert list(rows_of(folder)) == [name for name in ROW_ORDER if name in EVERY_RUN]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    adapted = [line for line in lines if line.get("stage") == "adapted_teacher" and "loss" in line]
    assert {"sup_detector", "sup_mask", "sup_dice", "semi_detector", "pxl", "margin"} <= set(adapted[-1])
    with safe_open(str(folder / "checkpoints" / "adapted_teacher.safetensors"), "pt") as file:
        names = set(file.keys())
    assert any(n.startswith("detector.model.") for n in names) and any(n.startswith("sam.") for n in names)
    again = run(folder, "--resume")
    assert again.returncode == 0 and again.stderr.count("is finished, kept") == 7, again.stderr


def masks_everywhere(folder: str) -> None:
    """Changes a SAM 3 so that every mask covers the image: each class is found wherever it is."""
    from transformers import Sam3Model

    model = Sam3Model.from_pretrained(folder)
    with torch.no_grad():
        model.mask_decoder.mask_embedder.layers[-1].bias.fill_(0.3)
        model.mask_decoder.instance_projection.bias.fill_(0.3)
    model.save_pretrained(folder)


@pytest.mark.slow
def test_sam3_through_all_stages_and_into_the_students_description(
    tiny_foundation: Callable[[str], Path], scenes: list[str], tmp_path: Path
) -> None:
    """Zero-shot, adaptation by our own losses, distillation; the student says whose labels it learned from."""
    folder, source = tmp_path / "run", str(tmp_path / "sam3")
    shutil.copytree(tiny_foundation("sam3"), source)
    masks_everywhere(source)
    teacher = ["teacher.kind=sam3", f"teacher.foundation.sam3={source}", "teacher.foundation.prompts_at_once=64"]
    result = run(folder, *BUDGET, *scenes, *teacher, "pseudo_labels.folds=2", "pseudo_labels.nms_iou=1.0")
    assert result.returncode == 0, result.stderr
    assert list(rows_of(folder)) == [name for name in ROW_ORDER if name in EVERY_RUN]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    adapted = [line for line in lines if line.get("stage") == "adapted_teacher" and "loss" in line]
    names = {"presence", "query", "box", "mask", "dice"}
    assert {f"{part}_{name}" for part in ("sup", "semi") for name in names} | {"pxl"} <= set(adapted[-1])
    made_from = {
        stage: [a.title for a in read_description(folder / "checkpoints" / f"{stage}.safetensors").ancestors]
        for stage in ("adapted_teacher", "refined_student", "supervised_student")
    }
    assert made_from == {
        "adapted_teacher": [f"weights of {source}"],
        "refined_student": [f"labels made by {source}"],
        "supervised_student": [],
    }


@pytest.mark.slow
def test_a_killed_composite_teacher_goes_on_as_if_it_had_not_been(
    tiny_foundation: Callable[[str], Path], scenes: list[str], tmp_path: Path
) -> None:
    """SIGKILL in the middle of its adaptation; the resumed run ends with the weights of one that was not killed."""
    settings = [
        *BUDGET, *scenes, "--max-steps", "6", "teacher.kind=grounded_sam", "train.threads=1",
        f"teacher.foundation.detector={tiny_foundation('mm_grounding_dino')}",
        f"teacher.foundation.masks={tiny_foundation('sam2')}", "teacher.gradient_checkpointing=true",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run(whole, *settings, "--stage", "adapt")
    assert result.returncode == 0, result.stderr
    command = [sys.executable, "-m", "sskd_fast.run", "--output", str(killed), *settings, "--stage", "adapt"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    state = killed / "checkpoints" / "adapted_teacher.state.pt"
    deadline = time.monotonic() + 600
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[1]
    assert state.exists() and not (killed / "checkpoints" / "adapted_teacher.safetensors").exists(), said
    result = run(killed, "--stage", "adapt", "--resume")
    assert result.returncode == 0 and result.stderr.count("is finished, kept") == 2, result.stderr
    assert sorted(p.name for p in (killed / "checkpoints").iterdir()) == [
        "adapted_teacher.safetensors",
        "folds",
        "supervised_teacher.safetensors",
    ]
    first, second = (load_file(folder / "checkpoints" / "adapted_teacher.safetensors") for folder in (whole, killed))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.slow
def test_universal_student_of_predictions_made_elsewhere(
    tiny_foundation: Callable[[str], Path], scenes: list[str], tmp_path: Path
) -> None:
    """Stage 1 is skipped with a message, and a Mask2Former learns from the file."""
    truth = json.loads(Path(scenes[1]).read_text())
    fields = ("image_id", "category_id", "segmentation")
    results = [{name: a[name] for name in fields} | {"score": 0.9} for a in truth["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    folder = tmp_path / "run"
    settings = [
        "teacher.kind=results",
        f"teacher.foundation.results={tmp_path / 'results.json'}",
        "student.kind=universal",
        f"student.foundation.universal={tiny_foundation('mask2former')}",
    ]
    result = run(folder, *BUDGET, *scenes, *settings)
    assert result.returncode == 0, result.stderr
    assert list(rows_of(folder)) == ["matched_student", "supervised_student", "distilled_student", "refined_student"]
    assert "zero-shot teacher is skipped" in result.stderr and "says nothing of the validation images" in result.stderr
    for stage in ("supervised teacher", "adapted teacher"):
        assert f"{stage} is skipped: the predictions in {tmp_path / 'results.json'} cannot be trained" in result.stderr
    labels = json.loads((folder / "pseudo_labels" / "adapted_teacher.json").read_text())["annotations"]
    unlabeled = {int(i) for i in split_of(folder, "unlabeled")}
    assert labels and {label["image_id"] for label in labels} <= unlabeled
    with safe_open(str(folder / "checkpoints" / "refined_student.safetensors"), "pt") as file:
        assert any(name.startswith("model.model.pixel_level_module.") for name in file.keys())  # noqa: SIM118


def test_results_of_other_categories_are_named(scenes: list[str], tmp_path: Path) -> None:
    truth = json.loads(Path(scenes[1]).read_text())
    fields = ("image_id", "segmentation")
    results = [{name: a[name] for name in fields} | {"category_id": 77, "score": 0.9} for a in truth["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    settings = ["teacher.kind=results", f"teacher.foundation.results={tmp_path / 'results.json'}", "--stage", "distill"]
    result = run(tmp_path / "run", *BUDGET, *scenes, *settings)
    assert result.returncode == 2, result.stderr
    assert "results.json has results of category 77; expected the data set's own ids, 1, 2, 3, 4" in result.stderr


def test_results_that_do_not_fit_are_named_before_classes_are_chosen(
    scenes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Foreign categories beside a field of their own, masks of another size, and masks that find nothing."""
    truth = json.loads(Path(scenes[1]).read_text())
    sound = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "segmentation": a["segmentation"], "score": 0.9,
         "seen_as": "thing"} for a in truth["annotations"]
    ]  # fmt: skip
    height, width = sound[0]["segmentation"]["size"]
    other = {"size": [2 * height, width], "counts": [0, 2 * height * width]}
    nothing = {"size": [height, width], "counts": [height * width - 1, 1]}
    settings = ["teacher.warm_start=results", "teacher.foundation.source_key=seen_as", "train.threads=1"]
    for change, message in (
        ({"category_id": 77}, "results of category 77; expected the data set's own ids, 1, 2, 3, 4"),
        ({"segmentation": other}, f"masks of {2 * height} x {width} (height x width) for image "),
        ({"segmentation": nothing}, "no result of "),
        ({"file_name": "images/elsewhere.png"}, "says nothing of the labelled images"),
    ):
        (tmp_path / "results.json").write_text(json.dumps([result | change for result in sound]))
        file = f"teacher.foundation.results={tmp_path / 'results.json'}"
        assert main(["--output", str(tmp_path / "run"), *BUDGET, *scenes, *settings, file]) == 2
        said = capsys.readouterr().err
        assert message in said and "Traceback" not in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_results_of_none_of_the_images_are_named(
    scenes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = json.loads(Path(scenes[1]).read_text())
    fields = ("category_id", "segmentation")
    results = [
        {name: a[name] for name in fields} | {"file_name": "x/y.png", "score": 0.9} for a in truth["annotations"]
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    settings = ["teacher.warm_start=results", f"teacher.foundation.results={tmp_path / 'results.json'}"]
    assert main(["--output", str(tmp_path / "run"), *BUDGET, *scenes, *settings, "train.threads=1"]) == 2
    said = capsys.readouterr().err
    assert "results.json names none of the 11 images of this data set: its first is 'x/y.png', that of the data" in said


def split_of(folder: Path, name: str) -> list[str]:
    lines = (folder / "splits" / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.slow
def test_universal_teacher_and_plain_vision_transformer_student(
    tiny_foundation: Callable[[str], Path], scenes: list[str], tmp_path: Path
) -> None:
    """An EoMT adapts itself and teaches a small ViT with a DPT head."""
    pytest.importorskip("timm")
    settings = [
        "teacher.kind=universal", f"teacher.foundation.universal={tiny_foundation('eomt')}",
        "student.backbone=timm/vit_tiny_patch16_224", "student.pixel_decoder=dpt", "student.queries=learned",
        "student_weights=", "student.width=16", "student.mask_width=8", "student.precision=bfloat16",
    ]  # fmt: skip
    folder = tmp_path / "run"
    result = run(folder, *BUDGET, *scenes, *settings)
    assert result.returncode == 0, result.stderr
    assert list(rows_of(folder)) == [name for name in ROW_ORDER if name in EVERY_RUN]


@pytest.mark.slow
def test_dry_run_of_the_paper_needs_neither_data_nor_weights(tmp_path: Path) -> None:
    """The figures are those of the paper's models at its crop, whose steps fit a GPU of 80 GB."""
    pytest.importorskip("timm")
    config = Path(__file__).resolve().parent.parent / "configs" / "cityscapes_10.yaml"
    command = [sys.executable, "-m", "sskd_fast.run", "--config", str(config), "--dry-run", "--json"]
    result = subprocess.run([*command, str(tmp_path / "costs.json")], capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr
    costs = json.loads((tmp_path / "costs.json").read_text())
    student, teacher = costs["student"], costs["teacher"]
    assert student["params"] == 50_114_185 and teacher["params"] == 559_317_503
    assert abs(student["params"] / 52e6 - 1) < 0.05 and teacher["params"] / student["params"] > 11
    assert 0 < student["flops"] < 0.23 * teacher["flops"]
    assert "11.2 times fewer parameters" in result.stdout
    for cost in (student, teacher):
        assert cost["size"] == [512, 1024] and cost["batch"] == cost["images_at_once"]["80"] == 8
        assert cost["memory_gb_an_image"] < cost["memory_gb"] < 72
