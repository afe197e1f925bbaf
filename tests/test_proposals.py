"""The tables of slots: sums over all candidates and by group, the same on every backend and without a wait."""

from __future__ import annotations

import pytest
import torch
from test_operators import random, sampling_case

from sskd_fast import ops
from sskd_fast.reference.proposals import _RUN, Candidates, _Cells, build_proposals

LENGTHS = [[1], [_RUN], [_RUN + 1], [3, 2 * _RUN, 1, 5 * _RUN + 7, _RUN - 1], [1] * 40]


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{len(lengths)} groups of {sum(lengths)}")
def test_sums_by_group_are_those_of_a_loop(lengths):
    """Groups shorter and longer than a run, which begin anywhere in it, in a shuffled order of the candidates."""
    shuffle = torch.randperm(sum(lengths), generator=torch.Generator().manual_seed(1))
    group = torch.repeat_interleave(7 * torch.arange(len(lengths)) - 9, torch.tensor(lengths))[shuffle]
    grouped, order = group.sort(stable=True)
    cells = _Cells.of_groups(grouped, order)
    rows = random(len(group), 5)
    for values in (rows, rows[:, 0].contiguous()):
        sums = cells.sums(values)
        assert sums.shape == values.shape
        wanted = torch.stack([values[group == number].sum(0) for number in group.unique()])
        torch.testing.assert_close(sums[: len(lengths)], wanted, rtol=1e-13, atol=1e-13)
        assert not sums[len(lengths) :].any()
    numbers = {int(g): i for i, g in enumerate(group.unique())}
    assert cells.of_candidate.tolist() == [numbers[int(g)] for g in group]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["fused", "peaked", "alike"])
def test_all_candidates_are_those_of_one_group_and_the_others_of_none(kind, weighted, backend):
    """The three scopes draw the same negatives if they mean the same candidates."""
    scores = sampling_case(50, 700, 20, kind, torch.float64)
    settings = {"seed": 5, "backend": backend, "candidate_weight": random(700).abs() if weighted else None}
    everything = ops.sample_negatives(*scores, 30, **settings)
    groups = {"anchor_group": torch.full((50,), 3), "candidate_group": torch.full((700,), 3)}
    assert torch.equal(everything, ops.sample_negatives(*scores, 30, scope="same", **groups, **settings))
    groups["candidate_group"] = torch.full((700,), 4)
    assert torch.equal(everything, ops.sample_negatives(*scores, 30, scope="other", **groups, **settings))


def test_groups_far_apart_in_score_have_tables_of_their_own():
    """Within a group of nearly equal rows half of the trials are accepted, as the envelope about its own centre has it;
    about the centre of all candidates next to none would be."""
    near = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(600, 0)
    rows = torch.nn.functional.normalize(near + 1e-3 * random(1200, 2).abs().float(), dim=1)
    group = torch.arange(1200) // 600
    found = build_proposals(rows, group, Candidates(rows, None, group, True))
    assert float(found.acceptance.min()) > 0.45 and float(found.bound.max()) < 1e-5
    of_all = build_proposals(rows, torch.full_like(group, -1), Candidates(rows, None, group, False))
    assert float(of_all.bound.min()) > 0.2


@pytest.mark.parametrize("scope", ["same", "other"])
def test_equal_rows_get_the_same_slots_in_every_backend(scope):
    """Rounding moves the centre of equal rows off them, and by how much depends on the order of a sum."""
    rows = torch.nn.functional.normalize(random(40, 11).abs(), dim=1)
    group = torch.arange(600) % 30
    scores = torch.where((group < 20)[:, None], rows[group], rows[30 + torch.arange(600) % 10])
    weight = (1 + torch.arange(600) % 7).double() / 7
    settings = {"anchor_group": (group + 1) % 30, "candidate_group": group, "candidate_weight": weight, "scope": scope}
    drawn = [ops.sample_negatives(scores, scores, 7, seed=2, backend=b, **settings) for b in ("reference", "cpu")]
    assert torch.equal(*drawn)


def test_a_mean_at_the_limit_of_the_even_envelope_is_on_the_same_side_in_every_backend():
    """9 of 20 candidates lie at a right angle to the anchor, so that s has the mean 0.45, up to rounding."""
    rows = torch.eye(6, dtype=torch.float64)[torch.where(torch.arange(400) % 20 < 11, 0, 1)]
    group = torch.zeros(400, dtype=torch.int64)
    tables = build_proposals(rows, group - 1, Candidates(rows, None, group, False))
    assert not bool(tables.table[torch.arange(400) % 20 < 11].any())
    drawn = [ops.sample_negatives(rows, rows, 30, seed=2, backend=b) for b in ("reference", "cpu")]
    assert torch.equal(*drawn)
