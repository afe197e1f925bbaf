"""Description of an exported file: JSON in its metadata with all that prediction needs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from sskd_fast import __version__
from sskd_fast.models.checkpoint import CheckpointError, Description, check_layout
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.models.universal import UniversalSegmenter
from sskd_fast.typed_settings import build

Precision = Literal["fp32", "fp16", "int8"]
# Metadata key of the description.
KEY = "sskd_fast"
# Lower bound on the sides of images, so that the number of queries is the same for all sizes.
_LEAST_SIDE = 32


class ExportError(ValueError):
    """Raised for a model that cannot be exported, an invalid file, or an image that a file cannot process."""


@dataclass(frozen=True)
class FileDescription:
    """Facts that prediction with an exported file needs; the network itself normalises its input.

    checkpoint: description in the checkpoint that was exported.  parameters: number of parameters.  stride: pixels per
    mask cell.  multiple, smallest: image sides are multiples of `multiple` and at least `smallest`.  size: the only
    (H, W) that the network accepts, () = any.  precision: see `export_onnx` and `export_openvino`.
    independent_classes: see `Segmenter`.
    """

    checkpoint: Description
    parameters: int
    stride: float
    multiple: int
    smallest: int
    size: tuple[int, ...] = ()
    precision: Precision = "fp32"
    independent_classes: bool = False

    @classmethod
    def of(cls, model: Segmenter, checkpoint: Description) -> Self:
        """The description of a model with the inference settings of its checkpoint.

        Raises ExportError if the model has no network to export or cannot process tiles of that size.
        """
        traceable = isinstance(model, UniversalSegmenter) and model.reader.traceable
        if model.config.kind in REFUSED and not traceable:
            raise ExportError(f"model.kind: {model.config.kind!r} {REFUSED[model.config.kind]}")
        description = cls(
            checkpoint,
            model.parameter_count(),
            float(model.stride),
            model.max_stride,
            smallest_side(model),
            independent_classes=model.independent_classes,
        )
        description.check_size(checkpoint.inference.tile)
        return description

    @property
    def inference(self) -> InferenceConfig:
        """Tiles, zoom and thresholds."""
        return self.checkpoint.inference

    @classmethod
    def from_json(cls, text: str | None, path: Path) -> Self:
        """The description in a file.  Raises ExportError if there is none or this version cannot read it."""
        if text is None:
            raise ExportError(f"{path}: has no description of its model; expected a file that sskd_fast.exported wrote")
        try:
            content = json.loads(text)
            check_layout(content["checkpoint"], path)
            return build(cls, content, "")
        except CheckpointError as error:
            raise ExportError(str(error)) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # broken JSON, or fields of another version
            reason = f"{type(error).__name__}: {error}"
            raise ExportError(
                f"{path}: its description cannot be read by sskd_fast {__version__} ({reason}); export the model again"
            ) from error

    def to_json(self) -> str:
        """The JSON that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    def check_size(self, size: Sequence[int]) -> None:
        """Raises ExportError if the network does not support this (height, width) of images."""
        found = f"images: found {size[0]} x {size[1]} pixels, expected"
        if self.size and tuple(size) != self.size:
            raise ExportError(f"{found} {self.size[0]} x {self.size[1]}, the only size of this file: use such tiles")
        if min(size) < self.smallest or any(side % self.multiple for side in size):
            raise ExportError(f"{found} multiples of {self.multiple} from {self.smallest} on: choose another tile")


REFUSED = {
    "grounded_sam": "prompts a detector with text and segments its boxes, not a single network: export the student",
    "sam3": "prompts for each class with text, not a single network: export the student that learned from it",
    "universal": "is a model of transformers that torch.export cannot trace: export the student that learned from it",
    "results": "is a file of predictions without a network: export the student that learned from them",
}


def smallest_side(model: Segmenter) -> int:
    """The smallest image side in pixels that gives at least as many cells as the model has queries."""
    cells = model.config.num_queries if model.config.queries == "peaks" else 1
    least = max(_LEAST_SIDE, 2 * model.max_stride, model.stride * math.sqrt(cells))
    return math.ceil(least / model.max_stride) * model.max_stride


def check_precision(precision: str, calibration: Sequence[Any]) -> None:
    """Raises ExportError for an unknown precision, or for int8 without calibration images."""
    if precision not in get_args(Precision):
        raise ExportError(f"precision: found {precision!r}, expected one of {', '.join(get_args(Precision))}")
    if precision == "int8" and not calibration:
        raise ExportError("calibration: found no images, expected some of the training set to calibrate int8")


def check_suffix(path: Path, suffix: str) -> None:
    """Raises ExportError unless a file's name ends in the suffix of its format."""
    if path.suffix != suffix:
        raise ExportError(f"{path}: expected a name that ends in {suffix}")


def files_of(path: Path) -> list[Path]:
    """The files of an exported model: its weights file if there is one, then the file itself."""
    return [path.with_suffix(".bin"), path] if path.suffix == ".xml" else [path]


def require(name: str) -> Any:
    """Imports a package of the extra `export`.  Raises ImportError with the cure if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"exported files need {name}: pip install 'sskd_fast[export]'") from error
