"""Pixel decoders, which give backbone maps one width at every stride, and the projection MLP of the embeddings.

The decoders are a feature pyramid and the head of a dense prediction transformer.

Shape letters: B images, F feature channels, D embedding width, h x w cells.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from sskd_fast.models.backbones import norm


def separable(width: int) -> nn.Sequential:
    """Depthwise 3 x 3 and pointwise convolution: a ninth of the work, which dominates the step time at stride 2."""
    return nn.Sequential(
        nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
        norm(width),
        nn.ReLU(),
    )


class PixelDecoder(nn.Module):
    """A feature pyramid: 1 x 1 laterals, top-down sums, one separable 3 x 3 convolution per level; finest level first.

    Levels finer than `first` are left out. Modules are named after the backbone's levels, so that weights fit for any
    `first`.
    """

    def __init__(self, channels: Sequence[int], width: int, first: int = 0) -> None:
        super().__init__()
        self.names = [str(level) for level in range(first, len(channels))]
        self.laterals = nn.ModuleDict({n: nn.Conv2d(channels[int(n)], width, 1) for n in self.names})
        self.outputs = nn.ModuleDict({n: separable(width) for n in self.names})

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps, finest first -> as many maps (B, width, h_i, w_i), from level `first` on."""
        top: Tensor | None = None
        levels: list[Tensor] = []
        for name in reversed(self.names):
            lateral = self.laterals[name](maps[int(name)])
            if top is not None:
                lateral = lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
            top = self.outputs[name](lateral)
            levels.append(top)
        return levels[::-1]


class ResidualUnit(nn.Module):
    """Two 3 x 3 convolutions behind their activations, around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class ReassembledPixelDecoder(nn.Module):
    """The head of a dense prediction transformer (DPT): maps of one stride become a pyramid and are fused top-down.

    Maps that all have stride s, as from a plain vision transformer, become maps of stride s/4, s/2, s and 2 s.
    They have width / 4 to 2 width channels.  A pyramid is left as it is.  Residual units fuse each level with the
    coarser one.  Levels finer than `first` are left out.  strides: of all levels, finest first.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[float], width: int, first: int = 0) -> None:
        super().__init__()
        count = len(channels)
        plain = len(set(strides)) == 1
        powers = [i - 2 if plain else 0 for i in range(count)]
        self.strides = [s * 2.0**p for s, p in zip(strides, powers, strict=True)]
        self.first = first
        widths = [max(1, int(width * 2.0**p)) if plain else width for p in powers]
        self.reassembles, self.laterals, self.skips, self.fusions, self.outputs = (nn.ModuleList() for _ in range(5))
        for level in range(first, count):
            self.reassembles.append(reassemble(channels[level], widths[level], powers[level]))
            self.laterals.append(nn.Conv2d(widths[level], width, 3, 1, 1, bias=False))
            self.skips.append(ResidualUnit(width) if level < count - 1 else nn.Identity())
            self.fusions.append(ResidualUnit(width))
            self.outputs.append(nn.Conv2d(width, width, 1))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps -> as many maps (B, width, h_i, w_i), finest first, from level `first` on."""
        top: Tensor | None = None
        levels: list[Tensor] = []
        parts = zip(self.reassembles, self.laterals, self.skips, self.fusions, self.outputs, strict=True)
        for x, (resize, lateral, skip, fuse, out) in reversed(list(zip(maps[self.first :], parts, strict=True))):
            level = skip(lateral(resize(x)))
            if top is not None:
                level = level + F.interpolate(top, size=level.shape[-2:], mode="bilinear", align_corners=False)
            top = out(fuse(level))
            levels.append(top)
        return levels[::-1]


def reassemble(inputs: int, outputs: int, power: int) -> nn.Module:
    """A 1 x 1 convolution, then a learned change of the stride by 2^power."""
    project = nn.Conv2d(inputs, outputs, 1)
    if power < 0:
        return nn.Sequential(project, nn.ConvTranspose2d(outputs, outputs, 2**-power, 2**-power))
    if power > 0:
        return nn.Sequential(project, nn.Conv2d(outputs, outputs, 3, 2**power, 1))
    return project


class Projection(nn.Module):
    """The 3-layer MLP of the method's section 4.1, as 1 x 1 convolutions: pixel features -> embeddings."""

    def __init__(self, inputs: int, hidden: int = 128, outputs: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """features (B, F, h, w) -> embeddings (B, D, h, w), not normalised."""
        embeddings: Tensor = self.layers(features)
        return embeddings
