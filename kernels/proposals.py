"""The tables of slots from which negative sampling proposes candidates, as `build_proposals` of the reference has them.

Five kernels and PyTorch's cumulative sum take the place of about 130 calls of PyTorch; groups add a sort and searches.
Whole numbers (slots, ranges) are those of the reference. Sums of float64 numbers have another order, and with it other
last bits: `_SLOT_SLACK` of the reference keeps slots from depending on them.

A place is a position in the order of the candidates by group. A block is a run of places that one program reads, and
there are at most 512. A cell is the places with a common centre, and goes by its first place: a group with scope "same",
else everything. A block sums each of its cells. Cells that begin and end inside it are done then. The others leave up
to two parts, number 2 * block of a cell that began earlier and number 2 * block + 1 of one that may go on. One program
adds up the parts of a cell, so every run gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sskd_fast.kernels import _tuning
from sskd_fast.kernels._tl import device_of

# The constants of sskd_fast/reference/proposals.py.
SLOTS = tl.constexpr(8)
SLOT_SHARE = tl.constexpr(1 - 1e-9)
EVEN_FROM = tl.constexpr(0.45 - 1e-9)
ALIKE, ALIKE_BETA = tl.constexpr(1e-26), tl.constexpr(1e-12)
ENVELOPE_MARGIN = tl.constexpr(1 + 1e-4)
TINY = tl.constexpr(torch.finfo(torch.float64).tiny)
_MOST_BLOCKS = 512
BLOCKS = tl.constexpr(_MOST_BLOCKS)
_SHORTEST_BLOCK = 32


@triton.jit
def _double(value: tl.constexpr):
    """A constant in float64: next to a tensor Triton may round it to float32."""
    return tl.full([], value, tl.float64)


@triton.jit
def _candidates(order_ptr, start_ptr, weight_ptr, place, present, ORDERED: tl.constexpr, CELLS: tl.constexpr,
                WEIGHTED: tl.constexpr):  # fmt: skip
    """Candidate, first place of its cell (-1 if absent) and weight of each place."""
    q = place if ORDERED else tl.load(order_ptr + place, mask=present, other=0)
    start = tl.where(present, 0, -1).to(tl.int64)
    if CELLS:
        start = tl.load(start_ptr + place, mask=present, other=-1).to(tl.int64)
    weight = tl.where(present, 1.0, 0.0).to(tl.float64)
    if WEIGHTED:
        weight = tl.load(weight_ptr + q, mask=present, other=0.0)
    return q, start, weight


@triton.jit
def _first_cell(start_ptr, begin, CELLS: tl.constexpr):
    return tl.load(start_ptr + begin).to(tl.int64) if CELLS else begin * 0


@triton.jit
def _next_cell(start, cell, size):
    return tl.min(tl.where(start > cell, start, size), axis=0)


@triton.jit
def _beta(moment, mass):
    """Mean squared distance from the centre, or what takes its place for rows that are alike."""
    mean = moment / tl.maximum(mass, _double(TINY))
    return tl.where(mean > _double(ALIKE), mean, _double(ALIKE_BETA))


@triton.jit
def negative_sampling_sums_kernel(
    rows_ptr, weight_ptr, order_ptr, start_ptr, centre_ptr, part_ptr, part_weight_ptr, part_start_ptr, size, length,
    ORDERED: tl.constexpr, CELLS: tl.constexpr, WEIGHTED: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Weighted sums of the rows of a block by cell, a line of 128 bytes of the rows: centres, and parts of centres."""
    block, line = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin = block * length
    end = tl.minimum(begin + length, size)
    columns = line * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < WIDTH
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float64)
    mass = tl.zeros([ROWS], dtype=tl.float64)
    cell = _first_cell(start_ptr, begin, CELLS)
    if line == 0:
        tl.store(part_start_ptr + 2 * block, tl.where(cell < begin, cell, -1))
    for first in range(begin, end, ROWS):
        place = first + tl.arange(0, ROWS)
        q, start, weight = _candidates(
            order_ptr, start_ptr, weight_ptr, place, place < end, ORDERED, CELLS, WEIGHTED
        )  # fmt: skip
        offsets = q[:, None] * WIDTH + columns[None, :]
        x = tl.load(rows_ptr + offsets, mask=(place < end)[:, None] & inside[None, :], other=0.0).to(tl.float64)
        x *= weight[:, None]
        if CELLS:
            last = tl.max(start, axis=0)
            while cell < last:  # a cell that ends here
                total += tl.where((start == cell)[:, None], x, 0.0)
                mass += tl.where(start == cell, weight, 0.0)
                sums, whole = tl.sum(total, axis=0), tl.sum(mass, axis=0)
                if cell < begin:
                    tl.store(part_ptr + 2 * block * WIDTH + columns, sums, mask=inside)
                    tl.store(part_weight_ptr + 2 * block, whole, mask=line == 0)
                else:
                    sums /= tl.maximum(whole, _double(TINY))
                    tl.store(centre_ptr + cell * WIDTH + columns, sums, mask=inside)
                total = tl.zeros([ROWS, COLUMNS], dtype=tl.float64)
                mass = tl.zeros([ROWS], dtype=tl.float64)
                cell = _next_cell(start, cell, size)
        total += tl.where((start == cell)[:, None], x, 0.0)
        mass += tl.where(start == cell, weight, 0.0)
    part = 2 * block + (cell >= begin).to(tl.int64)
    tl.store(part_ptr + part * WIDTH + columns, tl.sum(total, axis=0), mask=inside)
    if line == 0:
        tl.store(part_weight_ptr + part, tl.sum(mass, axis=0))
        tl.store(part_start_ptr + 2 * block + 1, tl.where(cell >= begin, cell, -1))


@triton.jit
def negative_sampling_centres_kernel(
    part_ptr, part_weight_ptr, part_start_ptr, centre_ptr, blocks,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The centre of the cell that may go on beyond a block in which it began: a line of it."""
    block = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < WIDTH
    cell = tl.load(part_start_ptr + 2 * block + 1)
    if cell >= 0:
        total = tl.zeros([ROWS, COLUMNS], dtype=tl.float64)
        mass = tl.zeros([ROWS], dtype=tl.float64)
        for first in range(2 * block + 1, 2 * blocks, ROWS):
            part = first + tl.arange(0, ROWS)
            mine = tl.load(part_start_ptr + part, mask=part < 2 * blocks, other=-1) == cell
            offsets = part[:, None] * WIDTH + columns[None, :]
            total += tl.load(part_ptr + offsets, mask=mine[:, None] & inside[None, :], other=0.0)
            mass += tl.load(part_weight_ptr + part, mask=mine, other=0.0)
        sums = tl.sum(total, axis=0) / tl.maximum(tl.sum(mass, axis=0), _double(TINY))
        tl.store(centre_ptr + cell * WIDTH + columns, sums, mask=inside)


@triton.jit
def _distances(rows_ptr, index, present, centre_ptr, cell, lines, CELLS: tl.constexpr, WIDTH: tl.constexpr,
               COLUMNS: tl.constexpr):  # fmt: skip
    """Squared distance [ROWS] of rows from the centres of their cells, and squared norm."""
    squares = tl.zeros([index.shape[0], COLUMNS], dtype=tl.float64)
    norms = tl.zeros([index.shape[0], COLUMNS], dtype=tl.float64)
    for line in range(lines):
        columns = line * COLUMNS + tl.arange(0, COLUMNS)
        inside = columns < WIDTH
        mask = present[:, None] & inside[None, :]
        x = tl.load(rows_ptr + index[:, None] * WIDTH + columns[None, :], mask=mask, other=0.0).to(tl.float64)
        if CELLS:
            centre = tl.load(centre_ptr + cell[:, None] * WIDTH + columns[None, :], mask=mask, other=0.0)
        else:
            centre = tl.load(centre_ptr + columns, mask=inside, other=0.0)[None, :]
        squares += tl.where(mask, (x - centre) * (x - centre), 0.0)
        norms += x * x
    return tl.sum(squares, axis=1), tl.sum(norms, axis=1)


@triton.jit
def negative_sampling_distances_kernel(
    anchors_ptr, rows_ptr, weight_ptr, order_ptr, start_ptr, own_from_ptr, centre_ptr, distance_ptr, alpha_ptr,
    beta_ptr, part_moment_ptr, longest_ptr, size, length, blocks, anchors, anchors_length, lines,
    ORDERED: tl.constexpr, CELLS: tl.constexpr, WEIGHTED: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Squared distances from the centres: of the candidates, by place, with their sums by cell; then of the anchors.

    longest (blocks of both): the largest squared norm of a row.
    """
    block = tl.program_id(0).to(tl.int64)
    longest = _double(0.0)
    if block >= blocks:
        begin = (block - blocks) * anchors_length
        end = tl.minimum(begin + anchors_length, anchors)
        for first in range(begin, end, ROWS):
            anchor = first + tl.arange(0, ROWS)
            cell = anchor * 0
            if CELLS:
                own = tl.load(own_from_ptr + anchor, mask=anchor < end, other=0)
                cell += tl.load(start_ptr + tl.minimum(own, size - 1))
            alpha, norms = _distances(
                anchors_ptr, anchor, anchor < end, centre_ptr, cell, lines, CELLS, WIDTH, COLUMNS
            )  # fmt: skip
            tl.store(alpha_ptr + anchor, alpha, mask=anchor < end)
            longest = tl.maximum(longest, tl.max(norms, axis=0))
    else:
        begin = block * length
        end = tl.minimum(begin + length, size)
        moment, mass = tl.zeros([ROWS], dtype=tl.float64), tl.zeros([ROWS], dtype=tl.float64)
        cell = _first_cell(start_ptr, begin, CELLS)
        for first in range(begin, end, ROWS):
            place = first + tl.arange(0, ROWS)
            q, start, weight = _candidates(
                order_ptr, start_ptr, weight_ptr, place, place < end, ORDERED, CELLS, WEIGHTED
            )  # fmt: skip
            distance, norms = _distances(rows_ptr, q, place < end, centre_ptr, start, lines, CELLS, WIDTH, COLUMNS)
            tl.store(distance_ptr + place, distance, mask=place < end)
            longest = tl.maximum(longest, tl.max(norms, axis=0))
            if CELLS:
                last = tl.max(start, axis=0)
                while cell < last:
                    moment += tl.where(start == cell, distance * weight, 0.0)
                    mass += tl.where(start == cell, weight, 0.0)
                    whole = tl.sum(moment, axis=0)
                    if cell < begin:
                        tl.store(part_moment_ptr + 2 * block, whole)
                    else:
                        tl.store(beta_ptr + cell, _beta(whole, tl.sum(mass, axis=0)))
                    moment, mass = tl.zeros([ROWS], dtype=tl.float64), tl.zeros([ROWS], dtype=tl.float64)
                    cell = _next_cell(start, cell, size)
            moment += tl.where(start == cell, distance * weight, 0.0)
            mass += tl.where(start == cell, weight, 0.0)
        tl.store(part_moment_ptr + 2 * block + (cell >= begin).to(tl.int64), tl.sum(moment, axis=0))
    tl.store(longest_ptr + block, longest)


@triton.jit
def _beta_of_parts(part_moment_ptr, part_weight_ptr, part_start_ptr, cell, blocks):
    part = tl.arange(0, 2 * BLOCKS)
    mine = (tl.load(part_start_ptr + part, mask=part < 2 * blocks, other=-1) == cell) & (cell >= 0)
    moment = tl.sum(tl.load(part_moment_ptr + part, mask=mine, other=0.0), axis=0)
    return _beta(moment, tl.sum(tl.load(part_weight_ptr + part, mask=mine, other=0.0), axis=0))


@triton.jit
def _slots(mass, mean):
    """Numbers of slots, at least proportional to the mass, about SLOTS for the mean; 0 for mass 0."""
    scale = SLOTS / tl.maximum(mean, _double(TINY))
    return tl.where(mass > 0, tl.maximum(tl.ceil(mass * scale * _double(SLOT_SHARE)), 1.0), 0.0)


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
    mean, even_unit, unit = _double(1.0), _double(0.0), _double(0.0)
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
        _q, start, weight = _candidates(order_ptr, start_ptr, weight_ptr, place, present, ORDERED, CELLS, WEIGHTED)
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
    part = tl.arange(0, BLOCKS)
    unit = tl.max(tl.load(unit_ptr + part, mask=part < blocks, other=0.0), axis=0)
    slots = tl.maximum(tl.load(counts_ptr, mask=present, other=0), 1).to(tl.float64)
    tl.store(ratio_ptr + q, weight / (slots * tl.maximum(unit, _double(TINY))), mask=present)


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
        part = tl.arange(0, BLOCKS)
        longest = tl.max(tl.load(longest_ptr + part, mask=part < blocks, other=0.0), axis=0)
        longest += tl.max(tl.load(longest_ptr + blocks + part, mask=part < anchor_blocks, other=0.0), axis=0)
        cell = zero
        if CELLS:
            cell += tl.load(start_ptr + tl.minimum(own_from, size - 1))
        half = (tl.load(alpha_ptr + anchor, mask=present, other=0.0) + tl.load(beta_ptr + cell)) / 2
        spread = half < _double(EVEN_FROM)
        bound = tl.where(spread, half * _double(ENVELOPE_MARGIN), tl.maximum(longest / 2, 1.0))
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
        q, _start, weight = _candidates(order_ptr, start_ptr, weight_ptr, place, present, ORDERED, False, WEIGHTED)
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


def _runs(count: int) -> tuple[int, int]:
    """(number, length) of runs that cut `count` rows into at most _MOST_BLOCKS."""
    length = max(_SHORTEST_BLOCK, triton.next_power_of_2(triton.cdiv(count, _MOST_BLOCKS)))
    return triton.cdiv(count, length), length


def build_proposals(
    anchors: Tensor, anchor_group: Tensor, scores: Tensor | None, weight: Tensor | None, group: Tensor, same: bool
) -> tuple[Tensor, ...]:
    """`Proposals.tables()` of the reference, for at least one anchor and candidate.

    anchors, scores: of `padded_rows`.  Candidates of one group need no sort: `group` then has stride 0. Entries that no
    anchor's range reaches are left as they are.
    """
    count, size, device = len(anchor_group), len(group), group.device
    one_group = size == 1 or group.stride(0) == 0
    weighted, scored = weight is not None, scores is not None
    cells = same and scored and not one_group
    order = start = found = anchor_group
    if not one_group:
        grouped, order = group.sort(stable=True)
        own = anchor_group.contiguous()
        found = torch.empty(2, count, dtype=torch.int64, device=device)
        for right in (False, True):
            torch.searchsorted(grouped, own, right=right, out=found[int(right)])
        start = torch.searchsorted(grouped, grouped, out_int32=True) if cells else found
    doubles, ints = {"dtype": torch.float64, "device": device}, {"dtype": torch.int32, "device": device}
    (blocks, length), (anchor_blocks, anchors_length) = _runs(size), _runs(count)
    rows = int(scored) + 2 * int(weighted)
    most = (SLOTS.value + 1) * size
    even_slots = most if weighted else size
    unit, bound = torch.empty(2, blocks, **doubles), torch.empty(count, **doubles)
    beta, alpha = torch.empty(size if cells else 1, **doubles), torch.empty(count, **doubles)
    longest, distance = torch.empty(blocks + anchor_blocks, **doubles), torch.empty(size, **doubles)
    part_weight, part_moment = torch.empty(2 * blocks, **doubles), torch.empty(2 * blocks, **doubles)
    part_start, counts = torch.empty(2 * blocks, **ints), torch.empty(rows, size, **ints)
    weights, mean = (bound, bound) if weight is None else (weight.contiguous(), weight.mean())
    flags = {"ORDERED": one_group, "CELLS": cells, "WEIGHTED": weighted}
    with device_of(group):
        if scores is not None:
            width = scores.shape[1]
            tuning = _tuning.proposals_rows(scores.dtype)
            lines = triton.cdiv(width, tuning["COLUMNS"])
            parts, centres = torch.empty(2 * blocks, width, **doubles), torch.empty(len(beta), width, **doubles)
            negative_sampling_sums_kernel[(blocks, lines)](
                scores, weights, order, start, centres, parts, part_weight, part_start, size, length,
                **flags, WIDTH=width, **tuning,
            )  # fmt: skip
            negative_sampling_centres_kernel[(blocks if cells else 1, lines)](
                parts, part_weight, part_start, centres, blocks, WIDTH=width, **tuning
            )
            negative_sampling_distances_kernel[(blocks + anchor_blocks,)](
                anchors, scores, weights, order, start, found, centres, distance, alpha, beta, part_moment, longest,
                size, length, blocks, count, anchors_length, lines, **flags, WIDTH=width, **tuning,
            )  # fmt: skip
        sums = counts
        if rows > 0:
            negative_sampling_slots_kernel[(blocks,)](
                weights, mean, order, start, distance, beta, part_moment, part_weight, part_start, counts, unit, size,
                length, blocks, **flags, SCORED=scored, **_tuning.proposals_slots(),
            )  # fmt: skip
            sums = counts.view(-1).cumsum(0)
        tuning = _tuning.proposals_layout()
        tables = weighted + scored
        entries = torch.empty(even_slots + (most if scored else 0), **ints)
        ratio, ranges = torch.empty((1 + scored) * size, **doubles), torch.empty(8, count, dtype=torch.int64, device=device)
        places = torch.empty(size, **ints) if weighted else entries[:size]
        programs = triton.cdiv(count, tuning["BLOCK"]) + triton.cdiv(size, tuning["BLOCK"])
        programs += tables * triton.cdiv(most, tuning["BLOCK"])
        negative_sampling_layout_kernel[(programs,)](
            anchor_group, group, found, alpha, beta, start, longest, weights, order, counts, sums, unit, places, entries,
            ratio, ranges, bound, count, anchor_group.stride(0), size, blocks, anchor_blocks, even_slots, most,
            size.bit_length(), SAME=same, ONE_GROUP=one_group, **flags, SCORED=scored, **tuning,
        )  # fmt: skip
    table, first, numbers, skip_from, skip_length, available, own_from, own_until = ranges
    return (
        entries, ratio, table, first, numbers, skip_from, skip_length, bound, available, places, own_from, own_until
    )  # fmt: skip
