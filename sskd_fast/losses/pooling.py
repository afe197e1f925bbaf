"""Maps of logits in coarser cells: those of the labels, where a model's own are finer.

Shape letters: B images, K queries, h x w cells of the map.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sskd_fast.losses.matching import SURE


def pooled_size(maps: Tensor, pool: int) -> tuple[int, int]:
    """Height and width of a (..., h, w) map, pooled."""
    return max(1, maps.shape[-2] // pool), max(1, maps.shape[-1] // pool)


def pooled(mask_logits: Tensor, pool: int) -> Tensor:
    """Logits of the mean probability in cells of pool x pool; mask_logits (B, K, h, w).

    Computed as log(mean p) - log(mean(1 - p)), each from its own sigmoid, so that sure cells keep their gradient.
    """
    if pool == 1:
        return mask_logits
    h, w = pooled_size(mask_logits, pool)
    cells = mask_logits[..., : h * pool, : w * pool].clamp(-SURE, SURE)
    return F.avg_pool2d(cells.sigmoid(), pool).log() - F.avg_pool2d((-cells).sigmoid(), pool).log()
