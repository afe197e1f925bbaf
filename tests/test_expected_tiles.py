"""The expected form in C++: sizes that do not divide its tiles, threads, and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sskd_fast import ops
from tests.test_operators import check_budget, random, unit

# (A, M, E, D): past a tile of 256 or 252 anchors, one past a panel of candidates, widths one past a strip.
SHAPES = [(257, 34, 5, 9), (253, 65, 32, 7), (515, 49, 17, 65)]
# Too few numbers for the largest of their errors in float32 to say much.
ONE_ANCHOR = (1, 33, 3, 33)
# With one candidate the scores change nothing: their gradients are rounding alone.
ONE_CANDIDATE = (257, 1, 2, 9)


def case(anchors: int, candidates: int, width: int, dimension: int) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """Embeddings of anchors, positives and candidates; scores of anchors and candidates."""
    rows = [random(n, dimension, seed=i) for i, n in enumerate((anchors, anchors, candidates))]
    scores = unit(random(anchors + candidates, width, seed=4).abs() + 1e-3).split([anchors, candidates])
    return rows, (scores[0].clone(), scores[1].clone())


def settings_of(anchors: int, candidates: int, scope: str, weighted: bool) -> dict[str, Any]:
    groups = {"anchor_group": torch.arange(anchors) % 3, "candidate_group": torch.arange(candidates) % 4}
    weight = random(candidates, seed=3).abs().masked_fill(torch.arange(candidates) % 5 == 1, 0)
    return {**groups, "scope": scope, "candidate_weight": weight if weighted else None}


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(ONE_ANCHOR, torch.float64), *((s, d) for s in SHAPES for d in (torch.float64, torch.float32))],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scope", ["all", "same", "other"])
def test_gradients_of_embeddings_and_scores_keep_the_error_budget(shape, scope, weighted, dtype):
    embeddings, scores = case(*shape)
    settings = settings_of(*shape[:2], scope, weighted)

    def run(a: Tensor, p: Tensor, c: Tensor, ya: Tensor, yc: Tensor, backend: str) -> Tensor:
        return ops.expected_pixel_contrast(a, p, c, ya, yc, 9, 0.2, **settings, backend=backend)

    check_budget(run, [*embeddings, *scores], dtype)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, ONE_ANCHOR, ONE_CANDIDATE], ids=str)
def test_gradients_without_scores_keep_the_error_budget(shape, normalize):
    embeddings, _ = case(*shape)
    settings = {**settings_of(*shape[:2], "other", True), "normalize": normalize}

    def run(a: Tensor, p: Tensor, c: Tensor, backend: str) -> Tensor:
        return ops.expected_pixel_contrast(a, p, c, None, None, 9, 0.7, **settings, backend=backend)

    check_budget(run, embeddings, torch.float32)


def gradients(shape: tuple[int, int, int, int], dtype: torch.dtype, with_scores: bool) -> list[Tensor]:
    embeddings, scores = case(*shape)
    leaves = [x.to(dtype).requires_grad_() for x in embeddings]
    leaves += [y.float().requires_grad_() for y in scores] if with_scores else []
    of_scores = leaves[3:] or [None, None]
    settings = settings_of(*shape[:2], "other", True)
    loss = ops.expected_pixel_contrast(*leaves[:3], *of_scores, 9, 0.2, **settings, backend="cpu")
    return [loss, *torch.autograd.grad(loss, leaves)]


def with_threads(threads: int, run: Callable[[], list[Tensor]]) -> list[Tensor]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        return run()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("with_scores", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads_changes_no_bit_over_several_tiles(dtype, with_scores):
    results = [with_threads(n, lambda: gradients((515, 611, 17, 65), dtype, with_scores)) for n in (1, 2, 3)]
    for found in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found, results[0], strict=True))


@pytest.mark.parametrize("with_scores", [False, True])
def test_an_anchor_without_candidates_in_scope_gives_and_gets_no_gradient(with_scores):
    embeddings, scores = case(300, 40, 5, 8)
    group = torch.zeros(300, dtype=torch.int64)
    group[260:] = 1  # of the second tile, whose candidates are all in group 0

    def run(anchors: int) -> tuple[Tensor, ...]:
        leaves = [embeddings[0][:anchors], embeddings[1][:anchors], embeddings[2]]
        given = [scores[0][:anchors], scores[1]] if with_scores else []
        leaves = [x.clone().requires_grad_() for x in (*leaves, *given)]
        of_scores = leaves[3:] or [None, None]
        groups = {"anchor_group": group[:anchors], "candidate_group": torch.zeros(40, dtype=torch.int64)}
        loss = ops.expected_pixel_contrast(*leaves[:3], *of_scores, 4, 0.2, **groups, scope="same", backend="cpu")
        return torch.autograd.grad(loss * anchors, leaves)

    all_anchors, first_ones = run(300), run(260)
    for of_anchors in (0, 1, 3)[: 3 if with_scores else 2]:
        assert torch.equal(all_anchors[of_anchors][260:], torch.zeros_like(all_anchors[of_anchors][260:]))
    for of_candidates in (2, 4)[: 2 if with_scores else 1]:
        torch.testing.assert_close(all_anchors[of_candidates], first_ones[of_candidates])
        assert float(first_ones[of_candidates].abs().max()) > 0


def kept_bytes(anchors: int, candidates: int) -> int:
    """The blocks of at least a megabyte that a forward and a backward pass have used."""
    embeddings, scores = case(anchors, candidates, 8, 32)
    leaves = [x.float().requires_grad_() for x in (*embeddings, *scores)]
    ops.release_memory()
    loss = ops.expected_pixel_contrast(*leaves, 9, 0.2, backend="cpu")
    torch.autograd.grad(loss, leaves)
    return ops.release_memory()


def test_memory_grows_with_the_candidates_but_not_with_the_pairs():
    anchors, candidates = 1024, 8192
    once, more_anchors, more_candidates = (
        kept_bytes(anchors, candidates),
        kept_bytes(2 * anchors, candidates),
        kept_bytes(anchors, 2 * candidates),
    )
    # Two tiles of 256 anchors, and operands and gradients of 32 + 9 numbers a candidate.
    assert 2 * 252 * 4 * candidates <= once < 3 * 256 * 4 * candidates
    assert more_anchors - once < 4 * 1024 * anchors  # kilobytes an anchor
    assert more_candidates < 2.5 * once
