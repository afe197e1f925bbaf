"""Exported files predict as their models do, at every size that they say they take, and say so if they do not."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("onnxruntime", reason="exported files need onnxruntime: pip install 'sskd_fast[export]'")

from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.embedded import CLASS_NAMES, write_scenes
from sskd_fast.exported import (
    Exported,
    ExportError,
    Precision,
    export_onnx,
    export_openvino,
    load_exported,
    parity_report,
)  # fmt: skip
from sskd_fast.exported.agreement import matched_differences
from sskd_fast.exported.file_description import KEY, FileDescription, smallest_side
from sskd_fast.exported.quantization import tile_batches
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.checkpoint import Description, load_weights, read_metadata
from sskd_fast.models.inference import InferenceConfig, predict
from sskd_fast.models.mask_transformer import MaskTransformer
from sskd_fast.models.segmenter import FoundationConfig, ModelConfig, Segmenter
from sskd_fast.run.models import SHIPPED
from sskd_fast.typed_settings import build

INFERENCE = InferenceConfig(tile=(64, 64), overlap=16, score_floor=0.05)
IDS = (3, 5, 8, 13)
TINY = ModelConfig(channels=(8, 8), blocks=(1, 1), width=8, mask_width=4, layers=1, feedforward=8, num_queries=3)


@pytest.fixture(scope="module")
def student() -> Segmenter:
    metadata = read_metadata(SHIPPED / "student.safetensors")
    model = build_segmenter(build(ModelConfig, metadata["model"], "model"), metadata["class_names"])
    load_weights(model, SHIPPED / "student.safetensors", metadata["class_names"])
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def scenes(folder: Path) -> CocoInstances:
    return CocoInstances(write_scenes(folder, "val", "source", 30, seed=8), folder / "val")


@pytest.fixture(scope="module")
def calibration(folder: Path) -> list[Tensor]:
    source = CocoInstances(write_scenes(folder, "train", "source", 30, seed=3), folder / "train")
    return [source.image(i) for i in range(len(source))]


def description(model: Segmenter, inference: InferenceConfig = INFERENCE) -> Description:
    return Description(model.config, CLASS_NAMES, IDS, inference, stretch=True)


def of_file(model: Segmenter, inference: InferenceConfig = INFERENCE) -> FileDescription:
    return FileDescription.of(model, description(model, inference))


def tiny(**settings: Any) -> MaskTransformer:
    torch.manual_seed(0)
    model = build_segmenter(dataclasses.replace(TINY, **settings), CLASS_NAMES).eval()
    assert isinstance(model, MaskTransformer)
    return model


@pytest.fixture(scope="module")
def student_file(student: Segmenter, folder: Path, calibration: list[Tensor]) -> Callable[[Precision], Path]:
    """The student as an ONNX file of a precision, exported once."""

    @functools.cache
    def exported(precision: Precision) -> Path:
        path = folder / f"student.{precision}.onnx"
        export_onnx(student, description(student), path, precision=precision, calibration=calibration)
        return path

    return exported


@pytest.fixture(scope="module")
def student_onnx(student_file: Callable[[Precision], Path]) -> Path:
    return student_file("fp32")


@torch.inference_mode()
def largest_differences(model: Segmenter, exported: Exported, shape: tuple[int, ...]) -> tuple[float, float]:
    """Of mask and class logits of random images, as shares of the largest logit of the model."""
    images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    expected, found = model(images), exported(images)
    assert found.mask_logits.shape == expected.mask_logits.shape
    assert found.class_logits.shape == expected.class_logits.shape
    pair = [(p.mask_logits, p.class_logits) for p in (expected, found)]
    difference = matched_differences(pair[0], pair[1])
    return tuple(
        float(d.max() / e.abs().max()) for d, e in zip((difference.masks, difference.classes), pair[0], strict=True)
    )  # type: ignore[return-value]


# Sums of some hundred float32 products in another order: a share of the largest logit some hundred roundings large.
ROUNDING = 100 * float(np.finfo(np.float32).eps)
SHAPES = [(1, 3, 64, 64), (3, 3, 32, 40), (2, 3, 104, 56), (1, 3, 256, 128)]


@pytest.mark.slow
def test_onnx_takes_any_batch_and_size_and_differs_by_rounding(student: Segmenter, student_onnx: Path) -> None:
    exported = load_exported(student_onnx)
    assert exported.description.size == ()
    for shape in SHAPES:
        assert max(largest_differences(student, exported, shape)) < ROUNDING


@pytest.mark.slow
def test_openvino_takes_any_batch_and_size_and_differs_by_rounding(student: Segmenter, folder: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO's files need openvino: pip install 'sskd_fast[export]'")
    exported = export_openvino(student, description(student), folder / "student.xml")
    assert exported.description == of_file(student) and exported.runtime.startswith("openvino 20")
    assert (folder / "student.bin").stat().st_size > 4 * student.parameter_count()
    for shape in SHAPES:
        assert max(largest_differences(student, exported, shape)) < ROUNDING


@pytest.mark.slow
def test_a_file_carries_what_prediction_needs(student: Segmenter, student_onnx: Path) -> None:
    found = load_exported(student_onnx)
    assert found.description == of_file(student)
    assert found.description.checkpoint.class_names == CLASS_NAMES and found.description.checkpoint.category_ids == IDS
    assert found.description.inference == INFERENCE and found.description.checkpoint.stretch
    assert (found.stride, found.max_stride) == (student.stride, student.max_stride) == (2.0, 8)
    assert found.parameter_count() == student.parameter_count()
    import onnx

    graph = onnx.load(student_onnx)
    assert [p.key for p in graph.metadata_props] == [KEY]
    assert not any(node.metadata_props for node in graph.graph.node)  # no paths of the machine that wrote it
    weights = sum(math.prod(i.dims) for i in graph.graph.initializer if i.data_type == onnx.TensorProto.FLOAT)
    assert weights >= 0.99 * student.parameter_count()


@pytest.mark.slow
def test_prediction_in_tiles_runs_on_a_file(student: Segmenter, student_onnx: Path, scenes: CocoInstances) -> None:
    """On images larger than a tile, and on one of odd sides."""
    wide = torch.cat([scenes.image(i) for i in range(3)], 2)
    images = [wide, scenes.image(4)[:, :51, :37]]
    expected, found = (predict(model, images, INFERENCE) for model in (student, load_exported(student_onnx)))
    for ours, theirs in zip(expected, found, strict=True):
        assert len(ours) == len(theirs) > 0
        assert [d.label for d in ours] == [d.label for d in theirs]
        assert [d.score for d in theirs] == pytest.approx([d.score for d in ours], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_parity_of_onnx(
    student: Segmenter, student_file: Callable[[Precision], Path], scenes: CocoInstances, precision: Precision
) -> None:
    """The tolerance is wider than the default, since AP on 30 images is coarse."""
    path = student_file(precision)
    parity = parity_report(student, load_exported(path), scenes, INFERENCE, tolerance=1.0)
    assert parity.passes and parity.ap_model > 55 and parity.queries > 100 and parity.images == 30
    if precision == "fp32":
        assert parity.mask_difference_max < 0.01 and abs(parity.ap_change) < 0.05
    else:
        assert parity.mask_difference_mean > 1e-3  # it is the other precision that was measured
    report = parity.write(path)
    content = json.loads(report.read_text())
    assert report.name == f"student.{precision}.onnx.parity.json"
    assert content["precision"] == precision and content["bytes"] == path.stat().st_size and content["passes"]
    assert content["ap_change"] == pytest.approx(content["ap_file"] - content["ap_model"])


@pytest.mark.slow
def test_fp16_halves_the_weights_and_keeps_any_size(
    student: Segmenter, student_file: Callable[[Precision], Path]
) -> None:
    sizes = [student_file(precision).stat().st_size for precision in ("fp32", "fp16")]
    assert sizes[0] - sizes[1] > 1.9 * student.parameter_count()
    exported = load_exported(student_file("fp16"))
    assert exported.description.size == () and exported(torch.rand(3, 3, 40, 96)).mask_logits.shape[2:] == (20, 48)


@pytest.mark.slow
def test_parity_of_openvino_in_int8(
    student: Segmenter, folder: Path, scenes: CocoInstances, calibration: list[Tensor]
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO's files need openvino: pip install 'sskd_fast[export]'")
    path = folder / "student.int8.xml"
    exported = export_openvino(student, description(student), path, precision="int8", calibration=calibration)
    parity = parity_report(student, exported, scenes, INFERENCE, tolerance=1.0)
    assert parity.passes and parity.precision == "int8" and parity.mask_difference_mean > 1e-3
    sizes = [path.with_suffix(suffix).stat().st_size for suffix in (".xml", ".bin")]
    assert json.loads(parity.write(path).read_text())["bytes"] == sum(sizes)


@pytest.mark.slow
def test_a_file_with_other_weights_fails_parity(
    student: Segmenter, student_onnx: Path, scenes: CocoInstances, tmp_path: Path
) -> None:
    import onnx

    graph = onnx.load(student_onnx)
    rng = np.random.default_rng(0)
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 4:
            values = onnx.numpy_helper.to_array(tensor)
            noisy = values + 0.3 * values.std() * rng.standard_normal(values.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    onnx.save(graph, tmp_path / "broken.onnx")
    parity = parity_report(student, load_exported(tmp_path / "broken.onnx"), scenes, INFERENCE)
    assert not parity.passes and parity.ap_change < -5 and parity.tolerance == 0.3
    assert json.loads(parity.write(tmp_path / "broken.onnx").read_text())["passes"] is False


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"queries": "learned"}, {"pixel_decoder": "dpt"}, {"mask_level": 1}, {"precision": "bfloat16"}],
    ids=lambda settings: next(iter(settings.values())),
)
def test_variants_of_the_mask_transformer_take_any_size(settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(**settings)
    exported = export_onnx(model, description(model), tmp_path / "model.onnx")
    assert exported.description.size == ()
    model.config = dataclasses.replace(model.config, precision="float32")  # files compute in their own precision
    for shape in [(2, 3, 36, 52), (1, 3, 64, 64)]:
        assert max(largest_differences(model, exported, shape)) < ROUNDING


def test_models_without_a_network_of_their_own_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    config = ModelConfig(kind="results", foundation=FoundationConfig(results=str(tmp_path / "results.json")))
    with pytest.raises(ExportError, match=r"model\.kind: 'results' is a file of predictions .* export the student"):
        of_file(build_segmenter(config, CLASS_NAMES))


def test_models_of_transformers_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tiny_models import save

    for name in ("mm_grounding_dino", "sam2", "mask2former"):
        save(name, tmp_path / name)
    parts = FoundationConfig(
        detector=str(tmp_path / "mm_grounding_dino"), masks=str(tmp_path / "sam2"),
        universal=str(tmp_path / "mask2former"),
    )  # fmt: skip
    reasons = {"grounded_sam": "asks a detector in words", "universal": "is a model of transformers"}
    for kind, reason in reasons.items():
        model = build_segmenter(ModelConfig(kind=kind, foundation=parts), CLASS_NAMES)  # type: ignore[arg-type]
        with pytest.raises(ExportError, match=rf"model\.kind: '{kind}' {reason}.*: export the student"):
            of_file(model)


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
    with pytest.raises(ExportError, match=r"model\.pt: expected a file \.onnx"):
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


def test_calibration_sees_the_tiles_of_prediction() -> None:
    image = torch.full((3, 30, 50), 255, dtype=torch.uint8)
    config = InferenceConfig(tile=(64, 64), overlap=16, zoom=2.0)
    batches = list(tile_batches([image, image], config, batch=3))
    assert [len(batch) for batch in batches] == [3, 1]
    assert batches[0].shape == (3, 3, 64, 64) and batches[0].dtype == np.float32
    assert batches[0][0, 0, :60].min() == 1.0 and batches[0][0, 0, 60:].max() == 0.0


def test_speeds_are_ratios_to_the_first_contender() -> None:
    from benchmarks.inference_speed import COMMAND, PAGE, rows
    from benchmarks.marked import replaced

    found = rows({"PyTorch": [10.0, 12.0, 11.0], "file": [5.0, 6.0, 5.5]})
    assert found == [["PyTorch", "11.0 (10.0 to 12.0)", "1.00 x"], ["file", "5.5 (5.0 to 6.0)", "2.00 x"]]
    assert "| file |" in replaced(PAGE.read_text(encoding="utf-8"), COMMAND, "| file |")
