"""Static int8 quantisation of the convolutions of an ONNX graph, calibrated on image tiles.

Shape letters: B tiles, H x W pixels of an image, T tile side.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sskd_fast.exported.exported import INPUT, Floats
from sskd_fast.exported.file_description import require
from sskd_fast.models.inference import InferenceConfig, cut_tiles, zoomed


def quantized(graph: Any, batches: Iterator[Floats]) -> Any:
    """The graph with int8 convolutions: weights scaled per channel, activations by their range on the batches.

    Convolutions are most of the work.  Matrix products stay in float32: in the decoder they are cheap, and int8 would
    lose AP.
    """
    quantization = require("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, Floats] | None:
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


def tile_batches(images: Sequence[Tensor], inference: InferenceConfig, batch: int = 8) -> Iterator[Floats]:
    """Batches of tiles (B, 3, T, T) float32 in [0, 1] of uint8 images (3, H, W), cut as in prediction."""
    seen = [zoomed(image, inference.zoom_of(image.shape[1:])) for image in images]
    tiles = [tile for _, _, _, tile in cut_tiles(seen, inference)]
    for start in range(0, len(tiles), batch):
        yield (torch.stack(tiles[start : start + batch]).float() / 255).numpy()
