"""Description of an exported file: JSON beside the network, with all that prediction needs."""

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
# The entry of a file's metadata that holds the description.
KEY = "sskd_fast"
# No image is smaller, so that what follows from the least size (the number of queries) is the same for all.
_LEAST_SIDE = 32


class ExportError(ValueError):
    """A model that has no exported form, a file that is none, or an image that a file cannot take."""


@dataclass(frozen=True)
class FileDescription:
    """All that prediction with an exported file needs; the input's mean and standard deviation are in its network.

    checkpoint: what the checkpoint says that it was exported from.  parameters: how many the network has.
    stride: pixels a cell of the masks.  multiple, smallest: sides of images are multiples of `multiple` and at least
    `smallest`.  size: the only (H, W) that the network takes, none = any.  precision: see `export_onnx`,
    `export_openvino`.  independent_classes: see `Segmenter`.
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
        """The description of a model that is applied as its checkpoint says.

        Raises ExportError if the model has no network to export, or if it cannot read tiles of that size.
        """
        traceable = isinstance(model, UniversalSegmenter) and model.reader.traceable
        if model.config.kind in REFUSED and not traceable:
            raise ExportError(f"model.kind: {model.config.kind!r} {REFUSED[model.config.kind]}")
        description = cls(
            checkpoint, model.parameter_count(), float(model.stride), model.max_stride, smallest_side(model),
            independent_classes=model.independent_classes,
        )  # fmt: skip
        description.check_size(checkpoint.inference.tile)
        return description

    @property
    def inference(self) -> InferenceConfig:
        """Tiles, zoom and thresholds."""
        return self.checkpoint.inference

    @classmethod
    def from_json(cls, text: str | None, path: Path) -> Self:
        """The description that a file carries; ExportError if it has none, or one that this version cannot read."""
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
                f"{path}: its description is none that sskd_fast {__version__} reads ({reason}); export the model again"
            ) from error

    def to_json(self) -> str:
        """The JSON that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    def check_size(self, size: Sequence[int]) -> None:
        """Raises ExportError if the network cannot take images of this height and width."""
        found = f"images: found {size[0]} x {size[1]} pixels, expected"
        if self.size and tuple(size) != self.size:
            raise ExportError(f"{found} {self.size[0]} x {self.size[1]}, the only size of this file: cut such tiles")
        if min(size) < self.smallest or any(side % self.multiple for side in size):
            raise ExportError(f"{found} multiples of {self.multiple} from {self.smallest} on: choose another tile")


REFUSED = {
    "grounded_sam": "asks a detector in words and segments its boxes, which is no single network: export the student",
    "sam3": "asks for every class in words, which is no single network: export the student that learned from it",
    "universal": "is a model of transformers that torch.export does not trace: export the student that learned from it",
    "results": "is a file of predictions without a network: export the student that learned from them",
}


def smallest_side(model: Segmenter) -> int:
    """The least side in pixels of images with as many cells as the model has queries."""
    cells = model.config.num_queries if model.config.queries == "peaks" else 1
    least = max(_LEAST_SIDE, 2 * model.max_stride, model.stride * math.sqrt(cells))
    return math.ceil(least / model.max_stride) * model.max_stride


def check_precision(precision: str, calibration: Sequence[Any]) -> None:
    """Raises ExportError for an unknown precision, and for int8 without images to calibrate on."""
    if precision not in get_args(Precision):
        raise ExportError(f"precision: found {precision!r}, expected one of {', '.join(get_args(Precision))}")
    if precision == "int8" and not calibration:
        raise ExportError("calibration: found no images, expected some of the training set: int8 is scaled by them")


def check_suffix(path: Path, suffix: str) -> None:
    """Raises ExportError unless the name of a file ends as those of its format do."""
    if path.suffix != suffix:
        raise ExportError(f"{path}: expected a name that ends in {suffix}")


def files_of(path: Path) -> list[Path]:
    """The files that an exported model consists of: itself, after the weights beside it if they have their own."""
    return [path.with_suffix(".bin"), path] if path.suffix == ".xml" else [path]


def require(name: str) -> Any:
    """A package of the extra `export`; ImportError with the way out if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"exported files need {name}: pip install 'sskd_fast[export]'") from error
