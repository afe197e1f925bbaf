"""Mask transformer decoder with masked attention and a prediction after every layer (Mask2Former's scheme).

Shape letters: B images, K queries, F width, C classes, P mask channels, h x w cells of the mask map, N memory cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskd_fast.models.queries import Queries
from sskd_fast.models.segmenter import autocast_device


class Attention(nn.Module):
    """Multi-head attention with a boolean mask (True = may attend)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, memory: Tensor, allowed: Tensor | None, key_position: Tensor | None) -> Tensor:
        """queries (B, K, F), memory (B, N, F), allowed (B, K, N) bool or None, key_position (N, F) -> (B, K, F)."""
        b, k, f = queries.shape
        keys = memory if key_position is None else memory + key_position
        weight_k, weight_v = self.key_value.weight.chunk(2)
        bias_k, bias_v = self.key_value.bias.chunk(2)
        q = self.query(queries).view(b, k, self.heads, -1).transpose(1, 2)
        key = F.linear(keys, weight_k, bias_k).view(b, -1, self.heads, f // self.heads).transpose(1, 2)
        value = F.linear(memory, weight_v, bias_v).view(b, -1, self.heads, f // self.heads).transpose(1, 2)
        mask = None if allowed is None else allowed.unsqueeze(1)
        mixed = F.scaled_dot_product_attention(q, key, value, attn_mask=mask)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(b, k, f))
        return out


class DecoderLayer(nn.Module):
    """Masked cross-attention to a memory level, self-attention of the queries, feed-forward; normalised after each."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.cross = Attention(width, heads)
        self.self_attention = Attention(width, heads)
        self.feedforward = nn.Sequential(nn.Linear(width, feedforward), nn.ReLU(), nn.Linear(feedforward, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(
        self, x: Tensor, memory: Tensor, allowed: Tensor, near: Tensor | None, query_position: Tensor | None,
        key_position: Tensor | None,
    ) -> Tensor:  # fmt: skip
        placed = x if query_position is None else x + query_position
        x = self.norms[0](x + self.cross(placed, memory, allowed, key_position))
        x = self.norms[1](x + self.self_attention(x, x, near, query_position))
        out: Tensor = self.norms[2](x + self.feedforward(x))
        return out


class MaskHead(nn.Module):
    """Class logits and mask logits of queries; seeded queries add an ellipse around their peak to the mask logits."""

    def __init__(self, width: int, mask_width: int, classes: int, *, ellipse: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, classes + 1)
        self.embed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, mask_width))
        self.ellipse = nn.Linear(width, 6) if ellipse else None
        if self.ellipse is not None:
            nn.init.zeros_(self.ellipse.weight)
            nn.init.zeros_(self.ellipse.bias)

    def forward(self, x: Tensor, features: Tensor, points: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, K, F), features (B, P, h, w), points (B, K, 2) -> mask (B, K, h, w) and class logits (B, K, C+1)."""
        x = self.norm(x)
        embed, (height, width) = self.embed(x), features.shape[-2:]
        if self.ellipse is None or points is None:
            masks = embed @ features.flatten(2)
        else:
            prior = ellipse_prior(self.ellipse(x), points, height, width)
            masks = prior.flatten(2).add_(embed @ features.flatten(2))
        return masks.unflatten(2, (height, width)), self.classes(x)


RADIUS = 4.0


def ellipse_prior(parameters: Tensor, points: Tensor, height: int, width: int) -> Tensor:
    """Mask logits of an ellipse near each peak: 3 (1 - |L (p - peak - offset)|^2 / r^2), not below -12.

    parameters: (B, K, 6): two log-scales, a shear, an x and y offset in units of r = 4 cells, a bias.  points: (B, K,
    2) in cells. Returns (B, K, height, width).
    """
    dtype = torch.promote_types(parameters.dtype, torch.float32)
    parameters, points = parameters.to(dtype), points.to(dtype)
    sx, sy, shear, ox, oy, bias = parameters.unbind(-1)
    xs = torch.arange(width, dtype=dtype, device=points.device)
    ys = torch.arange(height, dtype=dtype, device=points.device)
    dx = (xs - points[..., :1]) / RADIUS - ox.unsqueeze(-1)
    dy = (ys - points[..., 1:]) / RADIUS - oy.unsqueeze(-1)
    across = sx.clamp(-2, 2).exp().unsqueeze(-1) * dx
    slant, up = shear.unsqueeze(-1) * dy, sy.clamp(-2, 2).exp().unsqueeze(-1) * dy
    # (across + slant)^2 + up^2 is a sum of three products of a row term and a column term. One small matrix product
    # writes the map once; term by term, it would be read and written nine times.
    rows = torch.stack([3 * (1 - slant.square() - up.square()), -6 * slant, torch.full_like(slant, -3.0)], -1)
    columns = torch.stack([torch.ones_like(across), across, across.square()], -2)
    with torch.autocast(autocast_device(points.device), enabled=False):
        form = rows @ columns
    return form.clamp(min=-12.0).add_(bias[..., None, None])


class MaskDecoder(nn.Module):
    """Decoder layers that cycle through the memory levels, with a prediction before the first and after each layer."""

    def __init__(
        self, width: int, mask_width: int, classes: int, *, layers: int, heads: int, feedforward: int, levels: int,
        seeded: bool, learned_queries: int, reach: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, feedforward) for _ in range(layers))
        self.level_embedding = nn.Parameter(torch.zeros(levels, width))
        self.query_position = None if seeded else nn.Parameter(torch.randn(learned_queries, width) * 0.1)
        self.head = MaskHead(width, mask_width, classes, ellipse=seeded)
        self.mask_features = nn.Conv2d(width, mask_width, 1)
        self.reach = reach

    def forward(self, queries: Queries, features: Tensor, memory: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The (mask logits, class logits) of every prediction.

        features (B, P, h, w): of `mask_features`; memory (B, F, h_i, w_i): coarsest last.
        """
        x, points = queries.content, queries.points
        near = None if points is None else (points.unsqueeze(2) - points.unsqueeze(1)).abs().amax(-1) <= self.reach
        predictions = [self.head(x, features, points)]
        for i, layer in enumerate(self.layers):
            level = (len(memory) - 1 - i) % len(memory)
            cells = memory[level]
            allowed = attention_mask(predictions[-1][0], cells.shape[-2:])
            position = None if self.query_position is None else sine_position(cells)
            tokens = cells.flatten(2).transpose(1, 2) + self.level_embedding[level - len(memory)]
            x = layer(x, tokens, allowed, near, self.query_position, position)
            predictions.append(self.head(x, features, points))
        return predictions


def attention_mask(mask_logits: Tensor, size: Sequence[int]) -> Tensor:
    """Mask (B, K, h_i * w_i) bool: the cells of the predicted mask (B, K, h, w), or all cells if it is empty."""
    small = F.interpolate(mask_logits.detach(), size=tuple(size), mode="area").flatten(2) > 0
    return small | ~small.any(dim=-1, keepdim=True)


def sine_position(cells: Tensor) -> Tensor:
    """Sine and cosine codes of the cells of a (B, F, h, w) map: (h * w, F)."""
    f, h, w = cells.shape[-3:]
    quarter = (f + 3) // 4
    rate = 100.0 ** (-torch.arange(quarter, dtype=cells.dtype, device=cells.device) / quarter)
    y, x = evenly_spaced(h, cells)[:, None, None] * rate, evenly_spaced(w, cells)[None, :, None] * rate
    code = torch.cat(
        [y.sin().expand(h, w, -1), y.cos().expand(h, w, -1), x.sin().expand(h, w, -1), x.cos().expand(h, w, -1)], -1
    )
    return code.reshape(h * w, -1)[:, :f]


def evenly_spaced(count: int, like: Tensor) -> Tensor:
    """`count` angles from 0 to 6.2832, both included."""
    if not torch.compiler.is_compiling():
        return torch.linspace(0, 6.2832, count, dtype=like.dtype, device=like.device)
    # torch.linspace up to rounding: torch.export would turn it into a constant of the traced size.
    return torch.arange(count, dtype=like.dtype, device=like.device) * (6.2832 / max(count - 1, 1))
