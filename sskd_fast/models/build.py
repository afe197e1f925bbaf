"""From settings to a model, whatever it is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sskd_fast.models.dense import DenseSegmenter
from sskd_fast.models.grounded_sam import GroundedSam
from sskd_fast.models.mask_transformer import MaskTransformer
from sskd_fast.models.segmenter import ModelConfig, Segmenter
from sskd_fast.models.universal import UniversalSegmenter

# This package's own models.
OWN: dict[str, type[MaskTransformer] | type[DenseSegmenter]] = {
    "mask_transformer": MaskTransformer,
    "dense": DenseSegmenter,
}


def build_segmenter(
    config: ModelConfig,
    class_names: Sequence[str],
    *,
    weights: bool = True,
    architecture: Mapping[str, Any] | None = None,
) -> Segmenter:
    """The configured model for these classes.

    weights: whether to read the pretrained weights that the configuration names; False where others are loaded next.
    architecture: what `Segmenter.architecture` gave, in place of the files and names of foundation models.
    Raises FoundationError where a foundation model cannot be had.
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
    kind = GroundedSam if config.kind == "grounded_sam" else UniversalSegmenter
    return kind(config, class_names, weights=weights, architecture=architecture)
