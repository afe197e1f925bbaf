"""Sources of queries: learned vectors, or the peaks of a heat map (for many small objects).

Shape letters: B images, K queries, F feature channels, h x w cells of the finest map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskd_fast.models.padding import Content
from sskd_fast.models.pixel_decoder import separable


@dataclass
class Queries:
    """The decoder's queries.

    content: (B, K, F).  points: (B, K, 2) x, y in cells of the finest map, None for learned queries.  heat: (B, h, w)
    logits that an instance's centre lies in the cell, or None.
    """

    content: Tensor
    points: Tensor | None
    heat: Tensor | None


class LearnedQueries(nn.Module):
    """K learned vectors, the same for every image."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.randn(count, width))

    def forward(self, features: Tensor, content: Content | None = None) -> Queries:
        """The queries for features (B, F, h, w), of which only B matters."""
        return Queries(self.content.expand(features.shape[0], -1, -1), None, None)


class PeakQueries(nn.Module):
    """K queries at the highest local maxima of a heat map over the finest features.

    A query starts from the features at its peak.  Peaks have no gradient, since the heat map has its own loss.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count = count
        self.heat = nn.Sequential(separable(width), nn.Conv2d(width, 1, 1))
        self.content = nn.Linear(width, width)
        last = self.heat[1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.constant_(last.bias, -4.0)

    def forward(self, features: Tensor, content: Content | None = None) -> Queries:
        """K peaks per image of features (B, F, h, w), by score; flat regions give arbitrary ones with low scores.

        content: of the images; peaks lie within it.
        """
        heat: Tensor = self.heat(features)
        if content is not None:
            heat = content.only(heat)
        points = find_peaks(heat.detach().squeeze(1), self.count)
        w = features.shape[-1]
        flat = (points[..., 1] * w + points[..., 0]).unsqueeze(1).expand(-1, features.shape[1], -1)
        starts = self.content(features.flatten(2).gather(2, flat).transpose(1, 2))
        return Queries(starts, points.to(features.dtype), heat.squeeze(1))


def find_peaks(heat: Tensor, count: int) -> Tensor:
    """heat (B, h, w) logits -> (B, count, 2) int64 x, y of the highest 3 x 3 local maxima."""
    # At least in float32: a runtime that rounds the scores but not their maxima would find no maximum equal to a score.
    score = heat.to(torch.promote_types(heat.dtype, torch.float32)).sigmoid()
    peak = score == F.max_pool2d(score.unsqueeze(1), 3, 1, 1).squeeze(1)
    score = torch.where(peak, score, score * 1e-3)
    height, width = score.shape[-2:]
    cells = height * width
    kept = count if cells >= count else cells  # not min(), which torch.export keeps open if the size is
    best = score.flatten(1).topk(kept, dim=1).indices
    y = best // width
    return torch.stack([best - y * width, y], dim=-1)  # ONNX has no remainder by a dynamic size
