"""Exported files with the interface of a model, so that the prediction code runs on them unchanged.

Shape letters: B images, H x W pixels, K queries, C classes, h x w cells.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sskd_fast.exported.file_description import KEY, ExportError, FileDescription, require
from sskd_fast.models.segmenter import Predictions, Segmenter

INPUT, OUTPUTS = "images", ("mask_logits", "class_logits")
Floats = NDArray[np.float32]
Runner = Callable[[Floats], tuple[Floats, Floats]]


class Exported(Segmenter):
    """The network of an exported file: predicts on the CPU and cannot be trained or moved.

    run: maps images (B, 3, H, W) in [0, 1] to mask logits (B, K, h, w) and class logits (B, K, C+1), all float32.
    """

    def __init__(self, description: FileDescription, run: Runner, runtime: str) -> None:
        super().__init__()
        self.description, self.runtime, self._run = description, runtime, run
        self.config, self.stride, self.max_stride = (
            description.checkpoint.model,
            description.stride,
            description.multiple,
        )
        self.independent_classes = description.independent_classes
        self.device_mark = nn.Parameter(torch.empty(0), requires_grad=False)  # tells prediction the device

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps images (B, 3, H, W) in [0, 1] to mask and class logits.

        Raises ExportError for an image size that the file does not support.
        """
        self.description.check_size(images.shape[-2:])
        masks, classes = self._run(images.float().contiguous().numpy())
        return torch.from_numpy(masks), torch.from_numpy(classes)

    def decode(self, encoded: tuple[Tensor, Tensor]) -> Predictions:
        """Wraps mask and class logits as Predictions without pixel features."""
        masks, classes = encoded
        return Predictions(masks, classes, masks.new_empty(len(masks), 0, 1, 1))

    def embed(self, encoded: tuple[Tensor, Tensor]) -> Tensor:
        """Raises ExportError: the projection for the contrastive loss is only for training and not exported."""
        raise ExportError("embed: an exported file has no embeddings, which only training needs; use the model itself")

    def parameter_count(self) -> int:
        """Number of parameters of the network in the file."""
        return self.description.parameters


def require_model(model: Segmenter) -> None:
    """Raises ExportError if the model is already an exported file, which cannot be exported again."""
    if isinstance(model, Exported):
        raise ExportError(
            "model: already an exported file; give the checkpoint (.safetensors) or the run's folder that it came from"
        )


def load_exported(path: Path) -> Exported:
    """The network of an .onnx file in ONNX Runtime, or of an .xml file in OpenVINO, on the CPU.

    Raises ExportError for any other file, and ImportError if the runtime is not installed.
    """
    if path.suffix not in (".onnx", ".xml"):
        raise ExportError(f"{path}: expected an .onnx file, or an .xml file with its .bin beside it")
    if not path.exists():
        raise ExportError(f"{path} does not exist; export the model first")
    return _from_onnx(path) if path.suffix == ".onnx" else _from_openvino(path)


def onnx_runner(source: str | bytes) -> Runner:
    """A function that runs an ONNX file, or its bytes, in ONNX Runtime."""
    return _runner_of(require("onnxruntime").InferenceSession(source, providers=["CPUExecutionProvider"]))


def _runner_of(session: Any) -> Runner:
    def run(images: Floats) -> tuple[Floats, Floats]:
        masks, classes = session.run(list(OUTPUTS), {INPUT: images})
        return masks, classes

    return run


def _from_onnx(path: Path) -> Exported:
    runtime = require("onnxruntime")
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common base
        raise ExportError(f"{path}: not readable as ONNX ({str(error).splitlines()[0]}); export it again") from error
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    return Exported(FileDescription.from_json(text, path), _runner_of(session), f"onnxruntime {runtime.__version__}")


def openvino_runner(model: Any) -> Runner:
    """A function that runs an OpenVINO model on the CPU, in float32 except for its quantised parts."""
    compiled = require("openvino").Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: Floats) -> tuple[Floats, Floats]:
        found = compiled(images)
        return found[OUTPUTS[0]], found[OUTPUTS[1]]

    return run


def _from_openvino(path: Path) -> Exported:
    runtime = require("openvino")
    try:
        model = runtime.Core().read_model(path)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ExportError(f"{path}: not readable by OpenVINO ({reason}); export it again") from error
    text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
    version = f"openvino {runtime.__version__.split('-')[0]}"
    return Exported(FileDescription.from_json(text, path), openvino_runner(model), version)
