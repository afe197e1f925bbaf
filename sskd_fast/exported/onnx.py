"""Export to ONNX: float32, float16, or int8 with QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from sskd_fast.exported.exported import Exported, load_exported
from sskd_fast.exported.file_description import KEY, FileDescription, Precision, check_suffix, require
from sskd_fast.exported.network import onnx_graph
from sskd_fast.files import write_atomically
from sskd_fast.models.checkpoint import Description
from sskd_fast.models.segmenter import Segmenter


def export_onnx(
    model: Segmenter,
    checkpoint: Description,
    path: Path,
    *,
    precision: Precision = "fp32",
    calibration: Sequence[Tensor] = (),
) -> Exported:
    """Writes a model to an .onnx file with its description, and returns the exported model.

    Input and outputs are float32 at any precision.  calibration: uint8 training images (3, H, W), needed for int8.
    Raises ExportError for invalid arguments, and ImportError without the extra `export`.
    """
    check_suffix(path, ".onnx")
    graph, description = onnx_graph(
        model, FileDescription.of(model, checkpoint), precision, calibration, half=precision == "fp16"
    )
    graph.metadata_props.add(key=KEY, value=description.to_json())
    write_atomically(path, lambda partial: require("onnx").save(graph, str(partial)))
    return load_exported(path)
