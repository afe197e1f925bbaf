"""Descriptions of exported files, models that cannot be exported, and the comparison of predictions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("onnxruntime", reason="exported files need onnxruntime: pip install 'sskd_fast[export]'")

from models_to_export import INFERENCE, description, of_file, tiny

from sskd_fast.data.embedded import CLASS_NAMES
from sskd_fast.export import main as export_command
from sskd_fast.exported import Exported, ExportError, Parity, export_onnx, export_openvino, load_exported
from sskd_fast.exported.agreement import matched_differences
from sskd_fast.exported.file_description import KEY, FileDescription, smallest_side
from sskd_fast.exported.parity import TOLERANCE
from sskd_fast.exported.quantization import tile_batches
from sskd_fast.models.augmented import Augmentation
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.checkpoint import LAYOUT
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.settings import FoundationConfig, ModelConfig
from sskd_fast.predict.__main__ import main as predict_command
from sskd_fast.predictor import ModelError, Predictor


def test_models_without_a_network_of_their_own_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    config = ModelConfig(kind="results", foundation=FoundationConfig(results=str(tmp_path / "results.json")))
    with pytest.raises(ExportError, match=r"model\.kind: 'results' is a file of predictions .* export the student"):
        of_file(build_segmenter(config, CLASS_NAMES))


def test_models_of_transformers_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tiny_models import save

    for name in ("mm_grounding_dino", "sam2", "sam3", "mask2former"):
        save(name, tmp_path / name)
    parts = FoundationConfig(
        detector=str(tmp_path / "mm_grounding_dino"),
        masks=str(tmp_path / "sam2"),
        sam3=str(tmp_path / "sam3"),
        universal=str(tmp_path / "mask2former"),
    )
    reasons = {
        "grounded_sam": "prompts a detector with text",
        "sam3": "prompts for each class with text",
        "universal": "is a model of transformers",
    }
    for kind, reason in reasons.items():
        model = build_segmenter(ModelConfig(kind=kind, foundation=parts), CLASS_NAMES)  # type: ignore[arg-type]
        with pytest.raises(ExportError, match=rf"model\.kind: '{kind}' {reason}.*: export the student"):
            of_file(model)


@pytest.mark.slow
def test_rf_detr_predicts_the_same_from_a_file_at_any_size(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tiny_models import save

    save("rf_detr", tmp_path / "rf_detr")
    foundation = FoundationConfig(universal=str(tmp_path / "rf_detr"))
    model = build_segmenter(ModelConfig(kind="universal", foundation=foundation), CLASS_NAMES).eval()
    exported = export_onnx(model, description(model), tmp_path / "m.onnx")
    assert exported.description.size == () and exported.description.multiple == 1
    images = torch.rand(2, 3, 80, 112)
    with torch.inference_mode():
        ours, theirs = model(images), load_exported(tmp_path / "m.onnx")(images)
    torch.testing.assert_close(theirs.mask_logits, ours.mask_logits, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(theirs.class_logits, ours.class_logits, rtol=1e-3, atol=1e-4)


def test_arguments_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = tiny()
    with pytest.raises(ExportError, match="precision: found 'int4', expected one of fp32, fp16, int8"):
        export_onnx(model, description(model), tmp_path / "m.onnx", precision="int4")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="calibration: found no images"):
        export_openvino(model, description(model), tmp_path / "m.xml", precision="int8")
    with pytest.raises(ExportError, match=r"m\.xml: expected a name that ends in \.onnx"):
        export_onnx(model, description(model), tmp_path / "m.xml")
    with pytest.raises(ExportError, match=r"m\.onnx: expected a name that ends in \.xml"):
        export_openvino(model, description(model), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="images: found 66 x 64 pixels, expected multiples of 4 from 32 on"):
        of_file(model, dataclasses.replace(INFERENCE, tile=(66, 64)))
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_exported_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"model\.pt: expected an \.onnx file"):
        load_exported(tmp_path / "model.pt")
    with pytest.raises(ExportError, match=r"model\.onnx does not exist"):
        load_exported(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"model\.onnx: not readable as ONNX"):
        load_exported(tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"model\.onnx: has no description of its model"):
        FileDescription.from_json(None, tmp_path / "model.onnx")


def test_a_file_of_one_size_says_so() -> None:
    one = dataclasses.replace(of_file(tiny()), size=(64, 48))
    one.check_size((64, 48))
    with pytest.raises(ExportError, match="found 64 x 64 pixels, expected 64 x 48, the only size of this file"):
        one.check_size((64, 64))
    assert FileDescription.from_json(one.to_json(), Path("model.onnx")) == one


def test_zoomed_views_of_a_file_of_one_size_are_refused() -> None:
    for size, zoom, refused in (((64, 48), 1.25, True), ((64, 48), 1.0, False), ((), 1.25, False)):
        file = dataclasses.replace(of_file(tiny()), size=size)
        views = (Augmentation(), Augmentation(mirrored=True, zoom=zoom))
        predictor = Predictor(
            Exported(file, lambda images: (images, images), "onnx"), dataclasses.replace(file.checkpoint, views=views)
        )
        if refused:
            with pytest.raises(ModelError, match="an exported file of one size takes no zoomed views"):
                predictor.with_views()
        else:
            assert predictor.with_views().views == views


def of_a_later_layout(content: dict[str, Any]) -> None:
    content["checkpoint"] |= {"layout": LAYOUT + 1, "version": "9.9"}


def with_a_field_more(content: dict[str, Any]) -> None:
    content["colour"] = "red"


def with_a_field_less(content: dict[str, Any]) -> None:
    del content["stride"]


def without_its_checkpoint(content: dict[str, Any]) -> None:
    content["checkpoint"] = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_a_later_layout, rf"written by sskd_fast 9\.9 in layout {LAYOUT + 1}, expected at most {LAYOUT}: install"),
        (with_a_field_more, r"cannot be read by sskd_fast \S+ \(.*colour: no such setting.*\); export the model again"),
        (with_a_field_less, r"cannot be read by sskd_fast \S+ \(.*stride.*\); export the model again"),
        (without_its_checkpoint, r"cannot be read by sskd_fast \S+ \(.*\); export the model again"),
    ],
)
def test_descriptions_of_other_versions_are_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    content = json.loads(of_file(tiny()).to_json())
    change(content)
    with pytest.raises(ExportError, match=rf"model\.onnx: .*{message}") as raised:
        FileDescription.from_json(json.dumps(content), Path("model.onnx"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ['{"checkpoint": ', "[]", "3"])
def test_a_broken_description_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match=r"model\.onnx: its description cannot be read by .*; export the model again"):
        FileDescription.from_json(text, Path("model.onnx"))


def write_network(path: Path, description: str) -> None:
    """An ONNX file with this description and an identity network."""
    import onnx
    from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

    values = [make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("images", "mask_logits")]
    graph = make_graph([make_node("Identity", ["images"], ["mask_logits"])], "network", values[:1], values[1:])
    model = make_model(graph, ir_version=10, opset_imports=[make_opsetid("", 18)])
    model.metadata_props.add(key=KEY, value=description)
    onnx.save(model, path)


def test_an_exported_file_is_not_exported_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_network(tmp_path / "a.onnx", of_file(tiny()).to_json())
    exported = load_exported(tmp_path / "a.onnx")
    with pytest.raises(ExportError, match=r"model: already an exported file; give the checkpoint"):
        export_onnx(exported, exported.description.checkpoint, tmp_path / "b.onnx")
    assert export_command([str(tmp_path / "a.onnx")]) == 2
    assert "model: already an exported file; give the checkpoint" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_prediction_names_a_file_of_a_later_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(of_file(tiny()).to_json())
    of_a_later_layout(content)
    write_network(tmp_path / "later.onnx", json.dumps(content))
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    place = ["--output", str(tmp_path / "found")]
    assert predict_command([str(tmp_path / "later.onnx"), str(tmp_path / "image.png"), *place]) == 2
    printed = capsys.readouterr().err
    assert "later.onnx: written by sskd_fast 9.9" in printed and len(printed.splitlines()) == 1


def test_the_smallest_image_has_a_cell_for_every_query() -> None:
    assert smallest_side(tiny()) == 32
    assert smallest_side(tiny(num_queries=300)) == 36  # 18 x 18 cells of 2 pixels; 17 x 17 are too few
    assert smallest_side(tiny(num_queries=300, queries="learned")) == 32


def test_queries_are_matched_before_they_are_compared() -> None:
    generator = torch.Generator().manual_seed(0)
    masks, classes = torch.randn(2, 5, 4, 6, generator=generator), torch.randn(2, 5, 3, generator=generator)
    order = torch.tensor([3, 0, 4, 1, 2])
    found = matched_differences((masks, classes), (masks[:, order] + 0.25, classes[:, order]))
    assert found.masks.shape == (10, 4, 6) and found.classes.shape == (10, 3)
    assert found.masks.numpy() == pytest.approx(0.25, abs=1e-6) and float(found.classes.max()) == 0


def test_only_queries_over_the_floor_are_compared() -> None:
    classes = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
    found = matched_differences((torch.zeros(1, 2, 3, 3), classes), (torch.zeros(1, 2, 3, 3), classes + 1), 0.5)
    assert found.classes.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(("change", "passes"), [(0.31, False), (-0.31, False), (0.29, True), (-0.29, True)])
def test_a_file_passes_within_the_tolerance_on_either_side(change: float, passes: bool) -> None:
    parity = Parity(
        precision="int8", runtime="", images=1, queries=1, mask_difference_max=0.0, mask_difference_mean=0.0,
        class_difference_max=0.0, class_difference_mean=0.0, ap_model=60.0, ap_file=60.0 + change, ap50_model=80.0,
        ap50_file=80.0, tolerance=TOLERANCE, machine="", versions={},
    )  # fmt: skip
    assert parity.passes == passes and parity.ap_change == pytest.approx(change)


def test_calibration_sees_the_tiles_of_prediction() -> None:
    image = torch.full((3, 30, 50), 255, dtype=torch.uint8)
    config = InferenceConfig(tile=(64, 64), overlap=16, zoom=2.0)
    batches = list(tile_batches([image, image], config, batch=3))
    assert [len(batch) for batch in batches] == [3, 1]
    assert batches[0].shape == (3, 3, 64, 64) and batches[0].dtype == np.float32
    assert batches[0][0, 0, :60].min() == 1.0 and batches[0][0, 0, 60:].max() == 0.0
