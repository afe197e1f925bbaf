"""Backbones: image -> feature maps of rising stride. Small convolutional ones for the embedded preset, timm's by name.

Shape letters: B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskd_fast.models.pretrained import FoundationError


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in groups of at least four channels, at most eight groups."""
    groups = next(g for g in (8, 5, 4, 2, 1) if (channels % g == 0 and channels // g >= 4) or g == 1)
    return nn.GroupNorm(groups, channels)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with group normalisation around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = norm(outputs)
        nn.init.zeros_(self.norm2.weight)
        self.stride = stride
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        # Strided here and not in the convolution: oneDNN's gradient of a strided 1 x 1 convolution of few channels
        # writes out of bounds on some processors (torch 2.14.1, two threads, 8 to 12 channels).
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x[..., :: self.stride, :: self.stride]))


class ConvBackbone(nn.Module):
    """A residual network: level i has stride 2^(i+1), `channels[i]` channels and `blocks[i]` blocks."""

    def __init__(self, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)
        self.strides = [float(2 ** (i + 1)) for i in range(len(channels))]
        self.multiple = 2 ** len(channels)
        self.mean, self.std = (0.45,) * 3, (0.25,) * 3
        self.stem = nn.Sequential(nn.Conv2d(3, channels[0], 3, 2, 1, bias=False), norm(channels[0]), nn.ReLU())
        self.levels = nn.ModuleList()
        inputs = channels[0]
        for i, (width, depth) in enumerate(zip(channels, blocks, strict=True)):
            strides = [2 if i > 0 else 1] + [1] * (depth - 1)
            level = [ResidualBlock(inputs if j == 0 else width, width, s) for j, s in enumerate(strides)]
            self.levels.append(nn.Sequential(*level))
            inputs = width

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> maps (B, channels[i], H / strides[i], W / strides[i])."""
        x = self.stem(images)
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps


class TimmBackbone(nn.Module):
    """A timm model as feature maps; weights by name when online, or from a local file of timm's or the authors' layout.

    Networks with stages give a map a stage.  Plain vision transformers give four maps of one stride, normalised, from
    evenly spaced layers; they see the image resized to whole patches, so that it may have any size.
    """

    def __init__(
        self, name: str, *, pretrained: bool = False, checkpoint: str = "", gradient_checkpointing: bool = False
    ) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                f"model.backbone: 'timm/{name}' needs the timm package: pip install 'sskd_fast[models]'"
            ) from error
        if checkpoint and not Path(checkpoint).is_file():
            raise FileNotFoundError(f"model.backbone_checkpoint: {checkpoint} does not exist; give a file of weights")
        weights: dict[str, Any] = {"pretrained": pretrained or bool(checkpoint)}
        if checkpoint:
            weights["pretrained_cfg_overlay"] = {"file": checkpoint}
        create = _explained(timm.create_model, name)
        with torch.device("meta"):
            probe = create(features_only=True).feature_info
        plain = len(probe.reduction()) > 1 and len(set(probe.reduction())) == 1
        self.channels: list[int] = list(probe.channels())
        self.strides: list[float] = [float(s) for s in probe.reduction()]
        if plain:
            self.body: Any = create(num_classes=0, dynamic_img_size=True, **weights)
            self.body.set_grad_checkpointing(gradient_checkpointing)
            depth = len(self.body.blocks)
            self.layers = [depth * (i + 1) // 4 - 1 for i in range(4)]
            self.channels, self.strides = self.channels[:1] * 4, self.strides[:1] * 4
        else:
            self.body = create(features_only=True, **weights)
            if gradient_checkpointing:
                raise FoundationError(
                    f"model.gradient_checkpointing: 'timm/{name}' has none as feature maps; leave it out"
                )
        self.patch = int(self.strides[0]) if plain else 0
        self.multiple = 1 if plain else int(self.strides[-1])
        self.mean, self.std = tuple(self.body.pretrained_cfg["mean"]), tuple(self.body.pretrained_cfg["std"])

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> the model's maps, finest first."""
        if not self.patch:
            return list(self.body(images))
        size = [-(-side // self.patch) * self.patch for side in images.shape[-2:]]
        if size != list(images.shape[-2:]):
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return list(self.body.forward_intermediates(images, indices=self.layers, norm=True, intermediates_only=True))


def _explained(create: Callable[..., Any], name: str) -> Callable[..., Any]:
    """timm's way to build a model, with a FoundationError that names the setting where it cannot be had."""

    def build(**arguments: Any) -> Any:
        try:
            return create(name, **arguments)
        except Exception as error:  # whatever a name, the network or a file of weights can do
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FoundationError(
                f"model.backbone: 'timm/{name}' cannot be had ({first}); give the name of a model of timm, and its "
                "weights as a file (backbone_checkpoint) where the Hugging Face hub is out of reach"
            ) from error

    return build
