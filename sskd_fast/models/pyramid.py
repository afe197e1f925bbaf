"""A backbone with a pixel decoder: the base of this package's models, which differ in how they read instances.

Shape letters: B images, H x W pixels, D embedding width, F feature channels, h x w cells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sskd_fast.models.backbones import ConvBackbone
from sskd_fast.models.padding import Content
from sskd_fast.models.pixel_decoder import PixelDecoder, Projection, ReassembledPixelDecoder
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.models.segmenter import Predictions, Segmenter, at_least_float32
from sskd_fast.models.settings import ModelConfig
from sskd_fast.models.timm_backbone import TimmBackbone


class PyramidSegmenter(Segmenter):
    """Backbone + pixel decoder + projection; subclasses define `decode`, with queries from cells of the content only.

    strides: of the decoder's maps, finest first, including maps finer than the mask level.  Raises FoundationError if
    the backbone lacks the mask level.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = _backbone(config)
        self.strides = self.backbone.strides
        if config.pixel_decoder == "dpt":
            self.pixel_decoder: PixelDecoder | ReassembledPixelDecoder = ReassembledPixelDecoder(
                self.backbone.channels, self.strides, config.width, config.mask_level
            )
            self.strides = self.pixel_decoder.strides
        else:
            self.pixel_decoder = PixelDecoder(self.backbone.channels, config.width, config.mask_level)
        if config.mask_level >= len(self.strides):
            raise FoundationError(
                f"model.mask_level: found {config.mask_level} with {len(self.strides)} levels of the backbone, "
                f"expected at most {len(self.strides) - 1}; raise backbone_levels or lower mask_level"
            )
        self.stride, self.max_stride = self.strides[config.mask_level], self.backbone.multiple
        self.projection = Projection(config.width, 128, config.embedding)
        for name in ("mean", "std"):
            value = torch.tensor(getattr(config, name) or getattr(self.backbone, name)).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Predictions:
        """images (B, 3, H, W) in [0, 1] -> Predictions.  Zeros at the lower right count as padding."""
        return self.decode(self.encode(images), Content.of(images))

    def decode(self, encoded: list[Tensor], content: Content | None = None) -> Predictions:
        """Decoder maps of `encode` -> Predictions.  content: of the images, None = all of them."""
        raise NotImplementedError

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
            embeddings: Tensor = self.projection(self.embedded(levels))
        return at_least_float32(embeddings)

    def embedded(self, levels: list[Tensor]) -> Tensor:
        """The decoder map (B, F, h', w') of the embeddings; for a level beyond the coarsest, that map is pooled."""
        level, coarsest = self.config.embedding_level, len(levels) - 1
        return F.avg_pool2d(levels[-1], 2 ** (level - coarsest)) if level > coarsest else levels[level]


def _backbone(config: ModelConfig) -> ConvBackbone | TimmBackbone:
    if config.backbone == "conv" and (config.backbone_levels or config.backbone_frozen):
        raise FoundationError("model.backbone_levels, backbone_frozen: go with a backbone of timm, found 'conv'")
    if config.backbone == "conv":
        return ConvBackbone(config.channels, config.blocks)
    if config.backbone.startswith("timm/"):
        return TimmBackbone(
            config.backbone[5:],
            pretrained=config.backbone_pretrained,
            checkpoint=config.backbone_checkpoint,
            gradient_checkpointing=config.gradient_checkpointing,
            levels=config.backbone_levels,
            frozen=config.backbone_frozen,
        )
    raise FoundationError(f"model.backbone: found {config.backbone!r}, expected 'conv' or 'timm/NAME'")
