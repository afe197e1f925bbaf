"""The AP of a trained model on labelled images: the run's own figures, for any order and ids of the classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sskd_fast.data.layouts import FOLDER_FORMATS
from sskd_fast.evaluate import main
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.checkpoint import Description, save_checkpoint
from sskd_fast.models.inference import PredictConfig
from sskd_fast.models.settings import ModelConfig
from tests.label_sets import CLASSES, FILES, write_images, write_yolo_root
from tests.official_layouts import write_ade20k, write_cityscapes

Measure = Callable[..., dict[str, Any]]


@pytest.fixture
def measure(plates_run: Path, tmp_path: Path) -> Measure:
    """measure(labels or None, *flags) -> the figures of the run's last student, as the JSON file has them."""

    def evaluate(labels: Path | None = None, *flags: str) -> dict[str, Any]:
        file, data = tmp_path / "figures.json", plates_run.parent
        images = ["--images", str(data / "val")]
        assert (
            main([str(plates_run), "--val", str(labels or data / "val.json"), *images, "--json", str(file), *flags])
            == 0
        )
        figures: dict[str, Any] = json.loads(file.read_text())
        return figures

    return evaluate


def changed(plates_run: Path, path: Path, ids: dict[int, int], categories: list[dict[str, Any]]) -> Path:
    """The run's validation labels with other category ids, of `categories` alone."""
    content = json.loads((plates_run.parent / "val.json").read_text())
    annotations = [
        a | {"category_id": ids[a["category_id"]]} for a in content["annotations"] if a["category_id"] in ids
    ]
    path.write_text(json.dumps(content | {"annotations": annotations, "categories": categories}))
    return path


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("stage", ["refined_student", "adapted_teacher"])
def test_the_figures_are_those_of_the_run(plates_run: Path, measure: Measure, stage: str, augment: bool) -> None:
    figures = measure(None, "--stage", stage, *(["--augment"] if augment else []))
    name = f"{stage}_views" if augment else stage
    row = next(r for r in json.loads((plates_run / "metrics.json").read_text())["rows"] if r["name"] == name)
    details = json.loads((plates_run / "details.json").read_text())[name]
    assert figures["views"] == row.get("views", 1) == (2 if augment else 1)
    assert row["ap"] > 10 and (figures["ap"], figures["ap50"]) == (row["ap"], row["ap50"])
    details.pop("gain", None)
    assert {key: figures[key] for key in details} == details and figures["ap_large"] is None
    assert figures["stage"] == stage and figures["images"] == 6 and sum(figures["instances"].values()) == 12
    assert figures["ignored"] == {"model": [], "labels": []} and list(figures["instances"]) == ["square", "disc"]


def test_the_table_has_every_figure(plates_run: Path, measure: Measure, capsys: pytest.CaptureFixture[str]) -> None:
    figures = measure()
    lines = capsys.readouterr().out.splitlines()
    assert "(refined student) on 6 images of" in lines[0] and "val.json: 12 instances; mask AP in perc" in lines[0]
    assert lines[2].split() == ["AP", "AP50", "AP75", "small", "medium", "large"]
    assert lines[3].split()[0] == f"{figures['ap']:.1f}" and lines[3].split()[-1] == "-"
    square = ["square", str(figures["instances"]["square"]), f"{figures['per_class']['square']:.1f}"]
    assert lines[5].split() == ["class", "instances", "AP"] and lines[6].split() == square


def test_classes_are_matched_by_name(plates_run: Path, measure: Measure, tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "disc"}, {"id": 3, "name": "square"}]
    expected, other = measure(), measure(changed(plates_run, tmp_path / "val.json", {3: 3, 7: 1}, categories))
    for key in ("ap", "ap50", "ap75", "ap_medium", "per_class", "instances", "ignored"):
        assert other[key] == expected[key]
    assert list(other["instances"]) == ["disc", "square"]


def test_other_classes_are_refused_or_left_out(
    plates_run: Path, measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "disc"}]
    labels = changed(plates_run, tmp_path / "val.json", {3: 1, 7: 2}, categories)
    command = [str(plates_run), "--val", str(labels), "--images", str(plates_run.parent / "val")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for text in (
        "has the classes cell, disc; the model", "has square, disc;", "only the labels have cell",
        "only the model has square", "the shared ones (1) with --ignore-unknown",
    ):  # fmt: skip
        assert text in error
    figures = measure(labels, "--ignore-unknown")
    assert figures["ignored"] == {"model": ["square"], "labels": ["cell"]}
    of_disc = measure()["per_class"]["disc"]
    assert figures["ap"] == figures["per_class"]["disc"] == of_disc > 10 and list(figures["instances"]) == ["disc"]
    printed = capsys.readouterr().out
    assert "left out, classes of the model without labels: square" in printed
    assert "left out, labelled classes that the model does not know: cell" in printed
    none = changed(plates_run, tmp_path / "none.json", {3: 1, 7: 1}, [{"id": 1, "name": "cell"}])
    assert main([*command[:2], str(none), *command[3:], "--ignore-unknown"]) == 2
    assert "none is shared" in capsys.readouterr().err


def test_settings_of_prediction_may_be_changed(measure: Measure) -> None:
    figures = measure(None, "--max-detections", "1", "--batch", "2", "--device", "cpu")
    assert figures["max_detections"] == 1 and figures["ap"] < measure()["ap"]
    with pytest.raises(SystemExit) as stopped:
        measure(None, "--batch", "0")
    assert stopped.value.code == 2


def test_images_with_more_objects_than_detections_are_warned_of(
    measure: Measure, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure()["warnings"] == [] and not capsys.readouterr().err.startswith("warning")
    (warning,) = measure(None, "--max-detections", "1")["warnings"]
    assert warning.endswith(
        "val.json: labelled images show 2 objects in the median and 2 at most, and 1 detections of an image are kept: "
        "the other objects count as missed. Add --max-detections 100."
    ) and f"warning: {warning}\n" in capsys.readouterr().err  # fmt: skip


def untrained(file: Path, names: Sequence[str]) -> Path:
    """A checkpoint of a model with random weights for these classes."""
    config = ModelConfig(channels=(8, 8, 8), width=8, mask_width=8, heads=1, layers=1, feedforward=8, num_queries=4)
    model = build_segmenter(config, names, weights=False)
    inference = PredictConfig().resolved((64, 64), 1.0)
    save_checkpoint(file, model, Description(model.config, tuple(names), tuple(range(len(names))), inference))
    return file


@pytest.mark.parametrize(("format", "write"), [("cityscapes", write_cityscapes), ("ade20k", write_ade20k)])
def test_published_data_sets_are_read_by_their_folder(
    tmp_path: Path, format: str, write: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "data")
    place = ["--val", str(tmp_path / "data"), "--format", format, "--json", str(tmp_path / "figures.json")]
    names = FOLDER_FORMATS[format](tmp_path / "data", "val").class_names
    for known, flags in ((names[::-1], []), (names[:3], ["--ignore-unknown"])):
        assert main([str(untrained(tmp_path / "model.safetensors", known)), *place, *flags]) == 0
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert figures["images"] == 3 and list(figures["instances"]) == names[: len(known)]
        assert figures["ignored"] == {"model": [], "labels": names[len(known) :]} and 0 <= figures["ap"] < 10
        judged = format == "cityscapes" and len(known) == len(names)
        assert ("cityscapes" in figures) == judged == ("Cityscapes AP50" in capsys.readouterr().out)


@pytest.mark.parametrize("format", [*FILES, "yolo"])
def test_labels_of_every_format_are_read(tmp_path: Path, format: str) -> None:
    model = str(untrained(tmp_path / "model.safetensors", CLASSES[::-1]))
    if format == "yolo":
        place = ["--val", str(write_yolo_root(tmp_path / "data"))]
    else:
        place = ["--val", str(FILES[format](tmp_path, "val")), "--images", str(write_images(tmp_path / "images"))]
    assert main([model, *place, "--format", format, "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["images"] == 2 and figures["instances"] == {"cell": 2, "zebra": 1} and figures["ap"] < 10


def test_what_cannot_be_measured_is_said_in_a_line(
    plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = plates_run.parent
    labels, images = ["--val", str(data / "val.json")], ["--images", str(data / "val")]
    for command, message in (
        ([str(tmp_path), *labels, *images], "has neither checkpoints/ nor model.safetensors"),
        ([str(plates_run), *labels], "give the folder of its images, --images DIR"),
        ([str(plates_run), "--val", str(tmp_path / "no.json"), *images], "the annotation file does not exist"),
        ([str(plates_run), *labels, *images, "--stage", "pretrained_student"], "has no finished pretrained_student"),
        ([str(plates_run), *labels, *images, "--device", "cuda"], "device cuda: PyTorch finds no CUDA device; use cpu"),
        (
            [str(plates_run), *labels, "--images", "nowhere"],
            "nowhere: the folder does not exist; expected the folder with the images of",
        ),
        ([str(plates_run), *labels, "--images", str(tmp_path)], "plate 1.png: image 1: the image file does not exist"),
    ):
        assert main(command) == 2
        assert message in capsys.readouterr().err
