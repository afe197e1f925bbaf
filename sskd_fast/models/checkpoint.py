"""Checkpoints: finished weights as safetensors, with what inference needs beside them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sskd_fast.files import write_atomically
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.segmenter import ModelConfig, Segmenter
from sskd_fast.typed_settings import build


class CheckpointError(ValueError):
    """A weights file that cannot be read or does not fit the model."""


def save_weights(path: Path, model: Segmenter, class_names: list[str], facts: Mapping[str, Any]) -> None:
    """The model's weights with its configuration, class names and some facts as metadata (safetensors)."""
    metadata = {
        "model": json.dumps(dataclasses.asdict(model.config)), "class_names": json.dumps(class_names),
        "facts": json.dumps(dict(facts)),
    }  # fmt: skip
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in distinct_tensors(model).items()}
    write_atomically(path, lambda partial: save_file(tensors, str(partial), metadata=metadata))


def read_metadata(path: Path) -> dict[str, Any]:
    """What `save_weights` wrote beside the weights: "model", "class_names", "facts".  ValueError if unreadable."""
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist: run the stage that makes it first (--stage adapt, distill, refine)"
        )
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:
        raise CheckpointError(
            f"{path}: not readable as safetensors ({error}); run the stage that writes it again"
        ) from error
    return {key: json.loads(metadata[key]) for key in ("model", "class_names", "facts") if key in metadata}


def distinct_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without the further names of tensors that several modules share."""
    seen: set[int] = set()
    state = model.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if id(t) not in seen and not seen.add(id(t))}  # type: ignore[func-returns-value]


def load_model(path: Path) -> tuple[Segmenter, list[str]]:
    """The model of a checkpoint, ready to predict, and its class names.  ValueError if the file lacks them."""
    metadata = read_metadata(path)
    if "model" not in metadata or "class_names" not in metadata:
        raise CheckpointError(f"{path}: has no model description; expected a file from checkpoints/ of a run folder")
    config = build(ModelConfig, metadata["model"], "model")
    model = build_segmenter(config, metadata["class_names"], weights=False)
    load_weights(model, path, metadata["class_names"])
    return model.eval(), metadata["class_names"]


def load_weights(
    model: Segmenter, path: Path, class_names: list[str], *, parts: tuple[str, ...] = (), required: bool = True
) -> None:
    """Reads weights into the model, all or those whose names begin with one of `parts`.

    Classes are told by name. Where the file's classes are others, each class starts as the mean of the file's classes:
    an object of unknown kind. Raises ValueError naming the first tensor that does not fit, or, where the file is
    `required` to be complete, that is missing.
    """
    theirs = read_metadata(path).get("class_names", class_names)
    wanted = {n: t for n, t in load_file(str(path)).items() if not parts or n.startswith(parts)}
    wanted = _with_classes(wanted, model.class_tensors, theirs, class_names)
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
        raise CheckpointError(f"{path}: lacks {missing[0]} and {len(missing) - 1} more tensors of the model")
    model.load_state_dict(wanted, strict=False)


def _with_classes(
    tensors: dict[str, Tensor], names: Sequence[str], theirs: list[str], ours: list[str]
) -> dict[str, Tensor]:
    """Class rows reordered to our class names; unknown classes get the mean of theirs. The last row is no-object."""
    if theirs == ours:
        return tensors
    out = dict(tensors)
    for name in names:
        if name in tensors:
            rows = tensors[name]
            mean = rows[:-1].mean(0)
            out[name] = torch.stack([rows[theirs.index(c)] if c in theirs else mean for c in ours] + [rows[-1]])
    return out
