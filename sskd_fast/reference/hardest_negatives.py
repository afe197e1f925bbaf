"""Hardest negatives: the R of each anchor's draws with the largest cosine <a, c> / (|a| |c|).

Shape letters: A anchors, M candidates, R' draws, R negatives, D embedding width.
"""

from __future__ import annotations

import math

from torch import Tensor

from sskd_fast.reference.pixel_contrast import gathered_similarity
from sskd_fast.reference.unit_rows import unit_rows


def hardest_negatives(anchors: Tensor, candidates: Tensor, drawn: Tensor, num_negatives: int) -> Tensor:
    """The R of each anchor's draws (A, R') that are most similar to it by cosine, most similar first, (A, R) int32."""
    similarity = gathered_similarity(anchors, unit_rows(candidates)[0], drawn)
    similarity.masked_fill_((drawn < 0) | similarity.isnan(), -math.inf)
    order = similarity.argsort(dim=1, descending=True, stable=True)[:, :num_negatives]
    return drawn.gather(1, order).int()
