"""Construction of a model of any kind from settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sskd_fast.models.dense import DenseSegmenter
from sskd_fast.models.grounded_sam import GroundedSam
from sskd_fast.models.mask_transformer import MaskTransformer
from sskd_fast.models.sam3 import Sam3
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.models.settings import ModelConfig
from sskd_fast.models.universal import UniversalSegmenter

# This package's own models.
OWN: dict[str, type[MaskTransformer] | type[DenseSegmenter]] = {
    "mask_transformer": MaskTransformer,
    "dense": DenseSegmenter,
}
# Models of transformers.
FOUNDATION: dict[str, type[GroundedSam] | type[Sam3] | type[UniversalSegmenter]] = {
    "grounded_sam": GroundedSam,
    "sam3": Sam3,
    "universal": UniversalSegmenter,
}


def build_segmenter(
    config: ModelConfig,
    class_names: Sequence[str],
    *,
    weights: bool = True,
    architecture: Mapping[str, Any] | None = None,
) -> Segmenter:
    """The configured model for these classes.

    weights: True to read the pretrained weights named in the configuration; False if others are loaded next.
    architecture: from `Segmenter.architecture`, instead of the files and names of foundation models.
    Raises FoundationError if a foundation model cannot be loaded.
    """
    if config.kind in OWN:
        if not weights:
            config = dataclasses.replace(config, backbone_pretrained=False, backbone_checkpoint="")
        return OWN[config.kind](config, len(class_names))
    if config.kind == "results":
        from sskd_fast.models.results_file import (
            ResultsFile,  # reads masks with pycocotools, which no other model needs
        )

        return ResultsFile(config)
    return FOUNDATION[config.kind](config, class_names, weights=weights, architecture=architecture)
