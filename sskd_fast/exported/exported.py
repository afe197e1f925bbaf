"""An exported file behind the interface of the models, so that prediction runs on it unchanged.

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
    """The network of an exported file: predicts on the CPU, and can be neither trained nor moved.

    run: images (B, 3, H, W) in [0, 1] -> mask logits (B, K, h, w) and class logits (B, K, C+1).
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
        self.device_mark = nn.Parameter(torch.empty(0), requires_grad=False)  # prediction asks a parameter where it is

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W) in [0, 1] -> mask and class logits; ExportError for a size that the file lacks."""
        self.description.check_size(images.shape[-2:])
        masks, classes = self._run(images.float().contiguous().numpy())
        return torch.from_numpy(masks), torch.from_numpy(classes)

    def decode(self, encoded: tuple[Tensor, Tensor]) -> Predictions:
        """Mask and class logits as Predictions, without pixel features."""
        masks, classes = encoded
        return Predictions(masks, classes, masks.new_empty(len(masks), 0, 1, 1))

    def embed(self, encoded: tuple[Tensor, Tensor]) -> Tensor:
        """Raises ExportError: the projection of the contrastive loss is for training and not exported."""
        raise ExportError("embed: an exported file has no embeddings, which are for training; use the model itself")

    def parameter_count(self) -> int:
        """Parameters of the network in the file."""
        return self.description.parameters


def require_model(model: Segmenter) -> None:
    """Raises ExportError for an exported file, which has no code to export from."""
    if isinstance(model, Exported):
        raise ExportError(
            "model: is an exported file already; give the checkpoint (.safetensors) or the run's folder that it is from"
        )


def load_exported(path: Path) -> Exported:
    """The network of an .onnx file in ONNX Runtime, or of an .xml file in OpenVINO, on the CPU.

    Raises ExportError for any other file, ImportError if the runtime is not installed.
    """
    if path.suffix not in (".onnx", ".xml"):
        raise ExportError(f"{path}: expected a file .onnx, or .xml with its .bin beside it")
    if not path.exists():
        raise ExportError(f"{path} does not exist; export the model first")
    return _from_onnx(path) if path.suffix == ".onnx" else _from_openvino(path)


def onnx_runner(source: str | bytes) -> Runner:
    """Runs an ONNX file, or its bytes, in ONNX Runtime."""
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
    """Runs an OpenVINO model on the CPU, in float32 except for what is quantised, whatever the processor prefers."""
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
