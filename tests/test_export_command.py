"""`python -m sskd_fast.export` on a finished run: the file, its report, its predictions, and messages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("onnxruntime", reason="exported files need onnxruntime: pip install 'sskd_fast[export]'")

from models_to_export import shipped_student, tiny, write_run

from sskd_fast.data.embedded import CLASS_NAMES
from sskd_fast.export import main
from sskd_fast.exported import load_exported
from sskd_fast.predictor import load


@pytest.mark.slow
@pytest.mark.parametrize(("format", "name"), [("onnx", "refined_student.fp32.onnx"), ("openvino", "m.xml")])
def test_a_runs_model_becomes_a_file_that_predicts_the_same(
    plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str, name: str
) -> None:
    run = shutil.copytree(plates_run, tmp_path / "run")
    path = run / "exported" / name if format == "onnx" else tmp_path / name
    place = [] if format == "onnx" else ["--output", str(path)]
    assert main([str(run), "--format", format, *place]) == 0
    report = json.loads(path.with_name(f"{name}.parity.json").read_text())
    rows = {row["name"]: row for row in json.loads((run / "metrics.json").read_text())["rows"]}
    assert report["passes"] and report["images"] == 6 and abs(report["ap_change"]) <= 0.3
    assert report["ap_model"] == pytest.approx(rows["refined_student"]["ap"], abs=1e-3)
    assert f"mask AP {report['ap_file']:.2f} instead of {report['ap_model']:.2f}" in capsys.readouterr().out

    described = load_exported(path).description.checkpoint
    predictor, original = load(path), load(run)
    assert described.inference == original.inference and described.stretch and described.origins.data.licence
    image = plates_run.parent / "val" / "plate 1.png"
    found, expected = predictor.predict(image), original.predict(image)
    assert len(found) == len(expected) and found.names == expected.names
    assert found.scores == pytest.approx(expected.scores, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "suffixes"), [("onnx", [".onnx"]), ("openvino", [".bin", ".xml"])])
def test_a_file_that_fails_does_not_get_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str, suffixes: list[str]
) -> None:
    """int8 calibrated on black images saturates on bright ones and loses most of AP."""
    if format == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO's files need openvino: pip install 'sskd_fast[export]'")
    run = write_run(tmp_path / "run", shipped_student(), 6)
    (tmp_path / "black").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "black" / "image.png")
    place = tmp_path / "files" / f"m{suffixes[-1]}"
    bad = [str(run), "--format", format, "--output", str(place), "--precision", "int8"]
    assert main([*bad, "--calibration", str(tmp_path / "black")]) == 1
    printed = capsys.readouterr().out
    assert f"m.failed{suffixes[-1]}: int8" in printed and "allowed: FAILS, hence its name: use a higher" in printed
    failed = {f"m.failed{suffix}" for suffix in suffixes}
    report = place.with_name(f"m.failed{suffixes[-1]}.parity.json")
    assert {path.name for path in place.parent.iterdir()} == {*failed, report.name}
    content = json.loads(report.read_text())
    assert content["file"] == f"m.failed{suffixes[-1]}" and not content["passes"] and content["ap_change"] < -5

    if format == "openvino":
        return  # the rest is the same for every format
    assert main([str(run), "--format", format, "--output", str(place)]) == 0
    proven = {f"m{suffix}" for suffix in suffixes}
    assert {path.name for path in place.parent.iterdir()} == {*proven, f"m{suffixes[-1]}.parity.json"}
    assert load_exported(place).description.precision == "fp32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such file or folder; expected a checkpoint"),
        (["CHECKPOINT"], "has no validation images to compare the file on; give --val val.json --images DIR"),
        (["CHECKPOINT", "--val", "VAL"], "give the folder of its images, --images DIR"),
        (["CHECKPOINT", "--val", "VAL", "--images", "IMAGES", "--precision", "int8"], "give --calibration DIR"),
        (["RUN", "--output", "m.txt"], "m.txt: expected a name that ends in .onnx"),
        (["RUN", "--stage", "first_teacher"], "has no finished first_teacher; found adapted_teacher"),
    ],
)
def test_what_does_not_fit_is_named(
    plates_run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {
        "RUN": plates_run,
        "CHECKPOINT": plates_run / "checkpoints" / "refined_student.safetensors",
        "VAL": plates_run.parent / "val.json",
        "IMAGES": plates_run.parent / "val",
    }
    assert main([str(places.get(argument, argument)) for argument in arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed and len(printed.splitlines()) == 1


@pytest.fixture
def tiny_run(tmp_path: Path) -> Path:
    """A run's folder with a tiny untrained student and two validation images."""
    return write_run(tmp_path / "run", tiny(), 2)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one-line error of a command line that fails before a file is written."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    return printed


def test_labels_of_other_classes_are_named_beside_the_models(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = json.loads((tiny_run / "ground_truth.json").read_text())
    truth["categories"][0]["name"] = "bolt"
    labels = tiny_run / "other.json"
    labels.write_text(json.dumps(truth))
    printed = refusal(capsys, tiny_run, "--val", labels, "--images", tiny_run / "val")
    theirs, lost = [c["name"] for c in truth["categories"]], CLASS_NAMES[0]
    assert (
        f"other.json: has the classes {', '.join(theirs)}; the model {tiny_run} has {', '.join(CLASS_NAMES)}" in printed
    )
    assert f"only the labels have bolt, only the model has {lost}: give labels of the classes that" in printed


def test_labels_are_checked_before_they_are_compared_on(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = json.loads((tiny_run / "ground_truth.json").read_text())
    truth["annotations"][0] |= {"segmentation": []}
    labels = tiny_run / "boxes.json"
    labels.write_text(json.dumps(truth))
    printed = refusal(capsys, tiny_run, "--val", labels, "--images", tiny_run / "val")
    assert f"boxes.json: annotation {truth['annotations'][0]['id']}" in printed
    assert not (tiny_run / "exported").exists()


def test_validation_images_that_are_gone_are_named(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = sorted((tiny_run / "val").iterdir())[0]
    first.unlink()
    printed = refusal(capsys, tiny_run)
    assert f"ground_truth.json: 1 of its images are gone, such as {first}; give --val val.json --images DIR" in printed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("data: [", "config.yaml: not readable as YAML"),
        ("plain text", "config.yaml: found a str, expected settings; restore the file"),
        ("seed: 1", "--precision int8 is calibrated on training images: give --calibration DIR"),
    ],
)
def test_settings_that_name_no_training_images_are_named(
    tiny_run: Path, capsys: pytest.CaptureFixture[str], settings: str, message: str
) -> None:
    (tiny_run / "config.yaml").write_text(settings)
    assert message in refusal(capsys, tiny_run, "--precision", "int8")
