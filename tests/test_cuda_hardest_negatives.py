"""Hardest negatives of csrc/cuda, emulated on the CPU: those of the reference."""

from __future__ import annotations

import math

import pytest
import torch
from test_operators import generator, random, unit

from sskd_fast.ops._library import with_types_of_errors
from sskd_fast.reference import hardest_negatives as reference


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1), (7, 13, 3, 5, 9), (40, 70, 20, 33, 33), (3, 900, 8, 50, 900)], ids=str
)
def test_the_hardest_are_those_of_the_reference(emulated, shape, dtype):
    a, m, d, r, given = shape
    anchors, candidates = random(a, d).to(dtype), random(m, d, seed=1).to(dtype)
    index = torch.randint(-1, m, (a, given), generator=generator(a, m)).sort(descending=True).values
    found = emulated.hardest_negatives(anchors, candidates, index, r)
    exact = reference.hardest_negatives(anchors.double(), candidates.double(), index, r)
    assert found.dtype == torch.int32 and torch.equal(found < 0, exact < 0)
    # Of candidates that are as similar but for rounding, either may come first.
    rows = torch.nn.functional.normalize(candidates.double(), dim=1)
    cosine = [(anchors.double()[:, None] * rows[x.clamp_min(0).long()]).sum(-1) for x in (found, exact)]
    tolerance = 0 if dtype == torch.float64 else 1e-5
    assert float((cosine[0] - cosine[1]).abs().max()) <= tolerance


def test_ties_keep_the_order_drawn_and_nan_comes_last(emulated):
    candidates = torch.tensor([[1.0, 0], [2, 0], [math.nan, 0], [0, 1], [0, 0]])
    index = torch.tensor([[2, -1, 1, 0, 4, 3]], dtype=torch.int32)
    hardest = emulated.hardest_negatives(torch.tensor([[1.0, 0.5]]), candidates, index, 6)
    assert hardest.tolist() == [[1, 0, 3, 4, 2, -1]]


@pytest.mark.parametrize("wrong", [-2, 4, (1 << 32) + 1, -(1 << 32)])
def test_an_index_out_of_range_stops_the_kernel(emulated, wrong):
    rows = unit(torch.eye(4))
    with pytest.raises(RuntimeError, match="__trap was called"):
        emulated.hardest_negatives(rows, rows, torch.full((4, 2), wrong), 1)


def test_more_draws_than_16_bits_number_are_refused(emulated_library):
    rows = torch.eye(2)
    with pytest.raises(ValueError, match="drawn: found 65536 draws of an anchor, expected at most 65535"):
        emulated_library.hardest_negatives(rows, rows, torch.zeros(2, 65536, dtype=torch.int32), 1)


def test_nothing_in_gives_nothing_out(emulated):
    z = torch.ones(2, 8)
    assert emulated.hardest_negatives(z, z[:0], torch.full((2, 3), -1), 2).tolist() == [[-1, -1]] * 2
    assert emulated.hardest_negatives(z[:0], z, torch.zeros(0, 3, dtype=torch.int64), 2).shape == (0, 2)


def test_a_lack_of_memory_is_told_from_other_errors(emulated):
    """Training takes smaller batches after torch.OutOfMemoryError alone."""
    rows, drawn = torch.eye(4), torch.zeros(4, 2, dtype=torch.int32)
    operator = with_types_of_errors(emulated.hardest_negatives)
    with pytest.raises(torch.OutOfMemoryError, match=r"out of memory for a result of shape \[4, 1125899906842624\]"):
        operator(rows, rows, drawn, 1 << 50)
    with pytest.raises(RuntimeError, match="__trap was called") as wrong:
        operator(rows, rows, drawn + 9, 1)
    assert not isinstance(wrong.value, torch.OutOfMemoryError)
