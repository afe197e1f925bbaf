"""The mask transformer: backbone, pixel decoder, queries, masked-attention decoder, projection; teacher and student
alike.

Shape letters: B images, H x W pixels, K queries, C classes, F feature channels, h x w cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from sskd_fast.models.backbones import ConvBackbone, TimmBackbone
from sskd_fast.models.decoder import MaskDecoder
from sskd_fast.models.pixel_decoder import PixelDecoder, Projection
from sskd_fast.models.queries import LearnedQueries, PeakQueries


@dataclass(frozen=True)
class ModelConfig:
    """How a mask transformer is built.

    backbone: "conv" (channels, blocks) or "timm/NAME", with weights by name (backbone_pretrained, needs the network) or
    from a file (backbone_checkpoint).  queries: "peaks" of a heat map or "learned".  mask_level:
    backbone level (0 = finest) of the masks and of the pixel features.  reach: how far, in pixels, seeded queries
    attend to one another.
    """

    backbone: str = "conv"
    backbone_pretrained: bool = False
    backbone_checkpoint: str = ""
    channels: tuple[int, ...] = (12, 24, 48)
    blocks: tuple[int, ...] = (1, 1, 1)
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
    mean: tuple[float, ...] = field(default=(0.45, 0.45, 0.45))
    std: tuple[float, ...] = field(default=(0.25, 0.25, 0.25))


@dataclass
class Predictions:
    """mask_logits (B, K, h, w), class_logits (B, K, C+1) with no-object last, pixel_features (B, F, h', w').

    auxiliary: (mask logits, class logits) of the earlier decoder layers.  heat: (B, h, w) centre logits or None.
    """

    mask_logits: Tensor
    class_logits: Tensor
    pixel_features: Tensor
    auxiliary: list[tuple[Tensor, Tensor]]
    heat: Tensor | None

    def part(self, rows: slice) -> Predictions:
        """The predictions of some images of the batch."""
        return Predictions(
            self.mask_logits[rows],
            self.class_logits[rows],
            self.pixel_features[rows],
            [(m[rows], c[rows]) for m, c in self.auxiliary],
            None if self.heat is None else self.heat[rows],
        )


class MaskTransformer(nn.Module):
    """Backbone + pixel decoder + mask decoder. `forward` gives Predictions; `encode` stops at the pixel features."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        if config.backbone == "conv":
            self.backbone: nn.Module = ConvBackbone(config.channels, config.blocks)
        elif config.backbone.startswith("timm/"):
            self.backbone = TimmBackbone(
                config.backbone[5:], pretrained=config.backbone_pretrained, checkpoint=config.backbone_checkpoint
            )
        else:
            raise ValueError(f"model.backbone: found {config.backbone!r}, expected 'conv' or 'timm/NAME'")
        strides: list[int] = self.backbone.strides
        self.stride, self.max_stride = strides[config.mask_level], strides[-1]
        self.pixel_decoder = PixelDecoder(self.backbone.channels, config.width, config.mask_level)
        seeded = config.queries == "peaks"
        self.queries = (PeakQueries if seeded else LearnedQueries)(config.num_queries, config.width)
        self.decoder = MaskDecoder(
            config.width, config.mask_width, classes,
            layers=config.layers, heads=config.heads, feedforward=config.feedforward,
            levels=len(strides), seeded=seeded, learned_queries=config.num_queries,
            reach=config.reach / self.stride,
        )  # fmt: skip
        self.projection = Projection(config.width, 128, config.embedding)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def encode(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) in [0, 1], H and W multiples of `max_stride` -> decoder maps from the mask level on."""
        h, w = images.shape[-2:]
        if h % self.max_stride or w % self.max_stride:
            raise ValueError(f"images: found {h} x {w} pixels, expected multiples of {self.max_stride}: pad them")
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        levels: list[Tensor] = self.pixel_decoder(self.backbone(x))
        return levels

    def embed(self, levels: list[Tensor]) -> Tensor:
        """Decoder maps of `encode` -> embeddings (B, D, h', w') on the map one level above the masks."""
        embeddings: Tensor = self.projection(embedding_level(levels))
        return embeddings

    def forward(self, images: Tensor) -> Predictions:
        """images (B, 3, H, W) in [0, 1] -> Predictions."""
        return self.decode(self.encode(images))

    def decode(self, levels: list[Tensor]) -> Predictions:
        """Decoder maps of `encode` -> Predictions."""
        finest, memory = levels[0], levels[1:] or levels
        queries = self.queries(finest)
        *auxiliary, (masks, classes) = self.decoder(queries, finest, memory)
        return Predictions(masks, classes, embedding_level(levels), auxiliary, queries.heat)

    def parameter_count(self) -> int:
        """Trainable parameters that inference uses (it does without the projection of the contrastive loss)."""
        return sum(p.numel() for n, p in self.named_parameters() if not n.startswith("projection."))


def embedding_level(levels: list[Tensor]) -> Tensor:
    """The map that the embeddings live on: one level coarser than the masks where there is one."""
    return levels[min(1, len(levels) - 1)]
