"""The spread envelope of negative sampling: centres of groups, and the squared distances from them.

In float64, as in sskd_fast/reference/proposals.py. A place is a position in the order of the candidates by group. A
block is a run of places that one program reads; there are at most 512. A cell is the places with a common centre, and
goes by its first place: a group with scope "same", else everything. A block sums each of its cells. A cell that begins
and ends inside the block is done then. The others leave up to two parts: number 2 * block for a cell that began
earlier, number 2 * block + 1 for one that may go on. One program adds up the parts of a cell, in the same order every
time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sskd_fast.kernels import _tuning

# The constants of sskd_fast/reference/proposals.py.
ALIKE, ALIKE_BETA = tl.constexpr(1e-26), tl.constexpr(1e-12)
TINY = tl.constexpr(torch.finfo(torch.float64).tiny)
MOST_BLOCKS = tl.constexpr(512)
_SHORTEST_BLOCK = 32


@triton.jit
def double(value: tl.constexpr):
    """A constant in float64: next to a tensor Triton may round it to float32."""
    return tl.full([], value, tl.float64)


@triton.jit
def candidates_at(order_ptr, start_ptr, weight_ptr, place, present, ORDERED: tl.constexpr, CELLS: tl.constexpr,
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
def beta_of(moment, mass):
    """Mean squared distance from the centre, or what takes its place for rows that are alike."""
    mean = moment / tl.maximum(mass, double(TINY))
    return tl.where(mean > double(ALIKE), mean, double(ALIKE_BETA))


@triton.jit
def _first_cell(start_ptr, begin, CELLS: tl.constexpr):
    return tl.load(start_ptr + begin).to(tl.int64) if CELLS else begin * 0


@triton.jit
def _next_cell(start, cell, size):
    return tl.min(tl.where(start > cell, start, size), axis=0)


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
        q, start, weight = candidates_at(
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
                    sums /= tl.maximum(whole, double(TINY))
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
        sums = tl.sum(total, axis=0) / tl.maximum(tl.sum(mass, axis=0), double(TINY))
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
    longest = double(0.0)
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
            q, start, weight = candidates_at(
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
                        tl.store(beta_ptr + cell, beta_of(whole, tl.sum(mass, axis=0)))
                    moment, mass = tl.zeros([ROWS], dtype=tl.float64), tl.zeros([ROWS], dtype=tl.float64)
                    cell = _next_cell(start, cell, size)
            moment += tl.where(start == cell, distance * weight, 0.0)
            mass += tl.where(start == cell, weight, 0.0)
        tl.store(part_moment_ptr + 2 * block + (cell >= begin).to(tl.int64), tl.sum(moment, axis=0))
    tl.store(longest_ptr + block, longest)


def runs(count: int) -> tuple[int, int]:
    """(number, length) of runs that cut `count` rows into at most MOST_BLOCKS."""
    length = max(_SHORTEST_BLOCK, triton.next_power_of_2(triton.cdiv(count, MOST_BLOCKS.value)))
    return triton.cdiv(count, length), length


class Envelope(NamedTuple):
    """What the kernels have found about T = blocks * 2 parts, places and anchors.

    centre (M, E) by cell, (1, E) without cells.  distance (M,) by place.  alpha (A,).  beta (M,) by cell, (1,) without
    cells; those of parts are still missing.  moment, mass, start (T,): of parts; start is -1 for a part that is not
    used.  longest: largest squared norms by block, of the candidates, then of the anchors.
    """

    centre: Tensor
    distance: Tensor
    alpha: Tensor
    beta: Tensor
    moment: Tensor
    mass: Tensor
    start: Tensor
    longest: Tensor


def spread_envelope(
    anchors: Tensor, scores: Tensor, weight: Tensor, order: Tensor, start: Tensor, own_from: Tensor, flags: Any
) -> Envelope:
    """Launches the three kernels. flags: ORDERED, CELLS and WEIGHTED; what they leave out may be any tensor."""
    (size, width), count = scores.shape, len(anchors)
    (blocks, length), (anchor_blocks, anchors_length) = runs(size), runs(count)
    cells = size if flags["CELLS"] else 1
    doubles = {"dtype": torch.float64, "device": scores.device}
    found = Envelope(
        centre=torch.empty(cells, width, **doubles),
        distance=torch.empty(size, **doubles),
        alpha=torch.empty(count, **doubles),
        beta=torch.empty(cells, **doubles),
        moment=torch.empty(2 * blocks, **doubles),
        mass=torch.empty(2 * blocks, **doubles),
        start=torch.empty(2 * blocks, dtype=torch.int32, device=scores.device),
        longest=torch.empty(blocks + anchor_blocks, **doubles),
    )
    parts = torch.empty(2 * blocks, width, **doubles)
    tuning: dict[str, Any] = _tuning.proposals_rows(scores.dtype)
    lines = triton.cdiv(width, tuning["COLUMNS"])
    negative_sampling_sums_kernel[(blocks, lines)](
        scores, weight, order, start, found.centre, parts, found.mass, found.start, size, length, **flags, WIDTH=width,
        **tuning,
    )  # fmt: skip
    negative_sampling_centres_kernel[(blocks if flags["CELLS"] else 1, lines)](
        parts, found.mass, found.start, found.centre, blocks, WIDTH=width, **tuning
    )
    negative_sampling_distances_kernel[(blocks + anchor_blocks,)](
        anchors, scores, weight, order, start, own_from, found.centre, found.distance, found.alpha, found.beta,
        found.moment, found.longest, size, length, blocks, count, anchors_length, lines, **flags, WIDTH=width, **tuning,
    )  # fmt: skip
    return found
