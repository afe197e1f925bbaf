"""Pixel decoder: backbone maps -> one width at every stride (feature pyramid), and the projection MLP of the
embeddings.

Shape letters: B images, F feature channels, D embedding width, h x w cells.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from sskd_fast.models.backbones import norm


def separable(width: int) -> nn.Sequential:
    """Depthwise 3 x 3 and pointwise convolution: a ninth of the work, which at stride 2 decides the step time."""
    return nn.Sequential(
        nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
        norm(width),
        nn.ReLU(),
    )


class PixelDecoder(nn.Module):
    """A feature pyramid: 1 x 1 laterals, top-down sums, one separable 3 x 3 convolution a level; finest level first.

    Levels finer than `first` are left out. Modules are named by the backbone's levels, so that weights fit whatever
    `first` is.
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
