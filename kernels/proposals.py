"""The tables of slots from which negative sampling proposes candidates: those of `build_proposals` of the reference.

Three kernels of _envelope.py, two of this file and PyTorch's cumulative sum take the place of some 130 calls of
PyTorch; groups add a sort and searches. Whole numbers (slots, ranges) are those of the reference. Sums of float64
numbers have another order, and with it other last bits: `_SLOT_SLACK` of the reference keeps slots from depending on
them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sskd_fast.kernels import _tuning
from sskd_fast.kernels._envelope import (
    MOST_BLOCKS,
    TINY,
    beta_of,
    candidates_at,
    double,
    runs,
    spread_envelope,
)
from sskd_fast.kernels._tl import device_of

# The constants of sskd_fast/reference/proposals.py.
SLOTS = tl.constexpr(8)
SLOT_SHARE = tl.constexpr(1 - 1e-9)
EVEN_FROM = tl.constexpr(0.45 - 1e-9)
ENVELOPE_MARGIN = tl.constexpr(1 + 1e-4)


@triton.jit
def _beta_of_parts(part_moment_ptr, part_weight_ptr, part_start_ptr, cell, blocks):
    part = tl.arange(0, 2 * MOST_BLOCKS)
    mine = (tl.load(part_start_ptr + part, mask=part < 2 * blocks, other=-1) == cell) & (cell >= 0)
    moment = tl.sum(tl.load(part_moment_ptr + part, mask=mine, other=0.0), axis=0)
    return beta_of(moment, tl.sum(tl.load(part_weight_ptr + part, mask=mine, other=0.0), axis=0))


@triton.jit
def _slots(mass, mean):
    """Numbers of slots, at least proportional to the mass, about SLOTS for the mean; 0 for mass 0."""
    scale = SLOTS / tl.maximum(mean, double(TINY))
    return tl.where(mass > 0, tl.maximum(tl.ceil(mass * scale * double(SLOT_SHARE)), 1.0), 0.0)


@triton.jit
def negative_sampling_slots_kernel(
    weight_ptr, mean_ptr, order_ptr, start_ptr, distance_ptr, beta_ptr, part_moment_ptr, part_weight_ptr,
    part_start_ptr, counts_ptr, unit_ptr, size, length, blocks,
    ORDERED: tl.constexpr, CELLS: tl.constexpr, WEIGHTED: tl.constexpr, SCORED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """counts (rows, M) by place: slots in the even table if weighted, in the spread one if scored, 1 for weight > 0.

    unit (2, blocks): the largest mass of a slot of either table; beta: also of cells that parts make up.
    """
    block = tl.program_id(0).to(tl.int64)
    begin = block * length
    end = tl.minimum(begin + length, size)
    mean, even_unit, unit = double(1.0), double(0.0), double(0.0)
    if WEIGHTED:
        mean = tl.load(mean_ptr)
    if SCORED:
        earlier, later = tl.load(part_start_ptr + 2 * block), tl.load(part_start_ptr + 2 * block + 1)
        earlier_beta = _beta_of_parts(part_moment_ptr, part_weight_ptr, part_start_ptr, earlier, blocks)
        later_beta = _beta_of_parts(part_moment_ptr, part_weight_ptr, part_start_ptr, later, blocks)
        tl.store(beta_ptr + later, later_beta, mask=later >= 0)
    for first in range(begin, end, BLOCK):
        place = first + tl.arange(0, BLOCK)
        present = place < end
        _q, start, weight = candidates_at(order_ptr, start_ptr, weight_ptr, place, present, ORDERED, CELLS, WEIGHTED)
        row = counts_ptr + place
        if WEIGHTED:
            slots = _slots(weight, mean)
            even_unit = tl.maximum(even_unit, tl.max(weight / tl.maximum(slots, 1.0), axis=0))
            tl.store(row, slots.to(tl.int32), mask=present)
            row += size
        if SCORED:
            beta = tl.where(start == later, later_beta, earlier_beta)
            if CELLS:
                within = (start >= begin) & (start != later)
                beta = tl.where(within, tl.load(beta_ptr + start, mask=within, other=1.0), beta)
            mass = weight * (1.0 + tl.load(distance_ptr + place, mask=present, other=0.0) / beta)
            slots = _slots(mass, 2.0 * mean)
            unit = tl.maximum(unit, tl.max(mass / tl.maximum(slots, 1.0), axis=0))
            tl.store(row, slots.to(tl.int32), mask=present)
            row += size
        if WEIGHTED:
            tl.store(row, (weight > 0).to(tl.int32), mask=present)
    tl.store(unit_ptr + block, even_unit)
    tl.store(unit_ptr + blocks + block, unit)


@triton.jit
def _before(sums_ptr, row, place, size):
    """Sum of a row of counts over the places before `place`, of the cumulative sum of all rows."""
    at = row * size + place
    sums = tl.load(sums_ptr + at - 1, mask=at > 0, other=0)
    return sums - tl.load(sums_ptr + row * size - 1, mask=row > 0, other=0)


@triton.jit
def _ratios(ratio_ptr, q, weight, present, counts_ptr, unit_ptr, blocks):
    """ratio: weight divided by the envelope that the slots of a candidate stand for."""
    part = tl.arange(0, MOST_BLOCKS)
    unit = tl.max(tl.load(unit_ptr + part, mask=part < blocks, other=0.0), axis=0)
    slots = tl.maximum(tl.load(counts_ptr, mask=present, other=0), 1).to(tl.float64)
    tl.store(ratio_ptr + q, weight / (slots * tl.maximum(unit, double(TINY))), mask=present)


@triton.jit
def _entries(entries_ptr, order_ptr, sums_ptr, row, slot, size, steps, ORDERED: tl.constexpr):
    """Write the candidates of slots: a binary search for the last place that begins before the slot ends."""
    present = slot < _before(sums_ptr, row, size, size)
    low, high = slot * 0, slot * 0 + size
    for _step in range(steps):
        middle = (low + high) // 2
        open = present & (low < high)
        sums = tl.load(sums_ptr + row * size + middle, mask=open, other=0)
        after = sums - tl.load(sums_ptr + row * size - 1, mask=row > 0, other=0) <= slot
        low, high = tl.where(open & after, middle + 1, low), tl.where(open & ~after, middle, high)
    q = low if ORDERED else tl.load(order_ptr + low, mask=present, other=0)
    tl.store(entries_ptr + slot, q.to(tl.int32), mask=present)


@triton.jit
def _anchors(
    group_ptr, candidate_group_ptr, found_ptr, alpha_ptr, beta_ptr, start_ptr, longest_ptr, sums_ptr, ranges_ptr,
    bound_ptr, anchor, anchors, group_stride, size, blocks, anchor_blocks, even_slots,
    SAME: tl.constexpr, ONE_GROUP: tl.constexpr, CELLS: tl.constexpr, WEIGHTED: tl.constexpr, SCORED: tl.constexpr,
):  # fmt: skip
    """The ranges and the envelope of each anchor, in the rows of `ranges`."""
    present = anchor < anchors
    if ONE_GROUP:
        mine = tl.load(group_ptr + anchor * group_stride, mask=present, other=0) == tl.load(candidate_group_ptr)
        own_from, own_until = anchor * 0, tl.where(mine, size, 0).to(tl.int64)
    else:
        own_from = tl.load(found_ptr + anchor, mask=present, other=0)
        own_until = tl.load(found_ptr + anchors + anchor, mask=present, other=0)
    zero = anchor * 0
    total, first, own = zero + size, own_from, own_until - own_from
    available = own
    if WEIGHTED:
        total = _before(sums_ptr, zero, zero + size, size)
        first = _before(sums_ptr, zero, own_from, size)
        own = _before(sums_ptr, zero, own_until, size) - first
        positive = zero + (2 if SCORED else 1)
        available = _before(sums_ptr, positive, own_until, size) - _before(sums_ptr, positive, own_from, size)
    every = zero + size
    if WEIGHTED:
        every = _before(sums_ptr, positive, zero + size, size)
    spread = zero > 0
    bound = zero.to(tl.float64) + 1.0
    if SCORED:
        part = tl.arange(0, MOST_BLOCKS)
        longest = tl.max(tl.load(longest_ptr + part, mask=part < blocks, other=0.0), axis=0)
        longest += tl.max(tl.load(longest_ptr + blocks + part, mask=part < anchor_blocks, other=0.0), axis=0)
        cell = zero
        if CELLS:
            cell += tl.load(start_ptr + tl.minimum(own_from, size - 1))
        half = (tl.load(alpha_ptr + anchor, mask=present, other=0.0) + tl.load(beta_ptr + cell)) / 2
        spread = half < double(EVEN_FROM)
        bound = tl.where(spread, half * double(ENVELOPE_MARGIN), tl.maximum(longest / 2, 1.0))
        row = zero + (1 if WEIGHTED else 0)
        total = tl.where(spread, _before(sums_ptr, row, zero + size, size), total)
        spread_first = _before(sums_ptr, row, own_from, size)
        own = tl.where(spread, _before(sums_ptr, row, own_until, size) - spread_first, own)
        first = tl.where(spread, spread_first, first)
    tl.store(bound_ptr + anchor, bound, mask=present)
    ranges_ptr += anchor
    base = tl.where(spread, even_slots, 0).to(tl.int64)
    if SAME:
        first, count, skip_from, skip_length = first + base, own, total, zero
    else:
        first, count, skip_from, skip_length = base, total - own, first, own
        available = every - available
    tl.store(ranges_ptr, tl.where(spread, size, 0).to(tl.int64), mask=present)
    tl.store(ranges_ptr + anchors, first, mask=present)
    tl.store(ranges_ptr + 2 * anchors, count, mask=present)
    tl.store(ranges_ptr + 3 * anchors, skip_from, mask=present)
    tl.store(ranges_ptr + 4 * anchors, skip_length, mask=present)
    tl.store(ranges_ptr + 5 * anchors, available, mask=present)
    tl.store(ranges_ptr + 6 * anchors, own_from, mask=present)
    tl.store(ranges_ptr + 7 * anchors, own_until, mask=present)


@triton.jit
def negative_sampling_layout_kernel(
    group_ptr, candidate_group_ptr, found_ptr, alpha_ptr, beta_ptr, start_ptr, longest_ptr, weight_ptr, order_ptr,
    counts_ptr, sums_ptr, unit_ptr, places_ptr, entries_ptr, ratio_ptr, ranges_ptr, bound_ptr,
    anchors, group_stride, size, blocks, anchor_blocks, even_slots, most_slots, steps,
    SAME: tl.constexpr, ONE_GROUP: tl.constexpr, ORDERED: tl.constexpr, CELLS: tl.constexpr, WEIGHTED: tl.constexpr,
    SCORED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The tables themselves. Programs come in three kinds: for anchors, for candidates, and for slots of each table."""
    block, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    candidate_blocks, anchors_until = tl.cdiv(size, BLOCK), tl.cdiv(anchors, BLOCK)
    if block < anchors_until:
        _anchors(
            group_ptr, candidate_group_ptr, found_ptr, alpha_ptr, beta_ptr, start_ptr, longest_ptr, sums_ptr,
            ranges_ptr, bound_ptr, block * BLOCK + lane, anchors, group_stride, size, blocks, anchor_blocks,
            even_slots, SAME, ONE_GROUP, CELLS, WEIGHTED, SCORED,
        )  # fmt: skip
    elif block < anchors_until + candidate_blocks:
        place = (block - anchors_until) * BLOCK + lane
        present = place < size
        q, _start, weight = candidates_at(order_ptr, start_ptr, weight_ptr, place, present, ORDERED, False, WEIGHTED)
        tl.store(places_ptr + place, q.to(tl.int32), mask=present)
        counts = counts_ptr + place
        if WEIGHTED:
            _ratios(ratio_ptr, q, weight, present, counts, unit_ptr, blocks)
            counts += size
        else:
            tl.store(ratio_ptr + q, weight, mask=present)
        if SCORED:
            _ratios(ratio_ptr + size, q, weight, present, counts, unit_ptr + blocks, blocks)
    elif WEIGHTED or SCORED:
        slot_block = block - anchors_until - candidate_blocks
        row = slot_block * 0
        base = row
        if WEIGHTED and SCORED:
            row = slot_block // tl.cdiv(most_slots, BLOCK)
            base = row * even_slots
        elif SCORED:
            base += even_slots
        slot = (slot_block - row * tl.cdiv(most_slots, BLOCK)) * BLOCK + lane
        _entries(entries_ptr + base, order_ptr, sums_ptr, row, slot, size, steps, ORDERED)


def _sorted(group: Tensor, anchor_group: Tensor, cells: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates by group, the first place of each place's cell, and the range (2, A) of each anchor's group."""
    grouped, order = group.sort(stable=True)
    ranges = torch.empty(2, len(anchor_group), dtype=torch.int64, device=group.device)
    for right in (False, True):
        torch.searchsorted(grouped, anchor_group.contiguous(), right=right, out=ranges[int(right)])
    return order, torch.searchsorted(grouped, grouped, out_int32=True) if cells else order, ranges


def build_proposals(
    anchors: Tensor, anchor_group: Tensor, scores: Tensor | None, weight: Tensor | None, group: Tensor, same: bool
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The fields of `Proposals` of the reference, without `acceptance`, and a centre of the scores in its first row.

    For at least one anchor and candidate.  anchors, scores: of `padded_rows`.  Candidates of one group need no sort:
    `group` then has stride 0. Entries that no anchor's range reaches are left as they are. The centre is that of the
    candidates' first cell (see _envelope.py); without scores, any tensor.
    """
    count, size, device = len(anchor_group), len(group), group.device
    one_group = size == 1 or group.stride(0) == 0
    weighted, scored = weight is not None, scores is not None
    flags = {"ORDERED": one_group, "CELLS": same and scored and not one_group, "WEIGHTED": weighted}
    doubles = {"dtype": torch.float64, "device": device}
    (blocks, length), (anchor_blocks, _), rows = runs(size), runs(count), int(scored) + 2 * int(weighted)
    most = (SLOTS.value + 1) * size
    even_slots = most if weighted else size
    unit, bound = torch.empty(2 * blocks, **doubles), torch.empty(count, **doubles)
    counts = torch.empty(rows, size, dtype=torch.int32, device=device)
    weights, mean = (bound, bound) if weight is None else (weight, weight.mean())
    with device_of(group):
        order, start, own = (group,) * 3 if one_group else _sorted(group, anchor_group, flags["CELLS"])
        centre = distance = alpha = beta = moment = mass = parts = longest = unit
        if scores is not None:
            centre, distance, alpha, beta, moment, mass, parts, longest = spread_envelope(
                anchors, scores, weights, order, start, own, flags
            )
        if rows > 0:
            negative_sampling_slots_kernel[(blocks,)](
                weights, mean, order, start, distance, beta, moment, mass, parts, counts, unit, size, length, blocks,
                **flags, SCORED=scored, **_tuning.proposals_slots(),
            )  # fmt: skip
        sums = counts.view(-1).cumsum(0) if rows > 0 else counts
        entries = torch.empty(even_slots + (most if scored else 0), dtype=torch.int32, device=device)
        places = torch.empty(size, dtype=torch.int32, device=device) if weighted else entries[:size]
        ratio, ranges = torch.empty((1 + scored) * size, **doubles), own.new_empty(8, count)
        tuning: dict[str, Any] = _tuning.proposals_layout()
        programs = (triton.cdiv(n, tuning["BLOCK"]) for n in (count, size, *[most] * (weighted + scored)))
        negative_sampling_layout_kernel[(sum(programs),)](
            anchor_group, group, own, alpha, beta, start, longest, weights, order, counts, sums, unit, places, entries,
            ratio, ranges, bound, count, anchor_group.stride(0), size, blocks, anchor_blocks, even_slots, most,
            size.bit_length(), SAME=same, ONE_GROUP=one_group, **flags, SCORED=scored, **tuning,
        )  # fmt: skip
    table, first, numbers, skip_from, skip_length, available, own_from, own_until = ranges
    tables = (
        entries, ratio, table, first, numbers, skip_from, skip_length, bound, available, places, own_from, own_until
    )  # fmt: skip
    return tables, centre
