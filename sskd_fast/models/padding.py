"""The content of images that zeros pad at the lower right to a common size, such as that of a tile.

Shape letters: B images, H x W pixels, h x w cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Logit of a cell that sees padding: a probability of 2e-9.
NOTHING = -20.0


@dataclass(frozen=True)
class Content:
    """Height and width of the content of images.

    sides: (B, 2) int64, without padding.  pixels: H, W, with it.
    """

    sides: Tensor
    pixels: tuple[int, int]

    @classmethod
    def of(cls, images: Tensor) -> Content:
        """The content of images (B, 3, H, W): all but the rows and columns of zeros at the lower right.

        Black borders of an image count as padding as well.
        """
        height, width = images.shape[-2:]
        lit = images.amax(1) > 0
        ends = []
        for side, other in ((height, 2), (width, 1)):
            numbers = torch.arange(1, side + 1, device=images.device)
            ends.append((lit.any(other) * numbers).amax(1))
        return cls(torch.stack(ends, 1), (height, width))

    def cells(self, size: Sequence[int]) -> Tensor:
        """True (B, h, w) for the cells of a map of this size (h, w) with their centre within the content."""
        within = []
        for axis in (0, 1):
            middles = 2 * torch.arange(size[axis], device=self.sides.device) + 1  # in halves of a cell
            within.append(middles * self.pixels[axis] < 2 * size[axis] * self.sides[:, axis : axis + 1])
        return within[0].unsqueeze(2) & within[1].unsqueeze(1)

    def only(self, logits: Tensor) -> Tensor:
        """Logits (B, ..., h, w) of a map's cells, with those of cells outside the content set to NOTHING."""
        outside = ~self.cells(logits.shape[-2:])
        return logits.masked_fill(outside.view(-1, *(1,) * (logits.ndim - 3), *outside.shape[1:]), NOTHING)
