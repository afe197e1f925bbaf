"""The interface of models: predictions, and the few methods that training and inference call.

Shape letters: B images, H x W pixels, K queries, C classes, F feature channels, D embedding width, h x w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sskd_fast.models.class_scores import independent_scores
from sskd_fast.models.dense_maps import DenseMaps
from sskd_fast.models.settings import ModelConfig

# Statistics that nearly all published models were trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The names of an image in predictions made elsewhere: its id, None if it has none of its own, and its file name.
ImageName = tuple[int | None, str]

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
    boxes: (B, K, 4) after each of the auxiliary layers and the last, empty for a model without boxes.  They are centre
    x, y, width, height as shares of the image.
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

    def results_of(self, image_id: int | None, file_name: str) -> list[dict[str, Any]] | None:
        """Results that the model has without reading the image, without its id; None if it must read the image."""
        return None

    def check_images(self, images: Iterable[ImageName]) -> None:
        """Raises FoundationError if the model cannot tell a run's images apart."""

    def covers(self, images: Iterable[ImageName]) -> bool:
        """True if the model can predict on any of the images."""
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
