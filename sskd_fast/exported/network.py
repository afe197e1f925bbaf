"""The ONNX graph of a model, for images of any size if the model allows it.

Shape letters: B images, H x W pixels, K queries, C classes, h x w cells.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sskd_fast.exported.agreement import matched_differences
from sskd_fast.exported.exported import INPUT, OUTPUTS, onnx_runner, require_model
from sskd_fast.exported.file_description import ExportError, FileDescription, Precision, check_precision, require
from sskd_fast.exported.quantization import quantized, tile_batches
from sskd_fast.models.segmenter import Segmenter

_log = logging.getLogger(__name__)
# Relative difference allowed at sizes not traced. Rounding stays below it; baked-in constants exceed it by far.
_SAME = 0.02


class Network(nn.Module):
    """A copy of a model on the CPU as a function of one tensor.

    Maps images (B, 3, H, W) in [0, 1] to mask logits (B, K, h, w) and class logits (B, K, C+1), all float32.
    half: compute in float16, except for what the model's code keeps in float32.
    """

    def __init__(self, model: Segmenter, *, half: bool = False) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().to(torch.float16 if half else torch.float32).eval()
        self.model.config = dataclasses.replace(model.config, precision="float32")  # no autocast in the graph
        self.dtype = torch.float16 if half else torch.float32

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps images (B, 3, H, W) to mask logits and class logits."""
        predictions = self.model(images.to(self.dtype))
        return predictions.mask_logits, predictions.class_logits


def onnx_graph(
    model: Segmenter, description: FileDescription, precision: Precision, calibration: Sequence[Tensor], *, half: bool
) -> tuple[Any, FileDescription]:
    """The ONNX ModelProto of a model, and its description with precision and supported sizes.

    The graph accepts any batch size, and any image size if its results match the model's there.  half: compute in
    float16.  calibration: uint8 images (3, H, W) for int8.  Raises ExportError for invalid arguments, and for a model
    whose graph fails for one image.
    """
    require_model(model)
    check_precision(precision, calibration)
    network, tile = Network(model, half=half), description.inference.tile
    description = dataclasses.replace(description, precision=precision)
    try:
        graph = _any_size(network, description)
    except ExportError as error:
        _log.warning("the file takes images of %d x %d pixels only: %s", *tile, error)
        graph, description = _traced(network, tile, {}), dataclasses.replace(description, size=tile)
        _check(graph, network, tile)
    if precision == "int8":
        graph = quantized(graph, tile_batches(calibration, description.inference))
    return graph, description


def _any_size(network: Network, description: FileDescription) -> Any:
    """The graph for all sizes that the description allows.  Raises ExportError if it fails at sizes not traced."""
    step, least, (height, width) = description.multiple, description.smallest, description.inference.tile
    sides = [torch.export.Dim(side, min=least // step) for side in ("height", "width")]
    graph = _traced(network, (height, width + step), {2: step * sides[0], 3: step * sides[1]})
    for size in ((2 * height, least), (least, width + 2 * step)):
        _check(graph, network, size)
    return graph


def _traced(network: Network, size: Sequence[int], sides: dict[int, Any]) -> Any:
    """The ONNX graph of a network for any batch size, traced at one image size; sides: other dynamic dimensions."""
    try:
        with _quiet():
            program = torch.onnx.export(
                network, (torch.rand(2, 3, *size),), dynamo=True, input_names=[INPUT], output_names=list(OUTPUTS),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)} | sides,), verbose=False,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ExportError(f"model: torch.onnx.export cannot convert it ({reason}); export another model") from error
    assert program is not None
    return without_traces(program.model_proto)


def _check(graph: Any, network: Network, size: Sequence[int]) -> None:
    """Raises ExportError unless the graph agrees with the network for one image of this size."""
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    run = onnx_runner(graph.SerializeToString())
    try:
        with torch.inference_mode():
            expected = network(images)
        masks, classes = (torch.from_numpy(array) for array in run(images.numpy()))
    except Exception as error:  # models and onnxruntime have no common error
        raise ExportError(f"model: traced on two images, it does not run on one of {size[0]} x {size[1]}") from error
    if masks.shape == expected[0].shape:
        difference = matched_differences(expected, (masks, classes)).masks.mean()
        if difference <= _SAME * expected[0].abs().mean():
            return
    raise ExportError(f"model: traced on two images, it predicts something else on one of {size[0]} x {size[1]}")


def without_traces(graph: Any) -> Any:
    """The graph without the exporter's notes on the source line of each node: two fifths of a small file."""
    for node in (*graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        del node.metadata_props[:]
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's advice to its own developers."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    require("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
