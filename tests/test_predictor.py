"""Inference with a trained model: the numbers of the run's validation, for any form of image."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import load_file, save_file

import sskd_fast
from sskd_fast.models.augmented import Augmentation
from sskd_fast.models.checkpoint import CheckpointError, Description, Origin, Origins, read_description
from sskd_fast.predictor import ModelError, Prediction, Predictor, load
from sskd_fast.predictor.card import card_text
from sskd_fast.report import verdict_words
from sskd_fast.run.__main__ import main

SIZE = (8, 10)


def rectangle(top: int, left: int, height: int, width: int) -> dict[str, Any]:
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[top : top + height, left : left + width] = 1
    code = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(SIZE), "counts": code["counts"].decode()}


@pytest.fixture
def prediction() -> Prediction:
    results = [
        {"image_id": 5, "category_id": 7, "segmentation": rectangle(1, 2, 3, 4), "score": 0.75},
        {"image_id": 5, "category_id": 3, "segmentation": rectangle(4, 6, 2, 2), "score": 0.25},
    ]
    return Prediction.of_results(results, SIZE, ("square", "disc"), (3, 7), "a.png")


def test_a_prediction_gives_masks_boxes_scores_and_names(prediction: Prediction) -> None:
    assert len(prediction) == 2 and prediction.labels == [1, 0] and prediction.names == ["disc", "square"]
    assert prediction.boxes.tolist() == [[2, 1, 6, 4], [6, 4, 8, 6]] and prediction.scores == [0.75, 0.25]
    assert prediction.masks.shape == (2, *SIZE) and prediction.masks.dtype == np.bool_
    assert prediction.masks[0].sum() == 12 and prediction.masks[0, 1:4, 2:6].all()
    assert prediction.to_coco(9)[0] == {
        "image_id": 9,
        "category_id": 7,
        "segmentation": rectangle(1, 2, 3, 4),
        "score": 0.75,
    }
    assert prediction.above(0.5).names == ["disc"] and prediction.above(0.75).names == ["disc"]
    none = prediction.above(0.9)
    assert len(none) == 0 and none.masks.shape == (0, *SIZE) and none.boxes.shape == (0, 4)


def test_a_prediction_becomes_supervisions_detections(prediction: Prediction) -> None:
    supervision = pytest.importorskip("supervision")
    detections = prediction.to_supervision()
    assert isinstance(detections, supervision.Detections) and detections.xyxy.tolist() == prediction.boxes.tolist()
    assert np.array_equal(detections.mask, prediction.masks) and detections.class_id.tolist() == [1, 0]
    assert detections.data["class_name"].tolist() == ["disc", "square"] and detections.confidence[0] == 0.75
    assert len(prediction.above(0.9).to_supervision()) == 0


def test_the_predictor_gives_the_runs_own_validation_predictions(plates_run: Path) -> None:
    predictor = sskd_fast.load(plates_run)
    layout = next(p for p in predictor.model.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1)
    assert layout.is_contiguous(memory_format=torch.channels_last)
    assert predictor.inference.zoom != 1 and predictor.inference.overlap == 24 and predictor.description.stretch
    truth = json.loads((plates_run / "ground_truth.json").read_text())
    found = defaultdict(list)
    for result in json.loads((plates_run / "predictions" / "refined_student.json").read_text()):
        found[result["image_id"]].append(result)
    assert sum(map(len, found.values())) > 0
    paths = [Path(truth["images_dir"]) / image["file_name"] for image in truth["images"]]
    for image, prediction in zip(truth["images"], predictor.predict(paths), strict=True):
        assert prediction.to_coco(image["id"]) == found[image["id"]]


def test_the_checkpoint_carries_what_the_run_was_made_from(plates_run: Path) -> None:
    description = read_description(plates_run / "checkpoints" / "refined_student.safetensors")
    assert dict(zip(description.category_ids, description.class_names, strict=True)) == {3: "square", 7: "disc"}
    assert description.version == sskd_fast.__version__
    assert description.origins.data == Origin("CC-BY-4.0", "drawn by a test")
    assert description.origins.teacher == Origin("Apache-2.0", "ships with sskd_fast")
    rows = json.loads((plates_run / "metrics.json").read_text())["rows"]
    assert description.figures["rows"] == rows and description.figures["val_images"] == 6
    assert description.figures["ap"] == next(row["ap"] for row in rows if row["name"] == "refined_student")
    assert description.facts["stage"] == "refined_student"


def test_an_image_may_come_in_any_form(plates_run: Path) -> None:
    predictor = load(plates_run)
    path = plates_run.parent / "val" / "plate 1.png"
    expected = predictor.predict(path)
    with Image.open(path) as image:
        array = np.asarray(image)
        forms = [str(path), image.copy(), array, np.repeat(array[..., None], 3, 2)]
        assert array.dtype != np.uint8
    for form in forms:
        found = predictor.predict(form)
        assert found.to_coco(1) == expected.to_coco(1)
    assert expected.file_name == str(path) and predictor.predict(array).file_name == ""
    shown = predictor.read_image(path)
    plain = Predictor(predictor.model, dataclasses.replace(predictor.description, stretch=False))
    assert plain.predict(shown).to_coco(1) == expected.to_coco(1)
    with pytest.raises(ValueError, match=r"image: found an array of shape \(2, 5, 6, 3\), expected \(H, W\)"):
        predictor.predict(np.zeros((2, 5, 6, 3)))


def test_scores_below_the_threshold_are_left_out(plates_run: Path) -> None:
    predictor, path = load(plates_run), plates_run.parent / "val" / "plate 2.png"
    every = predictor.predict(path)
    middle = sorted(every.scores)[len(every) // 2]
    assert predictor.predict(path, score=middle).scores == [score for score in every.scores if score >= middle]
    with pytest.raises(ValueError, match="score=50: expected a score from 0 to 1"):
        predictor.predict(path, score=50)
    assert "refined_student, 1" in repr(predictor) and "square" in repr(predictor) and "counts" not in repr(every)
    assert len(predictor.with_inference(max_detections=1).predict(path)) == min(1, len(every))
    for wrong in ({"batch": 0}, {"max_detections": -1}, {"nms_iou": -1.0}, {"score_floor": 2.0}, {"overlap": 999}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            predictor.with_inference(**wrong)


def test_a_predictor_averages_over_the_views_of_its_run_or_says_that_it_has_none(plates_run: Path) -> None:
    predictor = load(plates_run)
    views, of_teacher = predictor.with_views().with_inference(batch=2).views, load(plates_run, stage="adapted_teacher")
    assert len(views) == 2 and views[0] == Augmentation() != views[1] and of_teacher.with_views().views == views
    old = Predictor(predictor.model, dataclasses.replace(predictor.description, views=(), version="0.1"))
    with pytest.raises(ModelError, match=r"saved by sskd_fast 0\.1 without its run's views; `python -m .*evaluate"):
        old.with_views()
    one = Predictor(predictor.model, dataclasses.replace(predictor.description, views=(Augmentation(),)))
    with pytest.raises(ModelError, match="labels from one view: there is nothing to average over"):
        one.with_views()


def test_a_saved_predictor_comes_back_with_its_card(plates_run: Path, tmp_path: Path) -> None:
    predictor = load(plates_run)
    predictor.save_pretrained(tmp_path / "shared")
    assert sorted(p.name for p in (tmp_path / "shared").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "shared").iterdir()}
    assert len(modes) == 1
    again, path = load(tmp_path / "shared"), plates_run.parent / "val" / "plate 1.png"
    assert again.description == predictor.description
    assert (
        again.predict(path) == predictor.predict(path) == Predictor.from_pretrained(tmp_path / "shared").predict(path)
    )
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "license_name: see-the-table" in card and "library_name: sskd_fast" in card
    rows = predictor.description.figures["rows"]
    verdict = verdict_words({**predictor.description.figures, "rows": rows}, {})
    for text in ("| data | CC-BY-4.0 | drawn by a test |", "Refined student", "6 validation images of plates", "AP50"):
        assert text in card
    assert verdict.split(".")[0] in card


def test_a_card_is_written_anew_unless_somebody_edited_it(plates_run: Path, tmp_path: Path) -> None:
    student, teacher = load(plates_run), load(plates_run, stage="adapted_teacher")
    card = tmp_path / "README.md"
    student.save_pretrained(tmp_path)
    teacher.save_pretrained(tmp_path)
    assert "The adapted teacher of a run" in card.read_text()
    card.write_text("My notes.\n" + card.read_text())
    student.save_pretrained(tmp_path)
    assert card.read_text().startswith("My notes.") and "The adapted teacher" in card.read_text()
    assert load(tmp_path).description == student.description
    assert 'load("me/cells")' in str(student.generate_model_card(name="me/cells"))


def with_origins(description: Description, *licences: str) -> Description:
    return dataclasses.replace(description, origins=Origins(*(Origin(licence) for licence in licences)))


def test_a_card_claims_no_licence_that_is_not_stated(plates_run: Path) -> None:
    stated = load(plates_run).description

    def header(*licences: str) -> str:
        return card_text(with_origins(stated, *licences)).split("---")[1]

    assert "license: mit\n" in header("MIT", "MIT", "mit")
    assert "license" not in header("", "", "")
    for partly in (("Apache-2.0", "Apache-2.0", ""), ("in-house, ask",) * 3):
        assert "license: other\nlicense_name: see-the-table\n" in header(*partly)
    unmeasured = dataclasses.replace(stated, figures={"ap": 1.0})
    assert "Not measured on validation images of a run." in card_text(unmeasured)


def test_a_card_says_how_images_are_seen(plates_run: Path) -> None:
    description = load(plates_run).description
    seen, most = description.inference, f"; at most {description.inference.max_detections} instances per image."
    tiles = f"seen in tiles of {seen.tile[0]} x {seen.tile[1]} pixels that share {seen.overlap}"
    assert tiles + most in card_text(description)
    whole = dataclasses.replace(seen, fit=True, tile=(64, 96))
    for stretch, words in ((True, "stretched by percentiles, "), (False, "")):
        text = card_text(dataclasses.replace(description, inference=whole, stretch=stretch))
        assert (
            f"Images are {words}scaled until they just fit into 64 x 96 pixels{most}" in text and "in tiles" not in text
        )


def test_a_stage_of_a_run_is_chosen_by_name(plates_run: Path) -> None:
    teacher = load(plates_run, stage="adapted_teacher")
    assert teacher.description.facts["stage"] == "adapted_teacher"
    with pytest.raises(
        ModelError, match="has no finished pretrained_student; found adapted_teacher, distilled_student"
    ):
        load(plates_run, stage="pretrained_student")


def test_places_without_a_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: there is no such file or folder; expected a checkpoint"):
        load("nowhere")
    with pytest.raises(ModelError, match=r"has neither checkpoints/ nor model\.safetensors"):
        load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ModelError, match=r"found no finished stage; resume with `python -m sskd_fast\.run --output"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("not a model")
    with pytest.raises(CheckpointError, match=r"notes\.txt: not a readable safetensors file"):
        load(tmp_path / "notes.txt")
    with pytest.raises(ModelError, match=r"missing\.safetensors: there is no such file"):
        load("models/missing.safetensors")
    for typo in (tmp_path / "exp--2", tmp_path / ".." / "x"):
        with pytest.raises(ModelError, match="there is no such file or folder"):
            load(typo)
    with pytest.raises(ModelError, match="no--where/x--y: there is no such folder here"):
        load("no--where/x--y")


def test_a_hub_that_is_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="owner/name: there is no such folder here, and the hub does not provide it"):
        load("owner/name")


@pytest.mark.parametrize("command", [["--stage", "evaluate"], ["--resume"]])
def test_evaluating_and_resuming_complete_checkpoints_of_an_earlier_version(
    plates_run: Path, tmp_path: Path, command: list[str]
) -> None:
    run = shutil.copytree(plates_run, tmp_path / "run")
    path = run / "checkpoints" / "refined_student.safetensors"
    before, mapped = read_description(path), load_file(str(path))
    weights = {name: weight.clone() for name, weight in mapped.items()}  # not those of the file that is written next
    old = {key: json.dumps(vars(before)[key]) for key in ("class_names", "facts")}
    save_file(weights, str(path), metadata=old | {"model": json.dumps(dataclasses.asdict(before.model))})
    with pytest.raises(CheckpointError, match=r"lacks category_ids, inference, stretch"):
        load(run)
    assert main([*command, "--output", str(run)]) == 0
    assert read_description(path) == before
    again = load_file(str(path))
    assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize("name", ["student.onnx", "student.xml"])
def test_an_exported_file_on_a_gpu_is_refused(tmp_path: Path, name: str, device: str) -> None:
    """Fails without a GPU as well, because an exported file never runs on one."""
    (tmp_path / name).touch()
    with pytest.raises(ModelError) as caught:
        load(tmp_path / name, device=device)
    assert str(caught.value) == (
        f"device {device}: {tmp_path / name} is an exported file, which runs on the CPU; choose auto or cpu, or give "
        "the checkpoint that it was made from"
    )
