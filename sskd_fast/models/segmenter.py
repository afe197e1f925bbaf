"""The interface of models: settings, predictions, and the few methods that training and inference call.

Shape letters: B images, H x W pixels, K queries, C classes, F feature channels, D embedding width, h x w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sskd_fast.models.class_scores import independent_scores
from sskd_fast.models.dense_maps import DenseMaps

# Statistics that nearly all published models were trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    For kind "grounded_sam" only: box_jitter: in training, each side of a label's box moves at random by up to this
    share of the box's width or height before it prompts SAM 2, since the detector's boxes are not exact either; at
    least 0, below 0.5.
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
    be trained itself; the fitted model then serves as the pretrained one.
    tile: height and width of the tiles that it predicts in, 0 = `predict.tile`.
    precision: dtype of the networks' computation; parameters and losses stay in float32.  float16 is for GPUs, and
    scales the loss in training.  gradient_checkpointing: recompute activations of the backbones' layers in the backward
    pass instead of keeping them.

    For this package's own models: backbone: "conv" (channels, blocks) or "timm/NAME", with weights by name
    (backbone_pretrained, needs the network), from a file, or with "package" from an installed Python package
    (backbone_checkpoint).  backbone_levels: number of levels of a timm backbone to use, finest first, 0 = all; later
    layers are left out.  backbone_frozen: number of its first levels to freeze; if above 0, the batch statistics of all
    levels are frozen too.  pixel_decoder: "fpn" or "dpt".  mask_level: level of the masks, 0 = finest.
    embedding_level: of the pixel features and the embeddings, relative to the masks' level; each level doubles the
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
        if self.warm_start and not all(self.foundation.results_files):
            raise ValueError('warm_start="results": name a file of predictions (foundation.results)')
        check_tile(self.tile)
        if self.embedding_level < 0:
            raise ValueError(f"embedding_level: expected 0, the masks' level, or more, found {self.embedding_level}")

    @property
    def trainable(self) -> bool:
        """True if stages can train the model; predictions from a file cannot be trained."""
        return self.kind != "results"


def check_tile(tile: tuple[int, int]) -> None:
    """Raises ValueError for a tile with a negative side, or with one side only."""
    if min(tile) < 0 or (any(tile) and not all(tile)):
        raise ValueError(f"tile={tile}: expected two sides, or 0, 0")


# (name, sum over a part of the joint batch) -> the sum over the joint batch.
JointTotal = Callable[[str, Tensor], Tensor]


def own_total(name: str, own: Tensor) -> Tensor:
    """The sum over a joint batch that has a single part."""
    return own


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32 if its dtype is narrower."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass
class Answers:
    """The answers of a promptable model for given instances: mask_logits (B, G, h, w), one for each requested box.

    terms: its own weighted losses against the same boxes and labels, by name, instead of a class loss.
    found (B, G) bool: instances that it has an answer for; None = all.
    """

    mask_logits: Tensor
    terms: dict[str, Tensor]
    found: Tensor | None = None


@dataclass
class Predictions:
    """mask_logits (B, K, h, w), class_logits (B, K, C+1) with no-object last, pixel_features (B, F, h', w').

    auxiliary: (mask logits, class logits) of the earlier decoder layers.  heat: (B, h, w) centre logits or None.
    dense: the predictions of every cell of a pyramid, for models whose queries are its best cells; else None.
    mask_features: (B, P, h, w), whose products with the queries are the mask logits; None if the model has none.
    boxes: (B, K, 4) after each of the auxiliary layers and the last: centre x, y, width, height as shares of the image;
    empty for a model without boxes.
    promptable: True if losses call `answer` instead of matching queries to instances.
    """

    promptable: ClassVar[bool] = False
    mask_logits: Tensor
    class_logits: Tensor
    pixel_features: Tensor
    auxiliary: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    heat: Tensor | None = None
    dense: DenseMaps | None = None
    mask_features: Tensor | None = None
    boxes: list[Tensor] = field(default_factory=list)

    def part(self, rows: slice) -> Predictions:
        """The predictions of some images of the batch."""
        return self._map(lambda tensor: tensor[rows])

    def float(self) -> Predictions:
        """The predictions in float32 or wider."""
        return self._map(at_least_float32)

    def answer(
        self,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        weights: Sequence[Tensor] | None = None,
        valid: Tensor | None = None,
        masked: Sequence[Tensor] | None = None,
        total: JointTotal = own_total,
    ) -> Answers:
        """The model's masks and own losses for given boxes and labels.

        boxes: an image's (n, 4), x0 y0 x1 y1 as shares of the image; labels: its (n,).

        weights: of the instances (n,), None = 1 each.  valid (B, H, W) bool: pixels that count, None = all.  masked:
        indices (G,) of an image's instances that get masks, None = all; the losses use all instances.
        total: gives sums over the joint batch, by which the losses divide.
        """
        raise NotImplementedError

    def _map(self, change: Any) -> Predictions:
        return replace(
            self,
            mask_logits=change(self.mask_logits),
            class_logits=change(self.class_logits),
            pixel_features=change(self.pixel_features),
            auxiliary=[(change(m), change(c)) for m, c in self.auxiliary],
            heat=None if self.heat is None else change(self.heat),
            dense=None if self.dense is None else self.dense.map(change),
            mask_features=None if self.mask_features is None else change(self.mask_features),
            boxes=[change(boxes) for boxes in self.boxes],
        )


class Segmenter(nn.Module):
    """The base of models that the stages train and apply, teachers and students.

    `encode` reads images, `decode` predicts from its output, and `embed` maps that output to the embeddings of the
    contrastive loss.  So the second view costs neither queries nor masks.

    config: the settings that it was built from.  input_size: height and width that it resizes crops to, None = as they
    are.  stride: side of a mask cell in pixels of its input.  max_stride: sides of images must be multiples of it.
    backbone_parts: prefixes of pretrained parameters, which learn slowly.  reusable_parts: prefixes of the foundation
    weights that a student keeps.  class_tensors: tensors with one row per class, and possibly one for no-object.
    independent_classes: True if class scores are independent of one another; the class logits are then those of
    `with_no_object`.
    """

    config: ModelConfig
    stride: float
    input_size: tuple[int, int] | None = None
    max_stride: int = 1
    backbone_parts: tuple[str, ...] = ("backbone.",)
    reusable_parts: tuple[str, ...] = ("backbone.", "pixel_decoder.")
    class_tensors: tuple[str, ...] = ()
    independent_classes: bool = False

    def encode(self, images: Tensor) -> Any:
        """The input of `decode` and `embed` from images (B, 3, H, W) in [0, 1]."""
        raise NotImplementedError

    def decode(self, encoded: Any) -> Predictions:
        """Predictions in float32 from the output of `encode`."""
        raise NotImplementedError

    def embed(self, encoded: Any) -> Tensor:
        """Embeddings (B, D, h', w') in float32, not normalised, from the output of `encode`."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Predictions:
        """images (B, 3, H, W) in [0, 1] -> Predictions."""
        return self.decode(self.encode(images))

    def cell_size(self, crop: Sequence[int]) -> tuple[float, float]:
        """Height and width of a cell of the masks in pixels of a crop with this height and width."""
        height, width = (side / own for side, own in zip(crop, self.input_size or crop, strict=True))
        return self.stride * height, self.stride * width

    def class_probs(self, predictions: Predictions) -> Tensor:
        """The probability of each class (B, K, C), which scores predictions."""
        if self.independent_classes:
            return independent_scores(predictions.class_logits)
        return predictions.class_logits.softmax(-1)[..., :-1]

    def results_of(self, image_id: int, file_name: str) -> list[dict[str, Any]] | None:
        """COCO results that the model has without reading the image; None if it must read it."""
        return None

    def check_images(self, images: Iterable[tuple[int, str]]) -> None:
        """Raises FoundationError if the model cannot tell a run's images, given as (id, file name), apart."""

    def covers(self, images: Iterable[tuple[int, str]]) -> bool:
        """True if the model can predict on any of the images, given as (id, file name)."""
        return True

    def architecture(self) -> dict[str, Any]:
        """Plain data that lets `build_segmenter` build the model from the settings without other files."""
        return {}

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that the networks compute in."""
        device = autocast_device(next(self.parameters()).device)
        precision: torch.dtype = getattr(torch, self.config.precision)
        return torch.autocast(
            device, torch.bfloat16 if precision == torch.float32 else precision, enabled=precision != torch.float32
        )

    def parameter_count(self) -> int:
        """Number of parameters that inference uses, so without the projection of the contrastive loss."""
        return sum(p.numel() for n, p in self.named_parameters() if not n.startswith("projection."))


def autocast_device(device: torch.device) -> str:
    """Autocast's name for a device; it has none for the meta device, which only computes shapes."""
    return "cpu" if device.type == "meta" else device.type
