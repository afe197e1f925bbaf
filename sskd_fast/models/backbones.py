"""A small convolutional backbone: image -> feature maps of rising stride.

Shape letters: B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


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
        # The stride is applied here, not in the convolution. On some processors, oneDNN's gradient of a strided 1 x 1
        # convolution with few channels writes out of bounds. Seen with torch 2.14.1, two threads, 8 to 12 channels.
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
