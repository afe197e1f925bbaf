"""Negative sampling: one program for each anchor. Blocks of trials, then the exact race for the missing negatives.

The law, the tables of slots and the order of the random words are those of sskd_fast/reference. Comparisons that decide
a draw are in double precision, as there. The kernels of proposals.py build the tables without reading a value on the
host, so a CUDA graph can capture the whole operator. That is why the race is launched for all anchors: a program passes
over those that lack nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sskd_fast.kernels import _tuning
from sskd_fast.kernels._compressed import CompressedRows, bounds, compress, own_layers
from sskd_fast.kernels._tl import (
    NOBODY,
    STREAM_RACE,
    STREAM_TRIALS,
    device_of,
    held_already,
    padded_rows,
    squared_distance,
    squared_distances,
    unit_interval,
)
from sskd_fast.kernels.proposals import build_proposals

TRIALS_PER_NEGATIVE = 16


@triton.jit
def _proposals(seed_ptr, anchor, block, slots, bound, entries_ptr, BLOCK_T: tl.constexpr):
    """Candidates and levels of the trials from BLOCK_T * block on; the level of an unfair trial is infinite.

    Trial t takes words 2 (t mod 2) and 2 (t mod 2) + 1 of Philox counter (t div 2, anchor). They are the slot and
    the level.
    """
    first, count, unfair_below, skip_from, skip_length = slots
    column = (block * (BLOCK_T // 2) + tl.arange(0, BLOCK_T // 2)).to(tl.uint32)
    none = column * 0
    # The key is read each time: otherwise the keys of the ten rounds would occupy twenty registers.
    key = tl.load(seed_ptr)
    w0, w1, w2, w3 = tl.philox(key, column, none + anchor.to(tl.uint32), none + STREAM_TRIALS, none)
    word = tl.reshape(tl.join(w0, w2), [BLOCK_T])
    # Lemire's rejection: without it the slots would not be equally likely.
    fair = word * count >= unfair_below
    slot = tl.umulhi(word, tl.zeros_like(word) + count)
    slot = (slot + tl.where(slot >= skip_from, skip_length, 0)).to(tl.int64) + first
    level = unit_interval(tl.reshape(tl.join(w1, w3), [BLOCK_T])) * bound
    return tl.load(entries_ptr + slot), tl.where(fair, level, float("inf"))


@triton.jit
def _repeats(drawn, accepted, BLOCK_T: tl.constexpr):
    """Mask of accepted candidates that an earlier accepted trial of the block has drawn already."""
    place = tl.arange(0, BLOCK_T)
    marked = tl.where(accepted, drawn, NOBODY)
    earlier = tl.where(place[:, None] < place[None, :], marked[:, None] ^ drawn[None, :], NOBODY)
    return tl.min(earlier, axis=0) == 0


@triton.jit
def negative_sampling_trials_kernel(
    anchor_scores_ptr, candidate_scores_ptr, layers_ptr, headers_ptr, coarse_ptr, fine_ptr, own_headers_ptr,
    entries_ptr, ratio_ptr, table_ptr, first_ptr, count_ptr, skip_from_ptr, skip_length_ptr, bound_ptr, available_ptr,
    seed_ptr, picks_ptr, held_ptr, num_negatives, limit,
    SCORED: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_HELD: tl.constexpr,
    BLOCK_K: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Rejection: fills picks (A, R) from the left, the rest is -1, and writes their numbers to held (A,)."""
    anchor = tl.program_id(0).to(tl.int64)
    count = tl.load(count_ptr + anchor).to(tl.uint32)
    picks_ptr += anchor * num_negatives
    held = 0
    if (tl.load(available_ptr + anchor) > 2 * num_negatives) & (count > 0):
        skip_from, skip_length = tl.load(skip_from_ptr + anchor), tl.load(skip_length_ptr + anchor)
        unfair_below = (0 - count) % count  # 2^32 mod count
        slots = tl.load(first_ptr + anchor), count, unfair_below, skip_from.to(tl.uint32), skip_length.to(tl.uint32)
        bound = tl.load(bound_ptr + anchor)
        ratio_ptr += tl.load(table_ptr + anchor)
        place = tl.arange(0, BLOCK_T)
        if SCORED:
            own = own_layers(coarse_ptr, fine_ptr, anchor, tl.arange(0, BLOCK_K), WIDTH, STRIDE, PRODUCTS)
        drawn, level = _proposals(seed_ptr, anchor, 0, slots, bound, entries_ptr, BLOCK_T)
        block = 0
        while (held < num_negatives) & (block * BLOCK_T < limit):
            # Look up the next block while the rows of this one are in flight.
            next_drawn, next_level = _proposals(seed_ptr, anchor, block + 1, slots, bound, entries_ptr, BLOCK_T)
            ratio = tl.load(ratio_ptr + drawn)
            within = block * BLOCK_T + place < limit
            if SCORED:
                low, high = bounds(
                    layers_ptr, headers_ptr, drawn, coarse_ptr, fine_ptr, own, own_headers_ptr, anchor, WIDTH, STRIDE,
                    BLOCK_K, PRODUCTS,
                )  # fmt: skip
                accepted = (level < ratio * low) & within
                unsettled = tl.where(accepted | (level >= ratio * high) | ~within, BLOCK_T, place)
                at = tl.min(unsettled, axis=0)
                while at < BLOCK_T:
                    row = tl.sum(tl.where(place == at, drawn, 0), axis=0).to(tl.int64)
                    squares = squared_distance(
                        candidate_scores_ptr + row * WIDTH, anchor_scores_ptr + anchor * WIDTH, WIDTH, BLOCK_K,
                        candidate_scores_ptr.dtype.element_ty,
                    )  # fmt: skip
                    accepted |= (place == at) & (level < ratio * (squares * 0.5).to(tl.float64))
                    unsettled = tl.where(place == at, BLOCK_T, unsettled)
                    at = tl.min(unsettled, axis=0)
            else:
                accepted = (level < ratio) & within
            fresh = accepted & ~held_already(picks_ptr, held, drawn, BLOCK_HELD) & ~_repeats(drawn, accepted, BLOCK_T)
            rank = held + tl.cumsum(fresh.to(tl.int32), axis=0) - 1
            tl.store(picks_ptr + rank, drawn, mask=fresh & (rank < num_negatives))
            tl.debug_barrier()  # other threads read these picks next
            held = tl.minimum(held + tl.sum(fresh.to(tl.int32), axis=0), num_negatives)
            drawn, level = next_drawn, next_level
            block += 1
    for begin in range(held, num_negatives, BLOCK_HELD):
        rest = begin + tl.arange(0, BLOCK_HELD)
        tl.store(picks_ptr + rest, -1, mask=rest < num_negatives)
    tl.store(held_ptr + anchor, held)


@triton.jit
def _arrivals(
    seed_ptr, anchor, q, anchor_scores_ptr, candidate_scores_ptr, weight_ptr, present, lines,
    SCORED: tl.constexpr, WEIGHTED: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Arrival times of candidates q [BLOCK] in the exponential race, infinite for weight 0.

    Candidate q takes word q mod 4 of Philox counter (q div 4, anchor).
    """
    column = (q // 4).to(tl.uint32)
    none = column * 0
    w0, w1, w2, w3 = tl.philox(tl.load(seed_ptr), column, none + anchor.to(tl.uint32), none + STREAM_RACE, none)
    word = tl.where(q % 4 < 2, tl.where(q % 4 == 0, w0, w1), tl.where(q % 4 == 2, w2, w3))
    weight = tl.where(present, 1.0, 0.0).to(tl.float64)
    if WEIGHTED:
        weight *= tl.load(weight_ptr + q, mask=present, other=0.0)
    if SCORED:
        own_ptr = anchor_scores_ptr + anchor * WIDTH
        weight *= squared_distances(candidate_scores_ptr, q, present, own_ptr, lines, WIDTH, COLUMNS, tl.float64) * 0.5
    return tl.where(weight > 0, -tl.log(unit_interval(word)) / weight, float("inf"))


@triton.jit
def negative_sampling_race_kernel(
    anchor_scores_ptr, candidate_scores_ptr, weight_ptr, order_ptr, own_from_ptr, own_until_ptr, available_ptr,
    seed_ptr, picks_ptr, held_ptr, anchors, num_candidates, num_negatives, lines,
    SAME: tl.constexpr, SCORED: tl.constexpr, WEIGHTED: tl.constexpr, WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_HELD: tl.constexpr,
):  # fmt: skip
    """Fills up the picks with the first arrivals among the candidates in scope that are not yet drawn.

    The programs share the anchors, nearly all of which lack nothing.
    """
    anchor = tl.program_id(0).to(tl.int64)
    while anchor < anchors:
        held = tl.load(held_ptr + anchor)
        wanted = num_negatives - held
        if (wanted > 0) & (tl.load(available_ptr + anchor) > held):
            own_from, own_until = tl.load(own_from_ptr + anchor), tl.load(own_until_ptr + anchor)
            in_scope = own_until - own_from
            if not SAME:
                in_scope = num_candidates - in_scope
            own_picks_ptr = picks_ptr + anchor * num_negatives
            # The best so far, in no order; places beyond the number wanted never count as the worst.
            slot = tl.arange(0, BLOCK_R)
            best = tl.where(slot < wanted, float("inf"), -1.0).to(tl.float64)
            winner = tl.full([BLOCK_R], -1, dtype=tl.int32)
            worst = tl.max(best, axis=0)
            lane = tl.arange(0, BLOCK_Q)
            for begin in range(0, in_scope, BLOCK_Q):
                place = begin + lane
                present = place < in_scope
                if SAME:
                    place += own_from
                else:
                    place += tl.where(place >= own_from, own_until - own_from, 0)
                q = tl.load(order_ptr + place, mask=present, other=0)
                present = present & ~held_already(own_picks_ptr, held, q, BLOCK_HELD)
                arrival = _arrivals(
                    seed_ptr, anchor, q, anchor_scores_ptr, candidate_scores_ptr, weight_ptr, present, lines,
                    SCORED, WEIGHTED, WIDTH, COLUMNS,
                )  # fmt: skip
                earliest = tl.min(arrival, axis=0)
                while earliest < worst:
                    at = tl.argmin(arrival, axis=0)
                    out = tl.argmax(best, axis=0)
                    best = tl.where(slot == out, earliest, best)
                    winner = tl.where(slot == out, tl.sum(tl.where(lane == at, q, 0), axis=0), winner)
                    arrival = tl.where(lane == at, float("inf"), arrival)
                    worst = tl.max(best, axis=0)
                    earliest = tl.min(arrival, axis=0)
            best = tl.where(winner >= 0, best, float("inf"))
            earliest = tl.min(best, axis=0)
            while earliest < float("inf"):
                at = tl.argmin(best, axis=0)
                tl.store(own_picks_ptr + held, tl.sum(tl.where(slot == at, winner, 0), axis=0))
                held += 1
                best = tl.where(slot == at, float("inf"), best)
                earliest = tl.min(best, axis=0)
        anchor += tl.num_programs(0)


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
    """Indices (A, R) int32, see the reference."""
    anchors, size = len(anchor_group), len(candidate_group)
    picks = torch.empty(anchors, num_negatives, dtype=torch.int32, device=anchor_scores.device)
    if anchors == 0 or size == 0:
        return picks.fill_(-1)
    held = torch.empty(anchors, dtype=torch.int32, device=anchor_scores.device)
    scored = candidate_scores is not None
    rows = padded_rows(anchor_scores) if scored else anchor_scores
    candidates = rows
    if candidate_scores is not None and not _same_memory(anchor_scores, candidate_scores):
        candidates = padded_rows(candidate_scores)
    weight = None if candidate_weight is None else candidate_weight.contiguous()
    tables, centre = build_proposals(rows, anchor_group, candidates if scored else None, weight, candidate_group, same)
    *trials, available, order, own_from, own_until = tables
    width = rows.shape[1] if scored else 1
    coarse = fine = compressed = CompressedRows(picks, picks)
    if scored:
        coarse, fine = compress(rows, centre, fine=True)
        compressed = coarse if candidates is rows else compress(candidates, centre, fine=False)[0]
    limit = TRIALS_PER_NEGATIVE * num_negatives + 64
    columns = _tuning.line_columns(rows.dtype)
    lines = triton.cdiv(width, columns)
    with device_of(picks):
        negative_sampling_trials_kernel[(anchors,)](
            rows, candidates, *compressed, coarse.layers, *fine, *trials, available, seed, picks, held, num_negatives,
            limit, SCORED=scored, WIDTH=width, **_tuning.sampling_trials(width),
        )  # fmt: skip
        negative_sampling_race_kernel[(min(anchors, _tuning.RACE_PROGRAMS),)](
            rows, candidates, order if weight is None else weight, order, own_from, own_until, available, seed, picks,
            held, anchors, size, num_negatives, lines, SAME=same, SCORED=scored, WEIGHTED=weight is not None,
            WIDTH=width, COLUMNS=columns, **_tuning.sampling_race(num_negatives),
        )  # fmt: skip
    return picks


def _same_memory(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride()
