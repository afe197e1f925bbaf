"""The composite teacher: a detector finds boxes and classes from class names, SAM 2 draws a mask in every box.

Shape letters: B images, K boxes kept, G given boxes, C classes, S side of SAM 2's input, h x w cells of its masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sskd_fast.models import pretrained
from sskd_fast.models.detector import Detections, Detector, Prompt, build_prompts
from sskd_fast.models.pixel_decoder import Projection
from sskd_fast.models.segmenter import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Answers,
    JointTotal,
    Predictions,
    Segmenter,
    at_least_float32,
    own_total,
)
from sskd_fast.models.settings import ModelConfig

# Boxes of an image per call of the mask decoder, which repeats the image's features for each of them.
_BOXES_AT_ONCE = 32
# The same if activations are recomputed for the backward pass.
_BOXES_COMPUTED_AGAIN = 8


@dataclass
class Encoded:
    """images: (B, 3, H, W), normalised.  maps: SAM 2's features, finest first, the last (B, F, S/16, S/16)."""

    images: Tensor
    maps: list[Tensor]


@dataclass
class GroundedPredictions(Predictions):
    """Predictions that can give the masks of given boxes, from `model`, `maps` and `detections`."""

    promptable: ClassVar[bool] = True
    model: GroundedSam | None = None
    maps: tuple[Tensor, ...] = ()
    detections: Detections | None = None

    def part(self, rows: slice) -> Predictions:
        """The predictions of some images of the batch."""
        assert self.detections is not None
        return GroundedPredictions(
            self.mask_logits[rows],
            self.class_logits[rows],
            self.pixel_features[rows],
            model=self.model,
            maps=tuple(m[rows] for m in self.maps),
            detections=self.detections.part(rows),
        )

    def answer(
        self,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        weights: Sequence[Tensor] | None = None,
        valid: Tensor | None = None,
        masked: Sequence[Tensor] | None = None,
        total: JointTotal = own_total,
    ) -> Answers:
        """SAM 2's masks in the requested boxes, and the detector's own loss against boxes and labels.

        That loss ignores weights and `valid`.

        In training, the boxes that prompt SAM 2 are jittered; the detector learns from the boxes themselves.
        """
        assert self.model is not None and self.detections is not None
        asked = boxes if masked is None else [b[index] for b, index in zip(boxes, masked, strict=True)]
        count = max(1, *(len(b) for b in asked))
        padded = torch.stack([F.pad(b, (0, 0, 0, count - len(b))) for b in asked])
        if self.model.training:
            padded = jittered(padded, self.model.config.foundation.box_jitter)
        masks = self.model.masks_in(self.maps, padded)
        return Answers(masks, {"detector": self.model.detector.loss(self.detections, boxes, labels, total)})


class GroundedSam(Segmenter):
    """(MM-)Grounding DINO and SAM 2 as one model, both trainable.

    The detector learns from its own loss.  SAM 2's encoder and mask decoder learn from masks in the labels' boxes, and
    the encoder also from the contrastive loss on its coarsest features.
    Crops are resized to SAM 2's training square: masks have (S/4, S/4) cells for any shape of the crop.
    """

    backbone_parts = ("detector.model.model.backbone.", "detector.model.model.text_backbone.", "sam.vision_encoder.")
    reusable_parts = ()
    independent_classes = True
    mean: Tensor
    std: Tensor
    stride = 4.0
    input_size: tuple[int, int]

    def __init__(
        self,
        config: ModelConfig,
        class_names: Sequence[str],
        *,
        weights: bool = True,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        foundation = config.foundation
        texts = pretrained.prompt_texts(foundation, class_names)
        weights = weights and foundation.pretrained
        detector = pretrained.load(
            "AutoModelForZeroShotObjectDetection",
            foundation.detector,
            "foundation.detector",
            weights=weights,
            architectures=architecture,
        )
        self.sam: Any = pretrained.load(
            "Sam2Model", foundation.masks, "foundation.masks", weights=weights, architectures=architecture
        )
        if architecture:
            prompts = [Prompt.of_lists(written) for written in architecture["foundation.prompts"]]
        else:
            tokenizer = pretrained.load_tokenizer(foundation.detector, "foundation.detector", weights=weights)
            prompts = build_prompts(texts, tokenizer, int(detector.config.max_text_len))
        for model, setting in ((detector, "foundation.detector"), (self.sam, "foundation.masks")):
            pretrained.adapt(model, config, setting)
        self.detector = Detector(detector, prompts, foundation.detector_side)
        self.projection = Projection(self.sam.hidden_dim, 128, config.embedding)
        side: int = self.sam.prompt_encoder.input_image_size
        self.input_size = (side, side)
        self.register_buffer("mean", torch.tensor(config.mean or IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std or IMAGENET_STD).view(3, 1, 1), persistent=False)

    def architecture(self) -> dict[str, Any]:
        """The configurations of detector and SAM 2, and the prompts as tokens."""
        return {
            "foundation.detector": pretrained.architecture(self.detector.model),
            "foundation.masks": pretrained.architecture(self.sam),
            "foundation.prompts": [prompt.to_lists() for prompt in self.detector.prompts],
        }

    def encode(self, images: Tensor) -> Encoded:
        """SAM 2's features of images (B, 3, H, W) in [0, 1]; the detector runs in `decode`."""
        images = (images - self.mean) / self.std
        square = F.interpolate(images, size=self.input_size, mode="bilinear", antialias=True)
        with self.autocast():
            flat = self.sam.get_image_features(square, return_dict=True).fpn_hidden_states
            flat = [*flat[:-1], flat[-1] + self.sam.no_memory_embedding]
        sizes = self.sam.backbone_feature_sizes
        maps = [m.permute(1, 2, 0).unflatten(2, tuple(size)) for m, size in zip(flat, sizes, strict=True)]
        return Encoded(images, [at_least_float32(m) for m in maps])

    def embed(self, encoded: Encoded) -> Tensor:
        """Embeddings (B, D, S/16, S/16) of SAM 2's coarsest features."""
        with self.autocast():
            embeddings: Tensor = self.projection(encoded.maps[-1])
        return at_least_float32(embeddings)

    def decode(self, encoded: Encoded) -> Predictions:
        """The `num_queries` best boxes and their masks, without gradient: training prompts with the labels' boxes."""
        with self.autocast():
            detections = self.detector(encoded.images)
        best = detections.best(self.config.num_queries)
        centre, half = best.boxes[..., :2], best.boxes[..., 2:] / 2
        corners = torch.cat([centre - half, centre + half], -1).clamp(0, 1)
        with torch.no_grad():
            masks = self.masks_in(encoded.maps, corners)
        return GroundedPredictions(
            masks, best.class_logits, encoded.maps[-1], model=self, maps=tuple(encoded.maps), detections=detections
        )

    def masks_in(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Mask logits (B, G, h, w) from SAM 2's features and boxes (B, G, 4), x0 y0 x1 y1 as shares of the image.

        In training, `gradient_checkpointing` recomputes the masks of a few boxes at a time.
        """
        again = self.config.gradient_checkpointing and self.training and torch.is_grad_enabled()
        parts = (boxes * self.input_size[0]).split(_BOXES_COMPUTED_AGAIN if again else _BOXES_AT_ONCE, dim=1)
        if again:
            return torch.cat([checkpoint(self._masks_in, part, *maps, use_reentrant=False) for part in parts], 1)
        return torch.cat([self._masks_in(part, *maps) for part in parts], 1)

    def _masks_in(self, boxes: Tensor, *maps: Tensor) -> Tensor:
        with self.autocast():
            out = self.sam(image_embeddings=list(maps), input_boxes=boxes, multimask_output=False)
        return at_least_float32(out.pred_masks.squeeze(2))


def jittered(boxes: Tensor, share: float) -> Tensor:
    """Boxes (..., 4), x0 y0 x1 y1 as shares of the image, with each side moved at random. A side moves uniformly by up
    to `share` of the box's width or height, and stays within the image.

    Drawn by the CPU's default generator, which is part of a training's saved state.
    """
    if not share:
        return boxes
    extent = torch.cat([boxes[..., 2:] - boxes[..., :2]] * 2, -1)
    moved = torch.rand(boxes.shape, device="cpu").mul_(2).sub_(1).to(boxes)
    return (boxes + share * extent * moved).clamp(0, 1)
