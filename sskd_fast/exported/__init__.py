"""Trained models as ONNX and OpenVINO files, and parity checks of the files against their models.

Packages of the extra `export` are imported on first use.
"""

from __future__ import annotations

from sskd_fast.exported.exported import Exported, load_exported
from sskd_fast.exported.file_description import ExportError, FileDescription, Precision
from sskd_fast.exported.onnx import export_onnx
from sskd_fast.exported.openvino import export_openvino
from sskd_fast.exported.parity import Parity, parity_report

__all__ = [
    "ExportError",
    "Exported",
    "FileDescription",
    "Parity",
    "Precision",
    "export_onnx",
    "export_openvino",
    "load_exported",
    "parity_report",
]
