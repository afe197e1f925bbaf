"""Exported files predict like their models at all sizes they claim to support, and report if they do not."""

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

from models_to_export import IDS, INFERENCE, TINY, description, of_file, shipped_student, tiny

from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.embedded import CLASS_NAMES, write_scenes
from sskd_fast.exported import (
    Exported,
    Precision,
    export_onnx,
    export_openvino,
    load_exported,
    parity_report,
)
from sskd_fast.exported.agreement import matched_differences
from sskd_fast.exported.file_description import KEY, ExportError
from sskd_fast.models.inference import predict
from sskd_fast.models.mask_transformer import MaskTransformer
from sskd_fast.models.padding import Content
from sskd_fast.models.segmenter import Predictions, Segmenter


@pytest.fixture(scope="module")
def student() -> Segmenter:
    return shipped_student()


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
def largest_differences(
    model: Segmenter, exported: Exported, shape: tuple[int, ...], *, padding: int = 0
) -> tuple[float, float]:
    """Differences of mask and class logits on random images, relative to the model's largest logit.

    padding: rows of the first image that are padding.
    """
    images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    images[0, :, shape[2] - padding :] = 0
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
    [
        {"queries": "learned", "pixel_decoder": "dpt"},
        {"mask_level": 1, "precision": "bfloat16"},
        {"kind": "dense", "channels": (8, 8, 8), "blocks": (1, 1, 1), "mask_width": 8, "num_queries": 20},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_other_models_take_any_batch_and_size(settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(**settings)
    exported = export_onnx(model, description(model), tmp_path / "model.onnx")
    assert exported.description.size == ()
    model.config = dataclasses.replace(model.config, precision="float32")  # files compute in their own precision
    step = exported.description.multiple
    for shape in [(2, 3, 9 * step, 13 * step), (1, 3, 64, 64), (3, 3, 64, 8 * step)]:
        assert max(largest_differences(model, exported, shape)) < ROUNDING
    assert max(largest_differences(model, exported, (2, 3, 64, 64), padding=24)) < ROUNDING


class OfTwoImages(MaskTransformer):
    """A model whose code reads the number of images as a Python number, which tracing writes into the graph."""

    def decode(self, encoded: list[Tensor], content: Content | None = None) -> Predictions:
        found = super().decode(encoded, content)
        return dataclasses.replace(found, mask_logits=found.mask_logits[torch.arange(len(found.mask_logits))])


@pytest.mark.slow
def test_a_graph_that_fails_for_one_image_is_refused(tmp_path: Path) -> None:
    model = OfTwoImages(TINY, len(CLASS_NAMES)).eval()
    with pytest.raises(ExportError, match=r"^model: traced on two images, it does not run on one of 64 x 64$"):
        export_onnx(model, description(model), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_speeds_are_ratios_to_the_first_contender() -> None:
    from benchmarks.inference_speed import COMMAND, PAGE, rows
    from benchmarks.marked import replaced

    found = rows({"PyTorch": [10.0, 12.0, 11.0], "file": [5.0, 6.0, 5.5]})
    assert found == [["PyTorch", "11.0 (10.0 to 12.0)", "1.00 x"], ["file", "5.5 (5.0 to 6.0)", "2.00 x"]]
    assert "| file |" in replaced(PAGE.read_text(encoding="utf-8"), COMMAND, "| file |")
