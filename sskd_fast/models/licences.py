"""Licences of the models that a model is based on. They bind anyone who redistributes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from sskd_fast.models.settings import ModelConfig

_HUB = "https://huggingface.co/"
_UNKNOWN = "unknown, see its model card"
# Name on the hub -> licence stated on the model's page, and True if the hub requires its acceptance.
_LICENCES = {
    "facebook/sam3*": ("SAM License", True),
    "facebook/sam2.1*": ("Apache-2.0", False),
    "openmmlab-community/mm_grounding_dino*": ("Apache-2.0", False),
}


@dataclass(frozen=True)
class Ancestor:
    """A model, or a file of predictions, that another model is based on.

    gated: True if downloading its weights requires acceptance of the licence.  part: "weights" that the other model
    started from, or "labels" that it learned from.
    """

    name: str
    licence: str
    source: str
    gated: bool = False
    part: Literal["weights", "labels"] = "weights"

    @property
    def title(self) -> str:
        """The ancestor and its part, for readers."""
        return f"labels made by {self.name}" if self.part == "labels" else f"weights of {self.name}"


def licence_of(name: str) -> Ancestor:
    """The licence of a model, as far as known, by its name on the hub or its folder."""
    if Path(name).is_dir():
        return Ancestor(name, _UNKNOWN, name)
    for pattern, (licence, gated) in _LICENCES.items():
        if fnmatch(name, pattern):
            return Ancestor(name, licence, _HUB + name, gated)
    return Ancestor(name, _UNKNOWN, _HUB + name)


def ancestors_of(config: ModelConfig) -> tuple[Ancestor, ...]:
    """The pretrained models and predictions that a model with these settings starts from."""
    foundation, found = config.foundation, []
    names = {
        "grounded_sam": (foundation.detector, foundation.masks),
        "sam3": (foundation.sam3,),
        "universal": (foundation.universal,),
    }.get(config.kind, ())
    if foundation.pretrained:
        found += [licence_of(name) for name in names]
    if config.backbone.startswith("timm/") and config.backbone_pretrained and not (names or config.backbone_checkpoint):
        found.append(_of_timm(config.backbone))
    if "results" in (config.kind, config.warm_start):
        found += [Ancestor(n, "unknown, see who made it", n, part="labels") for n in foundation.results_files]
    return tuple(found)


def _of_timm(name: str) -> Ancestor:
    """A backbone, with the licence that timm states for its weights."""
    import timm

    known = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    page = known.hf_hub_id if known and known.hf_hub_id else ""
    return Ancestor(name, (known and known.license) or _UNKNOWN, _HUB + page if page else name)


def as_labels(ancestors: Iterable[Ancestor]) -> tuple[Ancestor, ...]:
    """The ancestors of a teacher as those of a student that learned from its labels."""
    return tuple(dataclasses.replace(ancestor, part="labels") for ancestor in ancestors)


def distinct(ancestors: Iterable[Ancestor]) -> tuple[Ancestor, ...]:
    """The ancestors, each once, in their order."""
    return tuple(dict.fromkeys(ancestors))
