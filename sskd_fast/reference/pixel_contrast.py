"""Pixel contrast: NT-Xent over drawn negatives, and its expected form over all candidates.

Shape letters: A anchors, M candidates, R negatives, D embedding width, E width of a score vector. With T the
temperature, s+ = <a, p> / T and s_q = <a, c_q> / T (with a hinge margin m: s_q = max(0, <a, c_q> - m) / T):

    sampled    loss = -log( exp(s+) / (exp(s+) + sum_r exp(s_{q_r})) )
    expected   loss = -log( exp(s+) / (exp(s+) + R sum_q w_q exp(s_q) / sum_q w_q) )

where w_q = v_q |y_a - y_q|^2 / 2 over the candidates in scope: half the squared distance of unit score vectors, which
is 1 - <y_a, y_q>, times the weight v_q of the candidate (1 where there are none).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows gathered at a time, and entries of an anchors x candidates tile: both stay in the second-level cache.
_GATHERED_ROWS = 4096
_TILE_ANCHORS = 128
_TILE_CANDIDATES = 512


def gathered_similarity(anchors: Tensor, candidates: Tensor, index: Tensor) -> Tensor:
    """Dot products of each anchor with the candidates at its own indices: (A, R), and 0 at index -1."""
    count, draws = index.shape
    result = anchors.new_zeros(count, draws)
    if candidates.shape[0] == 0 or draws == 0:
        return result
    step = max(1, _GATHERED_ROWS // draws)
    buffer = anchors.new_empty(step * draws, anchors.shape[1])
    for begin in range(0, count, step):
        rows = index[begin : begin + step]
        part = buffer[: rows.numel()]
        torch.index_select(candidates, 0, rows.clamp_min(0).reshape(-1), out=part)
        products = part.view(*rows.shape, -1).mul_(anchors[begin : begin + step, None])
        torch.sum(products, -1, out=result[begin : begin + step])
    return result.masked_fill_(index < 0, 0)


def pixel_contrast_forward(
    anchors: Tensor, positives: Tensor, candidates: Tensor, negatives: Tensor, temperature: float, margin: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of every anchor (A,), and what the backward pass needs: `share` (A, R) and `pull` (A,).

    share[a, r] = d loss / d <a, c_r> * T, and pull[a] = -d loss / d <a, p> * T.
    """
    logits = gathered_similarity(anchors, candidates, negatives)
    inactive = None
    if margin is not None:
        logits.sub_(margin)
        inactive = logits <= 0
        logits.clamp_min_(0)
    logits.div_(temperature).masked_fill_(negatives < 0, float("-inf"))
    positive = (anchors * positives).sum(-1) / temperature
    top = torch.maximum(positive, logits.amax(1)) if logits.shape[1] else positive
    share = logits.sub_(top[:, None]).exp_()
    negative_mass = share.sum(1)
    total = negative_mass + (positive - top).exp()
    loss = total.log() + (top - positive)
    share.div_(total[:, None])
    if inactive is not None:
        share.masked_fill_(inactive, 0)
    return loss, share, negative_mass / total


def pixel_contrast_backward(
    grad: Tensor,
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    negatives: Tensor,
    share: Tensor,
    pull: Tensor,
    temperature: float,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the anchors, positives and candidates for grad (A,); None where not needed."""
    weights = share * (grad / temperature)[:, None]
    attraction = (grad * pull / temperature)[:, None]
    grad_anchors = grad_positives = grad_candidates = None
    empty = candidates.shape[0] == 0 or negatives.numel() == 0
    if needs[0]:
        grad_anchors = -attraction * positives
        if not empty:
            rows = negatives.clamp_min(0)
            grad_anchors += F.embedding_bag(rows, candidates, mode="sum", per_sample_weights=weights)
    if needs[1]:
        grad_positives = -attraction * anchors
    if needs[2]:
        grad_candidates = torch.zeros_like(candidates)
        if not empty:
            grad_candidates = _inverted_sums(weights, anchors, negatives, candidates.shape[0])
    return grad_anchors, grad_positives, grad_candidates


def _inverted_sums(weights: Tensor, anchors: Tensor, negatives: Tensor, count: int) -> Tensor:
    """sum over the (a, r) with negatives[a, r] = q of weights[a, r] * anchors[a], for each of `count` candidates q.

    An inverted index instead of scattered additions: one bag of anchors a candidate; bag 0 takes the -1 entries.
    """
    bag, order = (negatives.reshape(-1) + 1).sort(stable=True)
    sizes = torch.bincount(bag, minlength=count + 1)
    rows = torch.div(order, negatives.shape[1], rounding_mode="floor")
    offsets = sizes.cumsum(0) - sizes
    sums = F.embedding_bag(rows, anchors, offsets, mode="sum", per_sample_weights=weights.reshape(-1)[order])
    return sums[1:]


@dataclass(frozen=True)
class Dissimilarity:
    """The weights w of the expected form, evaluated a tile at a time.

    scores: anchor (A, E) and candidate (M, E) unit rows, moved by a common centre so that half the squared distance
    keeps its digits where all scores are alike; None where all candidates weigh the same. weight: (M,) or None.
    groups: anchor (A,) and candidate (M,) ids, None where every candidate is in scope; same: own group, or the others.
    """

    scores: tuple[Tensor, Tensor] | None
    weight: Tensor | None
    groups: tuple[Tensor, Tensor] | None
    same: bool

    def tile(self, rows: slice, columns: slice, like: Tensor) -> Tensor:
        """w[rows, columns], of the shape and dtype of `like`."""
        if self.scores is None:
            return self._weighted(torch.ones_like(like), rows, columns)
        anchor, candidate = self.scores[0][rows], self.scores[1][columns]
        norms = (anchor.square().sum(-1)[:, None] + candidate.square().sum(-1)) / 2
        w = torch.addmm(norms, anchor, candidate.t(), alpha=-1).clamp_min_(0)
        return self._weighted(w, rows, columns)

    def _weighted(self, matrix: Tensor, rows: slice, columns: slice) -> Tensor:
        """`matrix` multiplied in place by the weights of the candidates, and by 0 out of scope."""
        if self.weight is not None:
            matrix *= self.weight[columns]
        if self.groups is not None:
            matrix *= (self.groups[0][rows, None] == self.groups[1][columns]) == self.same
        return matrix

    def pull_back(self, slope: Tensor, rows: slice, columns: slice, grads: tuple[Tensor, Tensor]) -> None:
        """Add to the gradients of the scores what slope = d loss / d w[rows, columns] contributes; overwrites it."""
        if self.scores is None:
            return
        slope = self._weighted(slope, rows, columns)
        anchor, candidate = self.scores[0][rows], self.scores[1][columns]
        grads[0][rows] += slope.sum(1, keepdim=True) * anchor - slope @ candidate
        grads[1][columns] += slope.sum(0)[:, None] * candidate - slope.t() @ anchor


class ExpectedState(NamedTuple):
    """Per anchor, each (A,): probability of the negatives, log sum_q w_q exp(s_q), and sum_q w_q."""

    pull: Tensor
    log_mass: Tensor
    weight_sum: Tensor


def _tiles(count: int, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def expected_contrast_forward(
    anchors: Tensor, positives: Tensor, candidates: Tensor, w: Dissimilarity, num_negatives: int, temperature: float
) -> tuple[Tensor, ExpectedState]:
    """Expected loss of every anchor (A,), by an online log-sum-exp over candidate tiles."""
    log_mass = anchors.new_empty(anchors.shape[0])
    weight_sum = torch.empty_like(log_mass)
    for rows in _tiles(anchors.shape[0], _TILE_ANCHORS):
        scaled = anchors[rows] / temperature
        top = scaled.new_full((scaled.shape[0],), torch.finfo(scaled.dtype).min)
        mass, total = torch.zeros_like(top), torch.zeros_like(top)
        for columns in _tiles(candidates.shape[0], _TILE_CANDIDATES):
            logits = scaled @ candidates[columns].t()
            weights = w.tile(rows, columns, logits)
            logits.masked_fill_(weights <= 0, float("-inf"))
            higher = torch.maximum(top, logits.amax(1))
            mass = mass * (top - higher).exp() + logits.sub_(higher[:, None]).exp_().mul_(weights).sum(1)
            total += weights.sum(1)
            top = higher
        log_mass[rows] = mass.log() + top
        weight_sum[rows] = total
    positive = (anchors * positives).sum(-1) / temperature
    gap = math.log(num_negatives) + log_mass - weight_sum.log() - positive
    gap = torch.where(weight_sum > 0, gap, float("-inf"))
    return F.softplus(gap), ExpectedState(gap.sigmoid(), log_mass, weight_sum)


def expected_contrast_backward(
    grad: Tensor,
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    w: Dissimilarity,
    state: ExpectedState,
    temperature: float,
    with_scores: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of anchors, positives, candidates, anchor scores and candidate scores; tiles are computed again."""
    pulled = grad * state.pull
    attraction = (pulled / temperature)[:, None]
    grad_anchors = -attraction * positives
    grad_candidates = torch.zeros_like(candidates)
    grad_scores = None
    if with_scores and w.scores is not None:
        grad_scores = torch.zeros_like(w.scores[0]), torch.zeros_like(w.scores[1])
    for rows in _tiles(anchors.shape[0], _TILE_ANCHORS):
        scaled = anchors[rows] / temperature
        inverse = (1 / state.weight_sum[rows])[:, None]
        for columns in _tiles(candidates.shape[0], _TILE_CANDIDATES):
            likelihood = (scaled @ candidates[columns].t()).sub_(state.log_mass[rows, None]).exp_()
            weights = w.tile(rows, columns, likelihood)
            likelihood.masked_fill_(weights <= 0, 0)
            flow = weights.mul_(likelihood).mul_(attraction[rows])
            grad_anchors[rows] += flow @ candidates[columns]
            grad_candidates[columns] += flow.t() @ anchors[rows]
            if grad_scores is not None:
                slope = (likelihood - inverse).masked_fill_(inverse.isinf(), 0).mul_(pulled[rows, None])
                w.pull_back(slope, rows, columns, grad_scores)
    scores = (None, None) if grad_scores is None else grad_scores
    return grad_anchors, -attraction * anchors, grad_candidates, *scores
