"""Differences between two predictions of the same images, query by query.

Shape letters: B images, K queries, C classes, h x w cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Logits = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Differences:
    """Absolute differences of mask logits (n, h, w) and class logits (n, C+1) over n pairs of queries."""

    masks: Tensor
    classes: Tensor


def matched_differences(expected: Logits, found: Logits, score_floor: float = 0.0) -> Differences:
    """Differences of mask logits (B, K, h, w) and class logits (B, K, C+1), with queries paired at least total cost.

    Queries have no fixed order: rounding may swap peaks of nearly equal height.  score_floor: count only queries for
    which `expected` gives a class a higher probability than this.
    """
    masks, classes = [], []
    for i in range(len(expected[0])):
        cost = _distance(expected[0][i], found[0][i]) + _distance(expected[1][i], found[1][i])
        ours, theirs = (torch.from_numpy(order) for order in linear_sum_assignment(cost.nan_to_num(1e9).numpy()))
        seen = expected[1][i].softmax(-1)[:, :-1].amax(-1)[ours] > score_floor
        ours, theirs = ours[seen], theirs[seen]
        masks.append((expected[0][i][ours] - found[0][i][theirs]).abs())
        classes.append((expected[1][i][ours] - found[1][i][theirs]).abs())
    return Differences(torch.cat(masks), torch.cat(classes))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """(K, K) mean absolute differences between two tensors (K, ...)."""
    return torch.cdist(a.flatten(1), b.flatten(1), p=1.0) / a[0].numel()
