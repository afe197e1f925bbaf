"""Checkpoints: weights as safetensors, with everything else that inference needs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sskd_fast import __version__
from sskd_fast.files import write_atomically
from sskd_fast.models.augmented import Augmentation
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.class_heads import rows_for
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.licences import Ancestor, ancestors_of, distinct
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.models.settings import ModelConfig
from sskd_fast.typed_settings import ConfigError, build

# The layout of the metadata; layout 1 had neither inference settings nor origins.
LAYOUT = 2


class CheckpointError(ValueError):
    """A weights file that cannot be read or does not fit the model."""


@dataclass(frozen=True)
class Origin:
    """Licence and source of an input of a model, as the user stated them; "" if not stated."""

    licence: str = ""
    source: str = ""


@dataclass(frozen=True)
class Origins:
    """Licences and sources of a model's inputs. They bind anyone who redistributes the model."""

    teacher: Origin = Origin()
    backbone: Origin = Origin()
    data: Origin = Origin()


@dataclass(frozen=True)
class Description:
    """Everything besides the weights that inference needs, and facts for readers.

    model: the architecture, with the mean and standard deviation of its input.  class_names, category_ids: by class
    index.  inference: tile, overlap, zoom, score floor, NMS and detection limit.  stretch: True if images are stretched
    by percentiles first (`data.intensity`).  views: those in which the teacher of its run labels, to average
    predictions over; none in files of earlier versions.  origins: licences and sources as stated.  ancestors: models
    that it is based on, with their licences if known.  version: of the sskd_fast that wrote it.
    figures: on validation images, such as "ap" and "ap50" in percent.  facts: stage, steps, seconds, seed.
    architecture: of models of transformers, so that loading needs neither their files nor a network.
    """

    model: ModelConfig
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    inference: InferenceConfig
    stretch: bool = False
    views: tuple[Augmentation, ...] = ()
    origins: Origins = Origins()
    ancestors: tuple[Ancestor, ...] = ()
    version: str = __version__
    figures: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    architecture: dict[str, Any] = field(default_factory=dict)
    layout: int = LAYOUT

    def __post_init__(self) -> None:
        if len(self.class_names) != len(self.category_ids):
            raise ValueError(
                f"category_ids: found {len(self.category_ids)}, expected one for each of {', '.join(self.class_names)}"
            )


# Required fields: without them a file cannot be used for inference.
_NEEDED = ("model", "class_names", "category_ids", "inference", "stretch")


def save_checkpoint(path: Path, model: Segmenter, description: Description) -> None:
    """Writes the weights and their description (safetensors), whole or not at all.

    Adds the model's own ancestors to those of the description.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in distinct_tensors(model).items()}
    own: dict[str, Any] = {"model": _with_input_statistics(model), "architecture": model.architecture()}
    own["ancestors"] = distinct((*ancestors_of(model.config), *description.ancestors))
    metadata = _metadata(dataclasses.replace(description, **own))
    write_atomically(path, lambda partial: _save(tensors, partial, metadata))


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Save with safetensors; turns its system errors into OSError."""
    try:
        save_file(tensors, str(path), metadata=metadata)
    except SafetensorError as error:
        found = re.search(r"(?:os error|code:) (\d+)", str(error))
        if found is None:
            raise OSError(f"{path}: {error}") from error
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def _with_input_statistics(model: Segmenter) -> ModelConfig:
    """The model's configuration with the mean and standard deviation that it actually uses."""
    found = {name: getattr(model, name, None) for name in ("mean", "std")}
    known: dict[str, Any] = {n: tuple(v.flatten().tolist()) for n, v in found.items() if isinstance(v, Tensor)}
    return dataclasses.replace(model.config, **known)


def _metadata(description: Description) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in dataclasses.asdict(description).items()}


def describe_again(path: Path, **changes: Any) -> None:
    """Changes fields of a checkpoint's description; the bytes of the weights are unchanged."""
    metadata = _metadata(dataclasses.replace(read_description(path), **changes))

    def write(partial: Path) -> None:
        with path.open("rb") as old, partial.open("wb") as new:
            header = json.loads(old.read(struct.unpack("<Q", old.read(8))[0]))
            text = json.dumps(header | {"__metadata__": metadata}).encode()
            text += b" " * (-len(text) % 8)
            new.write(struct.pack("<Q", len(text)) + text)
            while block := old.read(1 << 24):
                new.write(block)

    write_atomically(path, write)


def read_metadata(path: Path) -> dict[str, Any]:
    """The description of a file's weights, by field of `Description`; older files have fewer.

    Raises CheckpointError if the file is missing, not a checkpoint, truncated, or written by a later version.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist: run the stage that makes it first (--stage adapt, distill, refine)"
        )
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
        known = {f.name for f in dataclasses.fields(Description)}
        found = {key: json.loads(value) for key, value in metadata.items() if key in known}
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file, or cut off ({error}); copy it again, or run the stage that "
            "writes it again"
        ) from error
    check_layout(found, path)
    return found


def check_layout(description: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError if a description has a later layout than this version's."""
    layout = description.get("layout", 1)
    if not isinstance(layout, int) or layout > LAYOUT:
        raise CheckpointError(
            f"{path}: written by sskd_fast {description.get('version', '?')} in layout {layout}, expected at most "
            f"{LAYOUT}: install that version or a later one (pip install -U sskd_fast)"
        )


def missing_fields(metadata: Mapping[str, Any]) -> list[str]:
    """Required fields that the metadata lack."""
    return [name for name in _NEEDED if name not in metadata]


def read_description(path: Path) -> Description:
    """The description of a checkpoint.  Raises CheckpointError like `read_metadata`, or for missing fields."""
    metadata = read_metadata(path)
    missing = missing_fields(metadata)
    if missing:
        raise CheckpointError(
            f"{path}: lacks {', '.join(missing)}: it is not a checkpoint of sskd_fast, or one of an earlier version; "
            "in a run's folder, `python -m sskd_fast.run --stage evaluate --output FOLDER` writes what is missing"
        )
    try:
        return build(Description, metadata, "")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; it was written by sskd_fast {metadata.get('version', '?')}") from error


def distinct_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state, with tensors shared by several modules under one name only."""
    seen: set[int] = set()
    state = model.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if id(t) not in seen and not seen.add(id(t))}  # type: ignore[func-returns-value]


def load_checkpoint(path: Path) -> tuple[Segmenter, Description]:
    """The model of a checkpoint, ready to predict, and its description.  Raises CheckpointError."""
    description = read_description(path)
    model = build_segmenter(
        description.model, description.class_names, weights=False, architecture=description.architecture
    )
    load_weights(model, path, description.class_names)
    return model.eval(), description


def load_weights(
    model: Segmenter, path: Path, class_names: Sequence[str], *, parts: tuple[str, ...] = (), required: bool = True
) -> None:
    """Reads weights into the model: all of them, or those whose names begin with one of `parts`.

    Classes are matched by name.  A class that the file lacks starts as the mean of the file's classes, an object of
    unknown kind.  Raises CheckpointError naming the first tensor that does not fit or, with `required`, is missing.
    """
    theirs = read_metadata(path).get("class_names", class_names)
    wanted = {n: t for n, t in load_file(str(path)).items() if not parts or n.startswith(parts)}
    wanted = _with_classes(wanted, model.class_tensors, list(theirs), list(class_names))
    own = distinct_tensors(model)
    for name, tensor in wanted.items():
        if name not in own or own[name].shape != tensor.shape:
            expected = tuple(own[name].shape) if name in own else "no such tensor"
            raise CheckpointError(
                f"{path}: {name} is {tuple(tensor.shape)}, the model has {expected}; use the model settings the file "
                "was made with (they are in its metadata), or start from other weights"
            )
    missing = sorted(n for n in own if n not in wanted and (not parts or n.startswith(parts)))
    if missing and required:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{path}: lacks {missing[0]}{more} of the model's {len(own)} tensors; copy it again, or run the stage that "
            "writes it again"
        )
    model.load_state_dict(wanted, strict=False)


def _with_classes(
    tensors: dict[str, Tensor], names: Sequence[str], theirs: Sequence[str], ours: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors with their class rows rearranged for our classes."""
    rows = {} if theirs == ours else {name: rows_for(tensors[name], theirs, ours) for name in names if name in tensors}
    return tensors | rows
