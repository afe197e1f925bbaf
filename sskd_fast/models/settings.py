"""Settings of a model: its kind, its parts, and the models of transformers behind it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

# The value of `backbone_checkpoint` for the weights of an installed Python package.
PACKAGE = "package"


@dataclass(frozen=True)
class FoundationConfig:
    """Models of transformers, by hub name or by a folder that `save_pretrained` wrote, and their adaptation.

    detector, masks: for kind "grounded_sam", a (MM-)Grounding DINO and a SAM 2.  sam3: for kind "sam3", a SAM 3.
    universal: for kind "universal", any query-based segmenter (Mask2Former, MaskFormer, EoMT, RF-DETR).
    results: for kind "results", or to warm-start from: one or several COCO results files.  source_key: field of the
    results with the original class, if a model with other classes made them.  source_classes: values of that field to
    use; empty = the choice with the highest AP on the labelled images.
    pretrained: False for the architecture with random weights.  detector_side: shorter side in pixels that crops are
    resized to for the detector, 0 = unchanged.  prompts: texts for the detector or SAM 3, one per class in order; empty
    = the class names.  lora_rank: rank of adapters beside frozen weights, 0 = train every weight.
    For kind "grounded_sam" only: box_jitter: in training, each side of a label's box moves at random before it
    prompts SAM 2.  It moves by up to this share of the box's width or height, since the detector's boxes are not
    exact either.  At least 0, below 0.5.
    For SAM 3 only: prompts_at_once: pairs of image and class to decode at a time, which bounds memory.  train_text:
    also train the text encoder; if frozen, it computes the prompts' features once.
    """

    detector: str = "openmmlab-community/mm_grounding_dino_large_o365v2_oiv6_goldg"
    masks: str = "facebook/sam2.1-hiera-large"
    sam3: str = "facebook/sam3"
    universal: str = "facebook/mask2former-swin-large-coco-instance"
    results: str | tuple[str, ...] = ""
    source_key: str = ""
    source_classes: tuple[str, ...] = ()
    pretrained: bool = True
    detector_side: int = 0
    prompts: tuple[str, ...] = ()
    lora_rank: int = 0
    box_jitter: float = 0.1
    prompts_at_once: int = 8
    train_text: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.box_jitter < 0.5:
            raise ValueError(f"box_jitter={self.box_jitter}: expected a share of a box's side from 0 up, below 0.5")
        if self.prompts_at_once < 1:
            raise ValueError(f"prompts_at_once={self.prompts_at_once}: expected at least 1")
        if self.source_classes and not self.source_key:
            raise ValueError(
                f"source_classes={list(self.source_classes)}: name the field of the results that has them (source_key)"
            )

    def with_absolute_paths(self) -> FoundationConfig:
        """A copy with absolute paths of results files and of models in local folders; hub names stay."""
        names = ("detector", "masks", "sam3", "universal")
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        given = {name: str(Path(value).resolve()) for name, value in given.items() if value and Path(value).is_dir()}
        files = tuple(str(Path(name).resolve()) if name else "" for name in self.results_files)
        return replace(self, results=files[0] if isinstance(self.results, str) else files, **given)

    @property
    def results_files(self) -> tuple[str, ...]:
        """The results files as a tuple."""
        return (self.results,) if isinstance(self.results, str) else self.results


@dataclass(frozen=True)
class ModelConfig:
    """The settings to build a model from.

    kind: "mask_transformer" or "dense" (this package's own), or one of `foundation`: "grounded_sam", "sam3",
    "universal", "results".
    warm_start: "results" first fits the model to the predictions in `foundation.results`, made by a teacher that cannot
    be trained itself.  The fitted model then serves as the pretrained one.
    tile: height and width of the tiles that it predicts in, 0 = `predict.tile`.
    precision: dtype of the networks' computation; parameters and losses stay in float32.  float16 is for GPUs, and
    scales the loss in training.  gradient_checkpointing: recompute activations of the backbones' layers in the backward
    pass instead of keeping them.

    For this package's own models: backbone: "conv" (channels, blocks) or "timm/NAME".  Its weights come by name
    (backbone_pretrained, needs the network), from a file, or with "package" from an installed Python package
    (backbone_checkpoint).  backbone_levels: number of levels of a timm backbone to use, finest first, 0 = all; later
    layers are left out.  backbone_frozen: number of its first levels to freeze; if above 0, the batch statistics of all
    levels are frozen too.  pixel_decoder: "fpn" or "dpt".  mask_level: level of the masks, 0 = finest.
    embedding_level: of the pixel features and the embeddings, relative to the masks' level.  Each level doubles the
    stride, and levels beyond the coarsest map are pooled from it.  mean, std: of the input; empty = the backbone's.
    layers: of the decoder.
    For the mask transformer only: queries: "peaks" of a heat map or "learned".  reach: distance in pixels within which
    seeded queries attend to one another.
    """

    kind: Literal["mask_transformer", "dense", "grounded_sam", "sam3", "universal", "results"] = "mask_transformer"
    warm_start: Literal["", "results"] = ""
    tile: tuple[int, int] = (0, 0)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    backbone: str = "conv"
    backbone_pretrained: bool = False
    backbone_checkpoint: str = ""
    backbone_levels: int = 0
    backbone_frozen: int = 0
    channels: tuple[int, ...] = (12, 24, 48)
    blocks: tuple[int, ...] = (1, 1, 1)
    pixel_decoder: Literal["fpn", "dpt"] = "fpn"
    width: int = 40
    mask_width: int = 20
    mask_level: int = 0
    layers: int = 2
    heads: int = 2
    feedforward: int = 80
    queries: Literal["peaks", "learned"] = "peaks"
    num_queries: int = 16
    reach: float = 64.0
    embedding: int = 64
    embedding_level: int = 1
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    foundation: FoundationConfig = field(default_factory=FoundationConfig)

    def __post_init__(self) -> None:
        given = 'kind="results"' if self.kind == "results" else 'warm_start="results"'
        if (self.warm_start or self.kind == "results") and not (
            self.foundation.results_files and all(self.foundation.results_files)
        ):
            raise ValueError(f"{given}: name a file of predictions (foundation.results)")
        check_tile(self.tile)
        if self.embedding_level < 0:
            raise ValueError(f"embedding_level: expected 0, the masks' level, or more, found {self.embedding_level}")

    def with_absolute_paths(self) -> ModelConfig:
        """A copy with absolute paths of weights, predictions and models."""
        foundation, checkpoint = self.foundation.with_absolute_paths(), self.backbone_checkpoint
        if checkpoint not in ("", PACKAGE):
            checkpoint = str(Path(checkpoint).resolve())
        return replace(self, foundation=foundation, backbone_checkpoint=checkpoint)

    @property
    def trainable(self) -> bool:
        """True if stages can train the model; predictions from a file cannot be trained."""
        return self.kind != "results"


def check_tile(tile: tuple[int, int]) -> None:
    """Raises ValueError for a tile with a negative side, or with one side only."""
    if min(tile) < 0 or (any(tile) and not all(tile)):
        raise ValueError(f"tile={tile}: expected two sides, or 0, 0")
