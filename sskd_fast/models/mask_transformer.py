"""The mask transformer: backbone, pixel decoder, queries, masked-attention decoder, projection; teacher and student
alike.

Shape letters: B images, H x W pixels, K queries, C classes, F feature channels, h x w cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sskd_fast.models.backbones import ConvBackbone, TimmBackbone
from sskd_fast.models.decoder import MaskDecoder
from sskd_fast.models.pixel_decoder import PixelDecoder, Projection, ReassembledPixelDecoder
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.models.queries import LearnedQueries, PeakQueries
from sskd_fast.models.segmenter import ModelConfig, Predictions, Segmenter


class MaskTransformer(Segmenter):
    """Backbone + pixel decoder + mask decoder. `forward` gives Predictions; `encode` stops at the pixel features."""

    mean: Tensor
    std: Tensor
    class_tensors = ("decoder.head.classes.weight", "decoder.head.classes.bias")

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        self.backbone = _backbone(config)
        strides = self.backbone.strides
        if config.pixel_decoder == "dpt":
            self.pixel_decoder: PixelDecoder | ReassembledPixelDecoder = ReassembledPixelDecoder(
                self.backbone.channels, strides, config.width, config.mask_level
            )
            strides = self.pixel_decoder.strides
        else:
            self.pixel_decoder = PixelDecoder(self.backbone.channels, config.width, config.mask_level)
        self.stride, self.max_stride = strides[config.mask_level], self.backbone.multiple
        seeded = config.queries == "peaks"
        self.queries = (PeakQueries if seeded else LearnedQueries)(config.num_queries, config.width)
        self.decoder = MaskDecoder(
            config.width, config.mask_width, classes,
            layers=config.layers, heads=config.heads, feedforward=config.feedforward,
            levels=len(strides), seeded=seeded, learned_queries=config.num_queries,
            reach=config.reach / self.stride,
        )  # fmt: skip
        self.projection = Projection(config.width, 128, config.embedding)
        for name in ("mean", "std"):
            value = torch.tensor(getattr(config, name) or getattr(self.backbone, name)).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def encode(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) in [0, 1], H and W multiples of `max_stride` -> decoder maps from the mask level on."""
        h, w = images.shape[-2:]
        if h % self.max_stride or w % self.max_stride:
            raise ValueError(f"images: found {h} x {w} pixels, expected multiples of {self.max_stride}: pad them")
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with self.autocast():
            levels: list[Tensor] = self.pixel_decoder(self.backbone(x))
        return levels

    def embed(self, levels: list[Tensor]) -> Tensor:
        """Decoder maps of `encode` -> embeddings (B, D, h', w') on the map of `embedding_level`."""
        with self.autocast():
            embeddings: Tensor = self.projection(self._embedded(levels))
        return embeddings.float()

    def decode(self, levels: list[Tensor]) -> Predictions:
        """Decoder maps of `encode` -> Predictions."""
        finest, memory = levels[0], levels[1:] or levels
        with self.autocast():
            queries = self.queries(finest)
            features = self.decoder.mask_features(finest)
            *auxiliary, (masks, classes) = self.decoder(queries, features, memory)
        return Predictions(masks, classes, self._embedded(levels), auxiliary, queries.heat, features).float()

    def _embedded(self, levels: list[Tensor]) -> Tensor:
        """The map that the embeddings live on."""
        return levels[min(self.config.embedding_level, len(levels) - 1)]


def _backbone(config: ModelConfig) -> ConvBackbone | TimmBackbone:
    if config.backbone == "conv":
        return ConvBackbone(config.channels, config.blocks)
    if config.backbone.startswith("timm/"):
        return TimmBackbone(
            config.backbone[5:], pretrained=config.backbone_pretrained, checkpoint=config.backbone_checkpoint,
            gradient_checkpointing=config.gradient_checkpointing,
        )  # fmt: skip
    raise FoundationError(f"model.backbone: found {config.backbone!r}, expected 'conv' or 'timm/NAME'")
