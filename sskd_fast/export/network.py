"""The part of a model that is exported, and its ONNX graph for any image size if the model's code allows it.

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

from sskd_fast.export.agreement import matched_differences
from sskd_fast.export.description import Description, require
from sskd_fast.export.exported import INPUT, OUTPUTS, onnx_runner
from sskd_fast.models.segmenter import Segmenter

_log = logging.getLogger(__name__)
# A graph for any size differs by rounding from its network at other sizes; constants of the traced size differ grossly.
_SAME = 0.02


class Network(nn.Module):
    """A copy of a model as a function of one tensor, on the CPU: images (B, 3, H, W) in [0, 1] -> mask logits
    (B, K, h, w) and class logits (B, K, C+1), all float32.

    half: computes in float16, but for what the model's code keeps in float32.
    """

    def __init__(self, model: Segmenter, *, half: bool = False) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().to(torch.float16 if half else torch.float32).eval()
        self.model.config = dataclasses.replace(model.config, precision="float32")  # no autocast in the graph
        self.dtype = torch.float16 if half else torch.float32

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W) -> mask logits and class logits."""
        predictions = self.model(images.to(self.dtype))
        return predictions.mask_logits, predictions.class_logits


def onnx_graph(model: Segmenter, description: Description, *, half: bool) -> tuple[Any, Description]:
    """The ONNX ModelProto of a model for any batch, and for any size if that gives what the model gives.

    Otherwise it takes tiles of `description.inference` only, which is logged and stands in the returned description.
    """
    network, tile = Network(model, half=half), description.inference.tile
    height, width = tile[0], tile[1] + description.multiple
    reason = "its code depends on the size"
    if min(tile) >= description.smallest:
        try:
            graph = _traced(network, (height, width), description)
            others = ((2 * height, description.smallest), (description.smallest, width + description.multiple))
            if all(_agrees(graph, network, size) for size in others):
                return graph, description
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
    _log.warning("the file takes images of %d x %d pixels only, since the model has no other form: %s", *tile, reason)
    return _traced(network, tile, None), dataclasses.replace(description, size=tile)


def _traced(network: Network, size: Sequence[int], any_size: Description | None) -> Any:
    """The ONNX graph of a network, traced at one size, for any size that a description allows."""
    shape: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if any_size is not None:
        step, least = any_size.multiple, any_size.smallest // any_size.multiple
        height, width = (torch.export.Dim(side, min=least) for side in ("height", "width"))
        shape |= {2: step * height, 3: step * width}
    with _quiet():
        program = torch.onnx.export(
            network, (torch.rand(2, 3, *size),), dynamo=True, dynamic_shapes=(shape,), input_names=[INPUT],
            output_names=list(OUTPUTS), verbose=False,
        )  # fmt: skip
    assert program is not None
    return without_traces(program.model_proto)


def _agrees(graph: Any, network: Network, size: Sequence[int]) -> bool:
    """Whether the graph runs at this size and gives what the network gives."""
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(images)
    try:
        found = onnx_runner(graph.SerializeToString())(images.numpy())
    except Exception as error:  # onnxruntime's own errors have no common base
        _log.debug("the graph does not run at %s: %s", size, error)
        return False
    masks, classes = (torch.from_numpy(array) for array in found)
    if masks.shape != expected[0].shape:
        return False
    difference = matched_differences(expected, (masks, classes))
    return bool(difference.masks.mean() <= _SAME * expected[0].abs().mean())


def without_traces(graph: Any) -> Any:
    """The graph without the exporter's notes on which line of code each node comes from: two fifths of a small file."""
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
