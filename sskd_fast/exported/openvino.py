"""Export to OpenVINO's intermediate representation: an .xml file with its weights in a .bin file beside it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sskd_fast.exported.exported import Exported, load_exported
from sskd_fast.exported.file_description import KEY, FileDescription, Precision, check_suffix, files_of, require
from sskd_fast.exported.network import onnx_graph
from sskd_fast.models.checkpoint import Description
from sskd_fast.models.segmenter import Segmenter


def export_openvino(
    model: Segmenter,
    checkpoint: Description,
    path: Path,
    *,
    precision: Precision = "fp32",
    calibration: Sequence[Tensor] = (),
) -> Exported:
    """Writes a model to an .xml and a .bin file, and returns the exported model.

    Arguments and errors are those of `export_onnx`.  fp16 applies only to the stored weights: OpenVINO computes in the
    type that suits the device, and `load_exported` in float32.
    """
    check_suffix(path, ".xml")
    runtime = require("openvino")
    graph, description = onnx_graph(model, FileDescription.of(model, checkpoint), precision, calibration, half=False)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "graph.onnx"
        require("onnx").save(graph, str(source))
        converted = runtime.convert_model(str(source))
        converted.set_rt_info(description.to_json(), KEY)
        _save(converted, path, half=precision == "fp16")
    return load_exported(path)


def _save(model: Any, path: Path, *, half: bool) -> None:
    """Writes both files to a temporary folder and moves them into place, the weights first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".", suffix=".partial") as folder:
        partial = Path(folder) / path.name
        require("openvino").save_model(model, str(partial), compress_to_fp16=half)
        for old, new in zip(files_of(partial), files_of(path), strict=True):
            os.replace(old, new)
