"""The expected form of pixel contrast of csrc/cuda, emulated on the CPU, against the reference in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_operators import DTYPES, generator, random, unit, within_budget
from torch import Tensor

from sskd_fast.reference import expected_pixel_contrast as reference

TEMPERATURE = torch.tensor([0.2], dtype=torch.float64)
# (A, M, E, D): one of each, primes, a tile, one past a tile in both directions with columns split between blocks.
SHAPES = [(1, 1, 1, 1), (7, 13, 5, 3), (64, 32, 4, 16), (67, 131, 20, 40)]
# More columns of embeddings, and of scores, than a block takes of the gradients.
WIDE = [(5, 9, 4, 300), (5, 9, 300, 4), (3, 70, 65, 66)]


def case(a: int, m: int, e: int, d: int) -> tuple[list[Tensor], list[Tensor]]:
    scores = [unit(random(a, e).abs()), unit(random(m, e, seed=1).abs())]
    return [random(a, d), random(a, d, seed=1), random(m, d, seed=2)], scores


def details(a: int, m: int, scope: str) -> tuple[Tensor | None, Tensor | None, Tensor | None, bool]:
    """Weights of the candidates, 0 for one of four, and groups, one of which only anchors have."""
    weight = random(m, seed=3).abs() * (torch.arange(m) % 4 != 1)
    groups = (None, None) if scope == "all" else (torch.arange(a) % 4, torch.arange(m) % 3)
    return weight, *groups, scope == "same"


def everything(
    run: Any, embeddings: list[Tensor], scores: list[Tensor] | None, rest: Any, temperature: Tensor = TEMPERATURE
) -> list[Tensor]:
    """Losses, and the gradients of embeddings and scores; the reference computes half precision in float32."""
    dtype = embeddings[0].dtype
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    if run is reference:
        embeddings = [x.to(compute) for x in embeddings]
    given = [None, None] if scores is None else [x.to(compute) for x in scores]
    weight, *groups, same = rest
    inputs = *embeddings, *given, None if weight is None else weight.to(compute), *groups, same
    loss, *state = run.expected_pixel_contrast(*inputs, 9, temperature, True)
    grad = random(*loss.shape, seed=5).to(compute)
    arguments = *inputs, *state, temperature, True, scores is not None
    grads = run.expected_pixel_contrast_backward(grad, *arguments)
    return [loss, *(x.to(dtype) for x in grads[:3]), *grads[3:]]


def orders(columns: int) -> list[Tensor]:
    """The columns as they are, and shuffled seven times."""
    return [torch.arange(columns), *(torch.randperm(columns, generator=generator(seed)) for seed in range(7))]


def references(embeddings: list[Tensor], scores: list[Tensor] | None, *rest: Any) -> list[Tensor]:
    """The reference's results, stacked over orders of the columns: a single order may be lucky in how it rounds."""
    results = []
    for mine, theirs in zip(orders(embeddings[0].shape[1]), orders(scores[0].shape[1] if scores else 0), strict=True):
        shuffled = None if scores is None else [x[:, theirs] for x in scores]
        loss, *grads = everything(reference, [x[:, mine] for x in embeddings], shuffled, *rest)
        back = [mine.argsort()] * 3 + [theirs.argsort()] * 2
        results.append([loss, *(x[:, order] if x.dim() == 2 else x for x, order in zip(grads, back, strict=True))])
    return [torch.stack(each) for each in zip(*results, strict=True)]


def check(run: Any, embeddings: list[Tensor], scores: list[Tensor] | None, dtype: torch.dtype, *rest: Any) -> None:
    # What the kernels are given: embeddings in dtype, scores and weights in single precision at least.
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    rounded = [x.to(dtype) for x in embeddings], None if scores is None else [x.to(compute) for x in scores]
    weight, *others = rest[0]
    rest = (None if weight is None else weight.to(compute), *others), *rest[1:]
    double = [x.double() for x in rounded[0]], None if scores is None else [x.double() for x in rounded[1]]
    exact = everything(reference, *double, *rest)
    for each in zip(everything(run, *rounded, *rest), references(*rounded, *rest), exact, strict=True):
        within_budget(*each)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", ["all", "same", "other"])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_losses_and_gradients_keep_the_error_budget(emulated, shape, scope, dtype):
    check(emulated, *case(*shape), dtype, details(*shape[:2], scope))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [SHAPES[3], *WIDE], ids=str)
def test_several_tiles_and_wide_rows_keep_the_error_budget(emulated, shape, dtype):
    check(emulated, *case(*shape), dtype, details(*shape[:2], "other"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_weights_keep_the_error_budget(emulated, dtype):
    check(emulated, case(7, 13, 5, 3)[0], None, dtype, (None, None, None, False))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_order_of_the_threads_changes_no_bit(emulated_library, dtype):
    embeddings, scores = case(33, 70, 5, 40)
    results = []
    for order in (0, 0, 1, 7):
        emulated_library.order_threads(order)
        rest = details(33, 70, "other")
        results.append(everything(emulated_library, [x.to(dtype) for x in embeddings], scores, rest))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_scores_that_are_all_alike_keep_their_differences(emulated):
    """Distances of 1e-3: from the products of the scores alone, 1 - <y_a, y_q> would have three digits in float32."""
    embeddings, _ = case(6, 9, 5, 8)
    scores = [unit(1 + 1e-3 * random(n, 5, seed=n).abs()) for n in (6, 9)]
    check(emulated, embeddings, scores, torch.float32, (None, None, None, False))


def test_large_logits_do_not_overflow(emulated):
    temperature = torch.tensor([2e-3], dtype=torch.float64)
    check(emulated, *case(6, 9, 5, 8), torch.float32, details(6, 9, "all"), temperature)


def test_anchors_without_a_candidate_have_no_loss_and_no_gradient(emulated):
    embeddings, scores = case(3, 5, 4, 6)
    no_candidates = [*embeddings[:2], embeddings[2][:0]], [scores[0], scores[1][:0]]
    for found in (
        everything(emulated, embeddings, scores, (None, torch.tensor([0, 0, 1]), torch.full((5,), 2), True)),
        everything(emulated, *no_candidates, (None, None, None, False)),
        everything(emulated, embeddings, scores, (torch.zeros(5), None, None, False)),
    ):
        assert all(torch.equal(x, torch.zeros_like(x)) for x in found)


def test_no_anchors_give_no_losses(emulated):
    embeddings, scores = case(3, 5, 4, 6)
    none = [embeddings[0][:0], embeddings[1][:0], embeddings[2]]
    loss, *grads = everything(emulated, none, [scores[0][:0], scores[1]], (None, None, None, False))
    assert loss.shape == (0,) and grads[0].shape == (0, 6) and grads[3].shape == (0, 4)
    assert torch.equal(grads[2], torch.zeros(5, 6, dtype=torch.float64))


def test_scores_get_a_gradient_only_if_wanted(emulated):
    embeddings, scores = case(7, 13, 5, 3)
    inputs = *embeddings, *scores, None, None, None, False
    loss, *state = emulated.expected_pixel_contrast(*inputs, 9, TEMPERATURE, True)
    with_scores, without = (
        emulated.expected_pixel_contrast_backward(loss, *inputs, *state, TEMPERATURE, True, wanted)
        for wanted in (True, False)
    )
    assert all(torch.equal(x, y) for x, y in zip(with_scores[:3], without[:3], strict=True))
    assert [x.shape for x in with_scores[3:]] == [(7, 5), (13, 5)]
    assert [x.shape for x in without[3:]] == [(0,), (0,)]


def test_embeddings_as_they_are_keep_the_error_budget(emulated):
    """Without the normalisation: of any length."""
    embeddings, scores = case(7, 13, 5, 3)

    def losses_and_gradients(run: Any, dtype: torch.dtype) -> list[Tensor]:
        inputs = *(x.float().to(dtype) for x in (*embeddings, *scores)), None, None, None, False
        loss, *state = run.expected_pixel_contrast(*inputs, 9, TEMPERATURE, False)
        grads = run.expected_pixel_contrast_backward(loss, *inputs, *state, TEMPERATURE, False, True)
        return [loss, *grads]

    for found, same, exact in zip(
        losses_and_gradients(emulated, torch.float32),
        losses_and_gradients(reference, torch.float32),
        losses_and_gradients(reference, torch.float64),
        strict=True,
    ):
        within_budget(found, same, exact)


def test_random_cases_are_as_exact_as_the_reference(emulated_library):
    """The budget by the mean over many cases, which luck does not decide."""
    emulated_library.order_threads(0)
    errors = torch.zeros(2, 6)
    for seed in range(20):
        rows = generator(seed)
        embeddings = [torch.randn(n, 4, generator=rows, dtype=torch.float64).float() for n in (6, 6, 10)]
        scores = [unit(torch.rand(n, 5, generator=rows, dtype=torch.float64)).float() for n in (6, 10)]
        rest = None, None, None, False
        exact = everything(reference, [x.double() for x in embeddings], [x.double() for x in scores], rest)
        for i, run in enumerate((emulated_library, reference)):
            found = everything(run, embeddings, scores, rest)
            distances = [(x - y).abs().max() / y.abs().max() for x, y in zip(found, exact, strict=True)]
            errors[i] += torch.stack(distances).float()
    assert bool((errors[0] <= 1.5 * errors[1]).all()), errors / 20
