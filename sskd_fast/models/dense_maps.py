"""Dense queries: every cell of a pyramid is a query with its own class logits and its own small mask network.

Source: conditional convolutions for instance segmentation (CondInst).

Shape letters: B images, C classes, K queries, F width, P numbers of a mask network. M mask features, n cells,
h x w cells of the finest map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Channels of a mask network's two hidden layers.
HIDDEN = 8


@dataclass
class DenseMaps:
    """The predictions of all cells.

    classes: a level's (B, C, h_i, w_i) logits. kernels: a level's (B, P, h_i, w_i). features: (B, M, h, w). strides:
    side of a level's cell in cells of the finest map.
    """

    classes: list[Tensor]
    kernels: list[Tensor]
    features: Tensor
    strides: tuple[int, ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> DenseMaps:
        """`change` applied to every tensor."""
        return DenseMaps(
            [change(level) for level in self.classes],
            [change(level) for level in self.kernels],
            change(self.features),
            self.strides,
        )

    def cells(self) -> tuple[Tensor, Tensor, Tensor]:
        """All levels' cells: class logits (B, n, C), centres (n, 2) x, y and sides (n,) in cells of the finest map."""
        logits = torch.cat([level.flatten(2) for level in self.classes], 2).transpose(1, 2)
        centres, covers, dtype = [], [], torch.promote_types(logits.dtype, torch.float32)
        for level, stride in zip(self.classes, self.strides, strict=True):
            height, width = level.shape[-2:]
            y, x = torch.meshgrid(
                torch.arange(height, device=level.device), torch.arange(width, device=level.device), indexing="ij"
            )
            centres.append((torch.stack([x, y], -1).flatten(0, 1).to(dtype) + 0.5) * stride - 0.5)
            covers.append(torch.full((height * width,), float(stride), device=level.device, dtype=dtype))
        return logits, torch.cat(centres), torch.cat(covers)

    def masks(self, image: Tensor, cell: Tensor) -> Tensor:
        """Mask logits (n, h, w) of cells, given by their images (n,) and their indices (n,) among all levels' cells."""
        kernels = torch.cat([level.flatten(2) for level in self.kernels], 2)
        _, centres, covers = self.cells()
        return mask_logits(kernels[image, :, cell], self.features, image, centres[cell], covers[cell])


def mask_logits(kernels: Tensor, features: Tensor, image: Tensor, centres: Tensor, covers: Tensor) -> Tensor:
    """Apply kernels (n, P) to their image's features (B, M, h, w) and to positions relative to a centre: (n, h, w).

    centres: (n, 2) x, y in cells; covers: (n,) sides in cells; relative positions are in units of eight sides.
    """
    count, (height, width) = kernels.shape[0], features.shape[-2:]  # len() would fix the size of an export
    inputs = features.shape[1] + 2
    xs = torch.arange(width, device=features.device, dtype=features.dtype)
    ys = torch.arange(height, device=features.device, dtype=features.dtype)
    unit = 8 * covers[:, None]
    dx = ((xs - centres[:, :1]) / unit)[:, None, :].expand(-1, height, -1)
    dy = ((ys - centres[:, 1:]) / unit)[:, :, None].expand(-1, -1, width)
    x = torch.cat([features[image], dx.unsqueeze(1), dy.unsqueeze(1)], 1).flatten(2)
    shapes = [(HIDDEN, inputs), (HIDDEN, HIDDEN), (1, HIDDEN)]
    start = 0
    for number, (outs, ins) in enumerate(shapes):
        weight = kernels[:, start : start + outs * ins].view(count, outs, ins)
        start += outs * ins
        bias = kernels[:, start : start + outs].unsqueeze(2)
        start += outs
        x = torch.baddbmm(bias, weight, x)
        if number < 2:
            x = x.relu_()
    return x.view(count, height, width)


def kernel_size(features: int) -> int:
    """Numbers of a mask network: 10 x 8 + 8 + 8 x 8 + 8 + 8 + 1 for 8 features."""
    return HIDDEN * (features + 2) + HIDDEN + HIDDEN * HIDDEN + HIDDEN + HIDDEN + 1
