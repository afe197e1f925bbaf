"""Pixel contrast: NT-Xent of every anchor over its drawn negatives.

Shape letters: A anchors, M candidates, R negatives, D embedding width. With T the temperature, s+ = <a, p> / T and
s_r = <a, c_{q_r}> / T (with a hinge margin m: s_r = max(0, <a, c_{q_r}> - m) / T):

    loss = -log( exp(s+) / (exp(s+) + sum_r exp(s_r)) )
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sskd_fast.reference.unit_rows import unit_rows, unit_rows_backward

# Rows gathered per chunk: they stay in the second-level cache.
_GATHERED_ROWS = 4096


def gathered_similarity(anchors: Tensor, candidates: Tensor, index: Tensor) -> Tensor:
    """Dot products of each anchor with the candidates at its indices: (A, R), 0 for index -1."""
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


class ContrastState(NamedTuple):
    """Results of the forward pass: loss (A,), and the state of the backward pass.

    share (A, R) = d loss / d <a, c_r> * T, pull (A,) = -d loss / d <a, p> * T, and pulled (A, D) = sum_r share_r c_r.
    share and pulled have no rows if no gradient is wanted.
    """

    loss: Tensor
    share: Tensor
    pull: Tensor
    pulled: Tensor


def pixel_contrast(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    negatives: Tensor,
    temperature: Tensor,
    margin: float | None,
    normalize: bool,
    with_grad: bool,
) -> ContrastState:
    """The loss of every anchor. temperature: (1,). normalize: L2-normalise the embeddings."""
    temperature = temperature.to(anchors.dtype)
    if normalize:
        anchors, positives, candidates = unit_rows(anchors)[0], unit_rows(positives)[0], unit_rows(candidates)[0]
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
    kept = len(anchors) if with_grad else 0
    pulled = torch.zeros_like(anchors[:kept])
    if with_grad and candidates.shape[0] and negatives.numel():
        pulled = F.embedding_bag(negatives.clamp_min(0), candidates, mode="sum", per_sample_weights=share)
    return ContrastState(loss, share[:kept].clone(), negative_mass / total, pulled)


def pixel_contrast_backward(
    grad: Tensor,
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    negatives: Tensor,
    share: Tensor,
    pull: Tensor,
    pulled: Tensor,
    temperature: Tensor,
    normalize: bool,
    with_positives: bool,
    with_candidates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the anchors, positives and candidates for grad (A,); a gradient that is not wanted has no rows.

    share, pull, pulled: of `ContrastState`.
    """
    ones = grad.new_ones(())
    (a, a_norm), (p, p_norm), (c, c_norm) = (
        unit_rows(x) if normalize else (x, ones) for x in (anchors, positives, candidates)
    )
    scale = (grad / temperature.to(grad.dtype))[:, None]
    attraction = scale * pull[:, None]
    grads = [scale * pulled - attraction * p, -attraction * a, torch.zeros_like(c[: len(c) * with_candidates])]
    if with_candidates and candidates.shape[0] and negatives.numel():
        grads[2] = _inverted_sums(share * scale, a, negatives, candidates.shape[0])
    if normalize:
        grads[0], grads[1] = unit_rows_backward(grads[0], a, a_norm), unit_rows_backward(grads[1], p, p_norm)
        grads[2] = unit_rows_backward(grads[2], c, c_norm) if with_candidates else grads[2]
    return grads[0], grads[1][: len(p) * with_positives], grads[2]


def _inverted_sums(weights: Tensor, anchors: Tensor, negatives: Tensor, count: int) -> Tensor:
    """For each of `count` candidates q, the sum of weights[a, r] * anchors[a] over all (a, r) with negatives[a, r] = q.

    Uses an inverted index instead of scattered additions: one bag of anchors for each candidate; bag 0 takes the -1
    entries.
    """
    bag, order = (negatives.reshape(-1) + 1).sort(stable=True)
    sizes = torch.bincount(bag, minlength=count + 1)
    rows = torch.div(order, negatives.shape[1], rounding_mode="floor")
    offsets = sizes.cumsum(0) - sizes
    sums = F.embedding_bag(rows, anchors, offsets, mode="sum", per_sample_weights=weights.reshape(-1)[order])
    return sums[1:]
