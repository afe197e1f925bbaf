"""Trained models as files of ONNX and OpenVINO, and the proof that a file predicts as its model does.

Every function here takes a Segmenter, a Description and images; the packages of the extra `export` are imported on use.
"""

from __future__ import annotations

from sskd_fast.export.description import Description, ExportError, Precision
from sskd_fast.export.exported import Exported, load_exported
from sskd_fast.export.onnx import export_onnx
from sskd_fast.export.openvino import export_openvino
from sskd_fast.export.parity import Parity, parity_report

__all__ = [
    "Description", "ExportError", "Exported", "Parity", "Precision", "export_onnx", "export_openvino", "load_exported",
    "parity_report",
]  # fmt: skip
