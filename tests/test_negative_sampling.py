"""The law of the sampler against exact probabilities by enumeration; scopes, weights, repeatability, arguments."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from sskd_fast import ops
from sskd_fast.reference.proposals import Candidates, build_proposals

pytestmark = pytest.mark.usefixtures("each_backend")

ANCHORS = 20000


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    return F.normalize(rows.double(), dim=-1)


def law(weights: list[float], draws: int) -> dict[tuple[int, ...], float]:
    """Probability of every ordered outcome of successive sampling."""
    outcomes = {}
    for order in itertools.permutations(range(len(weights)), draws):
        left, probability = sum(weights), 1.0
        for q in order:
            probability *= weights[q] / left if left > 0 else 0.0
            left -= weights[q]
        if probability > 0:
            outcomes[order] = probability
    return outcomes


def chi_square_p_value(drawn: torch.Tensor, expected: dict[tuple[int, ...], float]) -> float:
    """Pearson's test of the rows of `drawn` against a law; outcomes expected less than 5 times are pooled."""
    rows, counts = drawn.unique(dim=0, return_counts=True)
    observed = {tuple(row): count for row, count in zip(rows.tolist(), counts.tolist(), strict=True)}
    assert set(observed) <= set(expected), "an impossible outcome was drawn"
    statistic, cells, rare, rare_seen = 0.0, 0, 0.0, 0
    for outcome, probability in expected.items():
        mean = probability * len(drawn)
        if mean < 5:
            rare, rare_seen = rare + mean, rare_seen + observed.get(outcome, 0)
            continue
        statistic += (observed.get(outcome, 0) - mean) ** 2 / mean
        cells += 1
    if rare >= 5:
        statistic, cells = statistic + (rare_seen - rare) ** 2 / rare, cells + 1
    half = torch.tensor([(cells - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def one_anchor_many_times(anchor: torch.Tensor) -> torch.Tensor:
    return anchor.expand(ANCHORS, -1).contiguous()


def peaked(rows: int) -> torch.Tensor:
    return unit_rows(torch.eye(4)[torch.arange(rows) % 4] + 0.02 * torch.rand(rows, 4, generator=seeded(1)))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SCORES = {
    "spread": unit_rows(torch.rand(7, 5, generator=seeded(0))),
    "peaked": peaked(7),
    "nearly constant": unit_rows(1 + 1e-4 * torch.rand(7, 5, generator=seeded(2))),
    "one differs": unit_rows(torch.tensor([[1.0, 0.01 * i, 0] for i in range(6)] + [[0, 0, 1.0]])),
}


@pytest.mark.parametrize("draws", [1, 2, 3, 6])
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES.keys())
def test_draws_follow_successive_sampling(scores, draws):
    """Rejection for R up to 2 of the 6 candidates with positive weight, the race beyond that."""
    weights = (0.5 * (scores - scores[0]).square().sum(-1)).tolist()
    drawn = ops.sample_negatives(one_anchor_many_times(scores[0]), scores, draws, seed=5)
    assert chi_square_p_value(drawn, law(weights, draws)) > 1e-3


def test_float32_scores_follow_the_law_even_if_nearly_alike():
    scores = F.normalize(1 + 1e-3 * torch.rand(7, 5, generator=seeded(2)), dim=-1)
    exact = scores.double()
    weights = (0.5 * (exact - exact[0]).square().sum(-1)).tolist()
    drawn = ops.sample_negatives(one_anchor_many_times(scores[0]), scores, 2, seed=6)
    assert chi_square_p_value(drawn, law(weights, 2)) > 1e-3


@pytest.mark.parametrize("scope", ["same", "other"])
def test_scopes_restrict_the_law_to_the_group(scope):
    scores = unit_rows(torch.rand(12, 4, generator=seeded(3)))
    group = torch.tensor([0, 7, 0, 7, 7, 0, 7, 0, 7, 7, 0, 0])
    inside = (group == 7) == (scope == "same")
    weights = (0.5 * (scores - scores[0]).square().sum(-1) * inside).tolist()
    anchor_group = torch.full((ANCHORS,), 7)
    drawn = ops.sample_negatives(
        one_anchor_many_times(scores[0]),
        scores,
        2,
        seed=8,
        anchor_group=anchor_group,
        candidate_group=group,
        scope=scope,
    )
    assert chi_square_p_value(drawn, law(weights, 2)) > 1e-3


@pytest.mark.parametrize("scope", ["all", "same", "other"])
@pytest.mark.parametrize("with_scores", [True, False])
def test_candidate_weights_multiply_the_law(scope, with_scores):
    scores = unit_rows(torch.rand(12, 4, generator=seeded(3)))
    factor = torch.tensor([1.0, 0.2, 0, 3, 0.7, 0.05, 1, 1, 0, 2, 0.5, 1], dtype=torch.float64)
    group = torch.tensor([1, 1, 1, 2, 2, 2, 1, 2, 1, 2, 1, 1])
    inside = torch.ones(12) if scope == "all" else ((group == 1) == (scope == "same"))
    dissimilarity = 0.5 * (scores - scores[1]).square().sum(-1) if with_scores else torch.ones(12)
    drawn = ops.sample_negatives(
        one_anchor_many_times(scores[1]),
        scores if with_scores else None,
        2,
        seed=8,
        anchor_group=torch.ones(ANCHORS, dtype=torch.int64),
        candidate_group=group,
        scope=scope,
        candidate_weight=factor,
    )
    assert chi_square_p_value(drawn, law((dissimilarity * factor * inside).tolist(), 2)) > 1e-3


def test_the_race_completes_what_the_trials_left():
    """Two candidates of 10 have nearly all the weight, so that the third draw outlasts the trials."""
    scores = unit_rows(torch.cat([torch.tensor([[1.0, 1e-6 * i, 0] for i in range(8)]), torch.eye(3)[1:]]))
    weights = (0.5 * (scores - scores[0]).square().sum(-1)).tolist()
    drawn = ops.sample_negatives(one_anchor_many_times(scores[0]), scores, 4, seed=9)
    assert drawn[:, :2].min() >= 8 and drawn[:, 2:].max() < 8
    assert chi_square_p_value(drawn, law(weights, 4)) > 1e-3


def test_many_candidates_are_drawn_in_proportion_to_their_weight():
    """Inclusion in one draw of 300 candidates, chi-square over all of them, through both envelopes."""
    for concentration in (0.5, 8.0):
        scores = F.normalize((concentration * torch.randn(300, 6, generator=seeded(4))).softmax(-1).double(), dim=-1)
        weights = 0.5 * (scores - scores[3]).square().sum(-1)
        drawn = ops.sample_negatives(one_anchor_many_times(scores[3]), scores, 1, seed=10)
        expected = {(q,): float(w) for q, w in enumerate(weights / weights.sum()) if w > 0}
        assert chi_square_p_value(drawn, expected) > 1e-3


def test_the_envelope_accepts_half_of_the_trials_however_alike_the_scores():
    for amount in (1e-3, 1e-1):
        rows = F.normalize(1 + amount * torch.rand(600, 8, generator=seeded(5)), dim=-1)
        none = torch.zeros(600, dtype=torch.int64)
        proposals = build_proposals(rows, none, Candidates(rows, None, none, True))
        distance = 0.5 * torch.cdist(rows.double(), rows.double()).square()
        table = proposals.entries[int(proposals.first[0]) : int(proposals.first[0] + proposals.count[0])]
        ratio = proposals.ratio[table + int(proposals.table[0])]
        accepted = distance[:, table] * ratio / proposals.bound[:, None]
        assert float(accepted.max()) <= 1
        assert float(accepted.mean(1).min()) > 0.4
        torch.testing.assert_close(accepted.mean(1), proposals.acceptance, rtol=0.02, atol=0)


def test_rows_hold_distinct_candidates_in_scope():
    scores = F.normalize(torch.rand(600, 9, generator=seeded(6)).pow(6), dim=-1)
    group = torch.arange(600) // 200
    drawn = ops.sample_negatives(
        scores[::3], scores, 50, seed=1, anchor_group=group[::3], candidate_group=group, scope="other"
    )
    assert drawn.dtype == torch.int32 and drawn.shape == (200, 50)
    assert all(len(row.unique()) == 50 for row in drawn)
    assert bool((group[drawn.long()] != group[::3, None]).all())


def test_the_same_seed_gives_the_same_negatives_independent_of_other_anchors():
    scores = F.normalize(torch.rand(500, 9, generator=seeded(6)).pow(6), dim=-1)
    first = ops.sample_negatives(scores, scores, 40, seed=3)
    assert torch.equal(first, ops.sample_negatives(scores, scores, 40, seed=torch.tensor([3])))
    assert torch.equal(first[:30], ops.sample_negatives(scores[:30], scores, 40, seed=3))
    assert torch.equal(first[:, :40], ops.sample_negatives(scores, scores, 50, seed=3)[:, :40])
    assert not torch.equal(first, ops.sample_negatives(scores, scores, 40, seed=4))


def test_the_number_of_threads_does_not_change_the_result():
    scores = F.normalize(torch.rand(500, 9, generator=seeded(6)).pow(6), dim=-1)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(ops.sample_negatives(scores, scores, 40, seed=3))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_missing_candidates_are_minus_one():
    scores = unit_rows(torch.eye(3)[[0, 0, 0, 1, 2]])
    drawn = ops.sample_negatives(scores, scores, 4, seed=0)
    assert (drawn >= 0).sum(1).tolist() == [2, 2, 2, 4, 4]
    assert sorted(drawn[0, :2].tolist()) == [3, 4] and drawn[0, 2:].tolist() == [-1, -1]
    assert ops.sample_negatives(scores[:3], scores[:3], 2, seed=0).eq(-1).all()
    alone = ops.sample_negatives(
        scores, scores, 2, seed=0, anchor_group=torch.arange(5), candidate_group=torch.arange(5), scope="same"
    )
    assert alone.eq(-1).all()


def test_more_trials_than_distinct_candidates_end_in_minus_one():
    """Only 3 of 100 candidates differ from the anchor: the trials run out, the race finds no fourth."""
    scores = unit_rows(torch.eye(4)[[0] * 97 + [1, 2, 3]])
    drawn = ops.sample_negatives(scores[:5], scores, 6, seed=0)
    assert all(sorted(row[:3].tolist()) == [97, 98, 99] and row[3:].eq(-1).all() for row in drawn)


def test_empty_inputs():
    scores = unit_rows(torch.rand(4, 3))
    assert ops.sample_negatives(scores[:0], scores, 3, seed=0).shape == (0, 3)
    assert ops.sample_negatives(scores, scores[:0], 3, seed=0).eq(-1).all()


def test_without_scores_candidates_weigh_the_same():
    anchors = torch.zeros(ANCHORS, 1)
    drawn = ops.sample_negatives(
        anchors, None, 2, seed=4, candidate_group=torch.zeros(6, dtype=torch.int64), scope="all"
    )
    assert chi_square_p_value(drawn, law([1.0] * 6, 2)) > 1e-3
    assert ops.sample_negatives(torch.zeros(9, 1), None, 9, seed=4).sort(1).values.tolist() == [list(range(9))] * 9


def test_the_published_size_is_handled():
    scores = F.normalize(torch.randn(8 * 703, 21, generator=seeded(7)).mul(3).softmax(-1), dim=-1)
    group = torch.arange(8).repeat_interleave(703)
    drawn = ops.sample_negatives(
        scores[::16], scores, 200, seed=1, anchor_group=group[::16], candidate_group=group, scope="other"
    )
    assert bool((drawn >= 0).all())
    rate = (0.5 * (scores[::16, None] - scores[drawn.long()]).square().sum(-1)).mean()
    assert float(rate) > float(1 - (scores[::16].mean(0) * scores.mean(0)).sum())


GOOD = unit_rows(torch.rand(4, 3, generator=seeded(1)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"anchor_scores": GOOD[0]}, ValueError, r"anchor_scores: found shape \(3,\), expected \(A, E\)"),
        ({"candidate_scores": GOOD[:, :2]}, ValueError, r"candidate_scores: found shape \(4, 2\), expected \(M, 3\)"),
        ({"candidate_scores": 2 * GOOD}, ValueError, "candidate_scores: row 0 has norm 2, expected rows of unit norm"),
        ({"candidate_scores": GOOD * math.nan}, ValueError, "row 0 has norm nan"),
        ({"candidate_scores": -GOOD}, ValueError, "expected non-negative rows"),
        ({"candidate_scores": GOOD.float()}, ValueError, "dtype torch.float32, expected torch.float64"),
        ({"anchor_scores": [[1.0]]}, TypeError, "anchor_scores: expected a tensor, found list"),
        ({"anchor_scores": torch.ones(4, 3, dtype=torch.int64)}, TypeError, "floating-point tensor"),
        ({"num_negatives": 0}, ValueError, "num_negatives: expected at least 1, found 0"),
        ({"num_negatives": 1.5}, TypeError, "num_negatives: expected an int"),
        ({"scope": "near"}, ValueError, "scope='near' is unknown; expected one of all, other, same"),
        ({"scope": "same"}, ValueError, "needs anchor_group and candidate_group"),
        (
            {"scope": "same", "anchor_group": torch.zeros(4), "candidate_group": torch.zeros(4)},
            TypeError,
            "anchor_group: expected an integer tensor",
        ),
        ({"candidate_weight": torch.tensor([1.0, -1, 0, 0])}, ValueError, "candidate_weight: found negative"),
        ({"candidate_weight": torch.ones(3)}, ValueError, r"candidate_weight: found shape \(3,\), expected \(4\)"),
        ({"backend": "triton"}, RuntimeError, "backend='triton' cannot run"),
        ({"backend": "fast"}, ValueError, "backend='fast' is unknown"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    good = {"anchor_scores": GOOD, "candidate_scores": GOOD, "num_negatives": 2, "seed": 0}
    with pytest.raises(error, match=message):
        ops.sample_negatives(**{**good, **arguments})


def test_the_environment_replaces_the_automatic_backend(monkeypatch):
    monkeypatch.setenv("SSKD_FAST_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="SSKD_FAST_BACKEND='cuda' cannot run: it runs on cuda tensors"):
        ops.sample_negatives(GOOD, GOOD, 1, seed=0)
    explicit = ops.sample_negatives(GOOD, GOOD, 1, seed=0, backend="reference")
    monkeypatch.setenv("SSKD_FAST_BACKEND", "reference")
    assert torch.equal(explicit, ops.sample_negatives(GOOD, GOOD, 1, seed=0))
