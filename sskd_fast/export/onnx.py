"""A model as an ONNX file: float32, float16, or int8 between QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sskd_fast.data.files import write_atomically
from sskd_fast.export.calibration import Images, calibration_batches
from sskd_fast.export.description import KEY, Description, Precision, check_precision, require
from sskd_fast.export.exported import INPUT, Exported, load_exported
from sskd_fast.export.network import onnx_graph
from sskd_fast.models.segmenter import Segmenter


def export_onnx(
    model: Segmenter, description: Description, path: Path, *, precision: Precision = "fp32",
    calibration: Sequence[Tensor] = (),
) -> Exported:  # fmt: skip
    """Writes a model to an .onnx file that carries its description, and returns what the file holds.

    Input and outputs are float32 in every precision.  calibration: uint8 training images (3, H, W), which int8 needs.
    Raises ExportError for arguments that do not fit, ImportError without the extra `export`.
    """
    check_precision(precision, calibration)
    description = dataclasses.replace(description, precision=precision)
    graph, description = onnx_graph(model, description, half=precision == "fp16")
    if precision == "int8":
        graph = quantized(graph, calibration_batches(calibration, description.inference))
    graph.metadata_props.add(key=KEY, value=description.to_json())
    write_atomically(path, lambda partial: require("onnx").save(graph, str(partial)))
    return load_exported(path)


def quantized(graph: Any, batches: Iterator[Images]) -> Any:
    """The graph with its convolutions in int8, weights scaled by channel, activations by what the batches give.

    Convolutions are most of the work.  Matrix products stay in float32: in the decoder they cost little and lose AP.
    """
    quantization = require("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, Images] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            graph, str(path), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv"],
        )  # fmt: skip
        return require("onnx").load(str(path))
