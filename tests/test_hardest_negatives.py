"""The hardest of the negatives drawn: the most similar first, NaN last, and errors that name the argument."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from sskd_fast import ops

pytestmark = pytest.mark.usefixtures("each_backend")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_they_are_the_most_similar_of_those_drawn():
    anchors, candidates = torch.randn(6, 5, generator=seeded(8)), torch.randn(20, 5, generator=seeded(9))
    drawn = torch.stack([torch.randperm(20, generator=seeded(i))[:8] for i in range(6)]).int()
    drawn[0, 5:] = -1
    drawn[1, :] = -1
    chosen = ops.hardest_negatives(anchors, candidates, drawn, 6)
    cosine = F.cosine_similarity(anchors[:, None], candidates[None], dim=-1)
    for row in range(6):
        valid = [q for q in drawn[row].tolist() if q >= 0]
        expected = sorted(valid, key=lambda q, row=row: -float(cosine[row, q]))[:6]
        assert chosen[row].tolist() == expected + [-1] * (6 - len(expected))


def test_nan_is_the_least_hard():
    candidates = torch.randn(5, 3, generator=seeded(1))
    candidates[2] = math.nan
    drawn = torch.tensor([[2, 0, 1, 4]])
    hardest = ops.hardest_negatives(torch.randn(1, 3, generator=seeded(2)), candidates, drawn, 4)
    assert hardest[0, 3] == 2 and sorted(hardest[0].tolist()) == [0, 1, 2, 4]


def test_compilers_see_the_indices_as_they_come() -> None:
    with FakeTensorMode():
        seen = ops.hardest_negatives(torch.zeros(3, 2), torch.zeros(5, 2), torch.zeros(3, 4, dtype=torch.int64), 2)
    assert seen.shape == (3, 2) and seen.dtype == torch.int32


def test_too_few_draws_and_indices_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"drawn: found shape \(2, 3\), expected at least 4 columns"):
        ops.hardest_negatives(torch.rand(2, 3), torch.rand(5, 3), torch.zeros(2, 3, dtype=torch.int32), 4)
    with pytest.raises(ValueError, match=r"drawn: found values in \[0, 9\], expected -1 or an index below 5"):
        ops.hardest_negatives(torch.rand(2, 3), torch.rand(5, 3), torch.tensor([[0], [9]]), 1)
