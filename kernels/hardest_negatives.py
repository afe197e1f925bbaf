"""Hardest negatives: one program for each anchor sorts its draws.

Key and place of a draw are one number of 64 bits. If they do not fit, as in float64, or if there are too many draws for
the registers, each draw is ranked by comparing its key with all others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sskd_fast.kernels import _tuning
from sskd_fast.kernels._tl import (
    device_of,
    gathered_rows,
    inverse_norm,
    padded_rows,
    row_columns,
    row_sums,
    wide,
)


@triton.jit
def falling(key):
    """Integers that fall as float32 numbers rise; no NaN, and -0 is 0."""
    bits = tl.where(key == 0, 0.0, key).to(tl.int32, bitcast=True)
    return (~(bits ^ ((bits >> 31) & 0x7FFFFFFF))).to(tl.int64)


@triton.jit
def hardest_negatives_kernel(
    anchors_ptr, candidates_ptr, drawn_ptr, key_ptr, picks_ptr, draws, num_negatives,
    WIDTH: tl.constexpr, CHUNKS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_R: tl.constexpr, SORTED: tl.constexpr,
):  # fmt: skip
    """Rank the draws of an anchor by cosine: ties in the order drawn, NaN last, -1 left out.

    SORTED: 0, or a power of two that no number of draws exceeds.
    """
    anchor = tl.program_id(0).to(tl.int64)
    columns = row_columns(CHUNKS, COLUMNS)
    slot = tl.arange(0, BLOCK_R)
    a = wide(tl.load(anchors_ptr + anchor * WIDTH + columns, mask=columns < WIDTH, other=0.0))
    drawn_ptr += anchor * draws
    key_ptr += anchor * draws
    picks_ptr += anchor * num_negatives
    for begin in range(0, draws, BLOCK_R):
        inside = begin + slot < draws
        q = tl.load(drawn_ptr + begin + slot, mask=inside, other=-1)
        x = gathered_rows(candidates_ptr, q, q >= 0, columns, WIDTH)
        similarity = row_sums(x * a) * inverse_norm(row_sums(x * x))
        # NaN ranks below every number, and index -1 below NaN.
        similarity = tl.where(similarity == similarity, similarity, -1e30)
        tl.store(key_ptr + begin + slot, tl.where(q >= 0, similarity, float("-inf")), mask=inside)
    if SORTED:
        tl.debug_barrier()  # keys written by other threads are read below
        place = tl.arange(0, SORTED)
        key = tl.load(key_ptr + place, mask=place < draws, other=float("-inf"))
        order = tl.sort(falling(key) << 32 | place.to(tl.int64)).to(tl.int32)  # the lower half: the place
        q = tl.load(drawn_ptr + order, mask=order < draws, other=-1)
        tl.store(picks_ptr + place, tl.maximum(q, -1).to(tl.int32), mask=place < num_negatives)
    else:
        for begin in range(0, num_negatives, BLOCK_R):
            tl.store(picks_ptr + begin + slot, -1, mask=begin + slot < num_negatives)
        tl.debug_barrier()  # keys written by other threads are read, and picks are overwritten below
        for begin in range(0, draws, BLOCK_R):
            place = begin + slot
            q = tl.load(drawn_ptr + place, mask=place < draws, other=-1)
            own = tl.load(key_ptr + place, mask=place < draws, other=float("-inf"))
            rank = tl.zeros([BLOCK_R], tl.int32)
            for start in range(0, draws, BLOCK_R):
                other = start + slot
                key = tl.load(key_ptr + other, mask=other < draws, other=float("-inf"))[None, :]
                before = (key > own[:, None]) | ((key == own[:, None]) & (other[None, :] < place[:, None]))
                rank += tl.sum(before.to(tl.int32), axis=1)
            tl.store(picks_ptr + rank, q.to(tl.int32), mask=(q >= 0) & (rank < num_negatives))


def hardest_negatives(anchors: Tensor, candidates: Tensor, drawn: Tensor, num_negatives: int) -> Tensor:
    """Indices (A, R) int32 of the draws (A, R') most similar to each anchor, most similar first."""
    count, draws = drawn.shape
    picks = torch.empty(count, num_negatives, dtype=torch.int32, device=anchors.device)
    if count == 0:
        return picks
    a, c = padded_rows(anchors), padded_rows(candidates)
    keys = torch.empty(count, draws, dtype=torch.promote_types(a.dtype, torch.float32), device=a.device)
    with device_of(a):
        hardest_negatives_kernel[(count,)](
            a, c, drawn.contiguous(), keys, picks, draws, num_negatives,
            WIDTH=a.shape[1], SORTED=_tuning.sorted_draws(draws, keys.dtype), **_tuning.gathered(a.shape[1], a.dtype),
        )  # fmt: skip
    return picks
