"""Negative sampling: R candidates for each anchor, without replacement, in time independent of their number.

Shape letters: A anchors, M candidates, R negatives, E width of a score vector, T trials. The law is successive sampling
(Gumbel top-k) with weights w_q = v_q s(a, q). For unit rows, s(a, q) = |y_a - y_q|^2 / 2 = 1 - <y_a, y_q> (1 without
scores). v_q is the weight of the candidate (1 if no weights are given).

Rejection. A trial proposes a candidate with probability proportional to an envelope g_q >= w_q, accepts it with
probability w_q / g_q, and drops repeats. Accepted draws follow the law exactly, for any envelope. Two envelopes:

    even      g_q = v_q                               since s <= 1 for non-negative unit rows (for slightly longer rows,
                                                      the mean of the largest squared norms); acceptance mean(s)
    spread    g_q = (alpha + beta) / 2 * v_q (1 + t_q)     acceptance 1/2

with c the mean score vector of the candidates, alpha = |y_a - c|^2, beta the mean of |y_q - c|^2 and
t_q = |y_q - c|^2 / beta. By Cauchy-Schwarz s <= (|y_a - c| + |y_q - c|)^2 / 2 <= (alpha + beta) / 2 * (1 + t_q). s has
mean (alpha + beta) / 2, so half of the trials are accepted however alike the scores are. Each anchor takes the better
envelope.

Race. The negatives that an anchor still lacks after its last trial come from one exact pass over the candidates. It
takes the smallest -log(u_q) / w_q among those not yet drawn. If there are few candidates, all negatives come from the
race. The number of trials is a stopping time, so the law of the whole stays exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sskd_fast import rng
from sskd_fast.reference.proposals import Candidates, Proposals, build_proposals

_TRIALS_PER_NEGATIVE = 16
# Trials, gathered rows and race entries per chunk: their temporaries stay in the second-level cache.
_CHUNK_TRIALS = 1 << 16
_GATHERED_ROWS = 4096
_RACE_ENTRIES = 1 << 15


def negative_sampling(
    anchor_scores: Tensor,
    anchor_group: Tensor,
    candidate_scores: Tensor | None,
    candidate_weight: Tensor | None,
    candidate_group: Tensor,
    same: bool,
    num_negatives: int,
    seed: Tensor,
) -> Tensor:
    """Indices (A, R) int32 in the order drawn, -1 at the end if fewer than R candidates have positive weight.

    anchor_scores (A, E), not read if the candidates have no scores; anchor_group (A,); the other arguments are the
    fields of `Candidates`.
    """
    candidates = Candidates(candidate_scores, candidate_weight, candidate_group, same)
    device = anchor_group.device
    total, size = anchor_group.shape[0], candidates.group.shape[0]
    picks = torch.full((total, num_negatives), -1, dtype=torch.int64, device=device)
    if total == 0 or size == 0:
        return picks.int()
    key = rng.seed_key(seed, device)
    proposals = build_proposals(anchor_scores, anchor_group, candidates)
    pending = (proposals.available > 2 * num_negatives).nonzero()[:, 0]
    limit = _TRIALS_PER_NEGATIVE * num_negatives + 64
    begin, block = 0, _first_block(proposals.acceptance[pending], num_negatives)
    buffer = anchor_scores.new_empty(max(_GATHERED_ROWS, block) * anchor_scores.shape[1])
    while pending.numel() > 0 and begin < limit:
        end = min(begin + block, limit)
        for rows in pending.split(max(1, _CHUNK_TRIALS // (end - begin))):
            accepted = _trials(proposals, anchor_scores, candidates, rows, begin, end, key, buffer)
            picks[rows] = _append(picks[rows], *accepted, size)
        pending = pending[picks[pending, -1] < 0]
        begin, block = end, max(16, 2 * (block // 8))
    lacking = (picks[:, -1] < 0).nonzero()[:, 0]
    for rows in lacking.split(max(1, _RACE_ENTRIES // size)) if lacking.numel() else ():
        picks[rows] = _race(picks[rows], anchor_scores[rows], anchor_group[rows], candidates, rows, key)
    return picks.int()


def _first_block(acceptance: Tensor, num_negatives: int) -> int:
    """An even number of trials that suffices for most anchors; it affects the time, never the result."""
    rate = float(acceptance.mean().clamp(0.05, 1)) if acceptance.numel() else 1.0
    spread = math.sqrt(num_negatives * (1 - rate)) / rate
    return 2 * math.ceil((num_negatives / rate + 1.5 * spread) / 2) + 8


def _trials(
    proposals: Proposals,
    anchor_scores: Tensor,
    candidates: Candidates,
    rows: Tensor,
    begin: int,
    end: int,
    key: tuple[Tensor, Tensor],
    buffer: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run trials begin .. end (both even) of the anchors `rows`.

    Returns the anchor's position in `rows` and the candidate of each accepted trial, by anchor, then by trial.
    Trial t takes words 2 (t mod 2) and 2 (t mod 2) + 1 of Philox counter (t div 2, anchor). They are the slot and
    the level.
    """
    block = torch.arange(begin // 2, end // 2, device=rows.device)
    words = rng.random_words(key, rows[:, None], block, rng.STREAM_TRIALS)
    count = proposals.count[rows, None]
    product = torch.stack((words[0], words[2]), -1).flatten(1) * count
    slot = product >> 32
    # Lemire's rejection: without it the slots would not be equally likely.
    fair = product.bitwise_and_(rng.MASK) >= (1 << 32) % count.clamp_min(1)
    slot += (slot >= proposals.skip_from[rows, None]) * proposals.skip_length[rows, None]
    slot = slot.add_(proposals.first[rows, None]).flatten()
    level = rng.unit_interval(torch.stack((words[1], words[3]), -1).flatten(1)).mul_(proposals.bound[rows, None])
    drawn = proposals.entries.index_select(0, slot).long()
    ratio = proposals.ratio.index_select(0, (drawn.view(len(rows), -1) + proposals.table[rows, None]).flatten())
    if candidates.scores is not None:
        shaped = drawn.view(len(rows), -1)
        ratio *= _half_squared_distance(anchor_scores[rows], candidates.scores, shaped, buffer).flatten()
    kept = ((level.flatten() < ratio) & fair.flatten()).nonzero()[:, 0]
    return torch.div(kept, end - begin, rounding_mode="floor"), drawn.index_select(0, kept)


def _half_squared_distance(anchor_scores: Tensor, candidate_scores: Tensor, drawn: Tensor, buffer: Tensor) -> Tensor:
    """s between each anchor and the candidates proposed to it, (n, T); exact even if the scores are alike."""
    count, trials = drawn.shape
    width = candidate_scores.shape[1]
    result = candidate_scores.new_empty(count, trials)
    step = max(1, _GATHERED_ROWS // trials)
    for begin in range(0, count, step):
        index = drawn[begin : begin + step]
        gathered = buffer[: index.numel() * width].view(-1, width)
        torch.index_select(candidate_scores, 0, index.reshape(-1), out=gathered)
        difference = gathered.view(*index.shape, width).sub_(anchor_scores[begin : begin + step, None])
        torch.sum(difference.square_(), -1, out=result[begin : begin + step])
    return result.mul_(0.5)


def _append(picks: Tensor, row: Tensor, drawn: Tensor, size: int) -> Tensor:
    """Fill up picks (n, R) with the candidates `drawn` for the anchors at `row`, in order, without repeats."""
    held = picks >= 0
    held_row, held_column = held.nonzero(as_tuple=True)
    key = torch.cat([held_row * size + picks[held_row, held_column], row * size + drawn])
    ordered, order = key.sort(stable=True)
    repeat = torch.zeros_like(ordered, dtype=torch.bool)
    repeat[1:] = ordered[1:] == ordered[:-1]
    repeat = torch.empty_like(repeat).scatter_(0, order, repeat)
    fresh = (~repeat[len(held_row) :]).nonzero()[:, 0]
    row, drawn = row.index_select(0, fresh), drawn.index_select(0, fresh)
    lengths = torch.bincount(row, minlength=len(picks))
    before = held.sum(1) + lengths - lengths.cumsum(0)
    rank = torch.arange(len(row), device=row.device) + before.index_select(0, row)
    used = (rank < picks.shape[1]).nonzero()[:, 0]
    row, rank, drawn = row.index_select(0, used), rank.index_select(0, used), drawn.index_select(0, used)
    return picks.flatten().scatter(0, row * picks.shape[1] + rank, drawn).view_as(picks)


def _race(
    picks: Tensor,
    anchor_scores: Tensor,
    anchor_group: Tensor,
    candidates: Candidates,
    rows: Tensor,
    key: tuple[Tensor, Tensor],
) -> Tensor:
    """Fill up picks (n, R) by the exponential race over the candidates not yet drawn; -1 if none are left.

    Candidate q takes word q mod 4 of Philox counter (q div 4, anchor).
    """
    count, width = picks.shape
    size = len(candidates.group)
    best = torch.full((count, width), math.inf, dtype=torch.float64, device=picks.device)
    winner = torch.full_like(picks, -1)
    for begin in range(0, size, _RACE_ENTRIES):
        end = min(begin + _RACE_ENTRIES, size)
        weight = ((candidates.group[begin:end] == anchor_group[:, None]) == candidates.same).double()
        if candidates.weight is not None:
            weight *= candidates.weight[begin:end]
        if candidates.scores is not None:
            # Not by matrix product, which loses the digits of nearly equal rows. In double precision, since the order
            # of the arrivals decides the draw.
            rows_of = anchor_scores.double(), candidates.scores[begin:end].double()
            weight *= torch.cdist(*rows_of, compute_mode="donot_use_mm_for_euclid_dist").square_().mul_(0.5)
        known, column = ((picks >= begin) & (picks < end)).nonzero(as_tuple=True)
        weight[known, picks[known, column] - begin] = 0
        block = torch.arange(begin // 4, (end + 3) // 4, device=picks.device)
        words = torch.stack(rng.random_words(key, rows[:, None], block, rng.STREAM_RACE), -1).flatten(1)
        arrival = rng.unit_interval(words[:, : end - begin]).log_().neg_().div_(weight)
        index = torch.arange(begin, end, device=picks.device).expand(count, -1)
        best, place = torch.cat([best, arrival], 1).topk(width, largest=False, sorted=True)
        winner = torch.cat([winner, index], 1).gather(1, place)
    winner.masked_fill_(best.isinf(), -1)
    held = (picks >= 0).sum(1, keepdim=True)
    rank = torch.arange(width, device=picks.device) - held
    return torch.where(rank >= 0, winner.gather(1, rank.clamp_min(0)), picks)
