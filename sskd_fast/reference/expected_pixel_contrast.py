"""Pixel contrast without sampling: every candidate, weighted as the sampler would draw it.

Shape letters: A anchors, M candidates, D embedding width, E width of a score vector. With T the temperature,
let s+ = <a, p> / T and s_q = <a, c_q> / T. The sum over R drawn negatives is replaced by R times its weighted
mean:

    loss = -log( exp(s+) / (exp(s+) + R sum_q w_q exp(s_q) / sum_q w_q) )

where w_q = v_q |y_a - y_q|^2 / 2 over the candidates in scope. It is half the squared distance of unit score vectors,
1 - <y_a, y_q>, times the candidate's weight v_q (1 if no weights are given).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sskd_fast.reference.unit_rows import unit_rows, unit_rows_backward

# Size of an anchors x candidates tile: it stays in the second-level cache.
_TILE_ANCHORS = 128
_TILE_CANDIDATES = 512


@dataclass(frozen=True)
class Dissimilarity:
    """The weights w of the expected form, evaluated one tile at a time.

    scores: anchor (A, E) and candidate (M, E) unit rows, shifted by a common centre (`centred`); None if all
    weights are equal. The shift keeps the digits of half the squared distance if all scores are alike. weight:
    (M,) or None.
    groups: anchor (A,) and candidate (M,) ids, None if every candidate is in scope. same: True for candidates of the
    anchor's own group, False for those of other groups.
    """

    scores: tuple[Tensor, Tensor] | None
    weight: Tensor | None
    groups: tuple[Tensor, Tensor] | None
    same: bool

    @classmethod
    def centred(
        cls,
        anchor_scores: Tensor | None,
        candidate_scores: Tensor | None,
        weight: Tensor | None,
        anchor_group: Tensor | None,
        candidate_group: Tensor | None,
        same: bool,
    ) -> Dissimilarity:
        """The weights for these scores, shifted by the candidates' mean; scores may be None."""
        groups = None if anchor_group is None or candidate_group is None else (anchor_group, candidate_group)
        if anchor_scores is None or candidate_scores is None:
            return cls(None, weight, groups, same)
        centre = candidate_scores.mean(0) if len(candidate_scores) else 0
        return cls((anchor_scores - centre, candidate_scores - centre), weight, groups, same)

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
        """Add the share of slope = d loss / d w[rows, columns] to the gradients of the scores; overwrites slope."""
        if self.scores is None:
            return
        slope = self._weighted(slope, rows, columns)
        anchor, candidate = self.scores[0][rows], self.scores[1][columns]
        grads[0][rows] += slope.sum(1, keepdim=True) * anchor - slope @ candidate
        grads[1][columns] += slope.sum(0)[:, None] * candidate - slope.t() @ anchor


class ExpectedState(NamedTuple):
    """Results of the forward pass, each (A,).

    loss; pull: the probability of the negatives; log_mass = log sum_q w_q exp(s_q); weight_sum = sum_q w_q.
    """

    loss: Tensor
    pull: Tensor
    log_mass: Tensor
    weight_sum: Tensor


def _tiles(count: int, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def expected_pixel_contrast(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    anchor_scores: Tensor | None,
    candidate_scores: Tensor | None,
    candidate_weight: Tensor | None,
    anchor_group: Tensor | None,
    candidate_group: Tensor | None,
    same: bool,
    num_negatives: int,
    temperature: Tensor,
    normalize: bool,
) -> ExpectedState:
    """Expected loss of every anchor, by an online log-sum-exp over candidate tiles.

    scores: (A, E) and (M, E) or None; weight: (M,) or None; groups: (A,) and (M,) or None, with `same` for the scope;
    temperature: (1,); normalize: L2-normalise the embeddings.
    """
    w = Dissimilarity.centred(anchor_scores, candidate_scores, candidate_weight, anchor_group, candidate_group, same)
    temperature = temperature.to(anchors.dtype)
    if normalize:
        anchors, positives, candidates = unit_rows(anchors)[0], unit_rows(positives)[0], unit_rows(candidates)[0]
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
    return ExpectedState(F.softplus(gap), gap.sigmoid(), log_mass, weight_sum)


def expected_pixel_contrast_backward(
    grad: Tensor,
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    anchor_scores: Tensor | None,
    candidate_scores: Tensor | None,
    candidate_weight: Tensor | None,
    anchor_group: Tensor | None,
    candidate_group: Tensor | None,
    same: bool,
    pull: Tensor,
    log_mass: Tensor,
    weight_sum: Tensor,
    temperature: Tensor,
    normalize: bool,
    with_scores: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of anchors, positives, candidates, anchor scores and candidate scores; tiles are computed again.

    pull, log_mass, weight_sum: of `ExpectedState`. The gradients of the scores are empty if not wanted or without
    scores.
    """
    w = Dissimilarity.centred(anchor_scores, candidate_scores, candidate_weight, anchor_group, candidate_group, same)
    temperature = temperature.to(anchors.dtype)
    ones = grad.new_ones(())
    (a, a_norm), (p, p_norm), (c, c_norm) = (
        unit_rows(x) if normalize else (x, ones) for x in (anchors, positives, candidates)
    )
    pulled = grad * pull
    attraction = (pulled / temperature)[:, None]
    grads = [-attraction * p, -attraction * a, torch.zeros_like(c)]
    grad_scores = None
    if with_scores and w.scores is not None:
        grad_scores = torch.zeros_like(w.scores[0]), torch.zeros_like(w.scores[1])
    for rows in _tiles(anchors.shape[0], _TILE_ANCHORS):
        scaled = a[rows] / temperature
        inverse = (1 / weight_sum[rows])[:, None]
        for columns in _tiles(candidates.shape[0], _TILE_CANDIDATES):
            likelihood = (scaled @ c[columns].t()).sub_(log_mass[rows, None]).exp_()
            weights = w.tile(rows, columns, likelihood)
            likelihood.masked_fill_(weights <= 0, 0)
            flow = weights.mul_(likelihood).mul_(attraction[rows])
            grads[0][rows] += flow @ c[columns]
            grads[2][columns] += flow.t() @ a[rows]
            if grad_scores is not None:
                slope = (likelihood - inverse).masked_fill_(inverse.isinf(), 0).mul_(pulled[rows, None])
                w.pull_back(slope, rows, columns, grad_scores)
    if normalize:
        norms = (a, a_norm), (p, p_norm), (c, c_norm)
        grads = [unit_rows_backward(g, *of) for g, of in zip(grads, norms, strict=True)]
    scores = (grad.new_empty(0), grad.new_empty(0)) if grad_scores is None else grad_scores
    return grads[0], grads[1], grads[2], *scores
