"""Pixel contrast and its expected form against dense float64 formulas, gradients, margin, ignored negatives."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sskd_fast import ops
from sskd_fast.reference import expected_pixel_contrast as reference

pytestmark = pytest.mark.usefixtures("each_backend")

TEMPERATURE = 0.2


def embeddings(anchors: int, candidates: int, width: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(anchors + 7 * candidates)
    return [
        torch.randn(n, width, generator=generator, dtype=torch.float64).to(dtype)
        for n in (anchors, anchors, candidates)
    ]


def draws(anchors: int, candidates: int, negatives: int, ignored: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    index = torch.randint(0, candidates, (anchors, negatives), generator=generator)
    return index.masked_fill(torch.rand(anchors, negatives, generator=generator) < ignored, -1)


def dense_losses(anchors, positives, candidates, negatives, margin=None):
    """The loss of every anchor, term by term from the definition, in float64."""
    a, p, c = (F.normalize(x.double(), dim=-1) for x in (anchors, positives, candidates))
    losses = []
    for i in range(len(a)):
        similarity = torch.stack([a[i] @ c[q] for q in negatives[i].tolist() if q >= 0] or [a.new_tensor(-math.inf)])
        if margin is not None:
            similarity = torch.where(similarity.isinf(), similarity, (similarity - margin).clamp(min=0))
        good = torch.exp(a[i] @ p[i] / TEMPERATURE)
        losses.append(-torch.log(good / (good + torch.exp(similarity / TEMPERATURE).sum())))
    return torch.stack(losses)


@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize(("a", "m", "r", "d"), [(1, 1, 1, 1), (7, 13, 5, 3), (70, 31, 67, 16), (3, 4, 9, 2)])
def test_losses_and_gradients_follow_the_definition(a, m, r, d, margin):
    tensors = [x.requires_grad_() for x in embeddings(a, m, d)]
    negatives = draws(a, m, r, ignored=0.2)
    losses = ops.pixel_contrast(*tensors, negatives, TEMPERATURE, margin=margin, reduction="none")
    expected = dense_losses(*tensors, negatives, margin=margin)
    torch.testing.assert_close(losses, expected)
    upstream = torch.linspace(-1, 2, a, dtype=torch.float64)
    got = torch.autograd.grad(losses, tensors, upstream)
    want = torch.autograd.grad(expected, tensors, upstream, materialize_grads=True)
    torch.testing.assert_close(got, want)


def test_float32_stays_close_to_float64():
    tensors = [x.requires_grad_() for x in embeddings(70, 31, 16, torch.float32)]
    negatives = draws(70, 31, 67)
    loss = ops.pixel_contrast(*tensors, negatives.int(), 0.05)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    expected = ops.pixel_contrast(*exact, negatives, 0.05)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for got, want in zip(torch.autograd.grad(loss, tensors), torch.autograd.grad(expected, exact), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)


def test_gradcheck_in_float64():
    tensors = [x.requires_grad_() for x in embeddings(4, 6, 3)]
    negatives = draws(4, 6, 5, ignored=0.3)
    for normalize in (True, False):

        def losses(*x, normalize=normalize):
            return ops.pixel_contrast(*x, negatives, TEMPERATURE, normalize=normalize, reduction="none")

        assert torch.autograd.gradcheck(losses, tensors)


def test_reductions():
    tensors, negatives = embeddings(6, 9, 4), draws(6, 9, 5)
    each = ops.pixel_contrast(*tensors, negatives, TEMPERATURE, reduction="none")
    torch.testing.assert_close(ops.pixel_contrast(*tensors, negatives, TEMPERATURE), each.mean())
    torch.testing.assert_close(ops.pixel_contrast(*tensors, negatives, TEMPERATURE, reduction="sum"), each.sum())


def test_anchors_without_negatives_have_no_loss_and_no_gradient():
    tensors = [x.requires_grad_() for x in embeddings(3, 5, 4)]
    negatives = torch.full((3, 6), -1)
    for index in (negatives, negatives[:, :0]):
        loss = ops.pixel_contrast(*tensors, index, TEMPERATURE)
        assert loss.item() == 0
        assert all(float(g.abs().max()) == 0 for g in torch.autograd.grad(loss, tensors))
    none = [x.detach()[:0].requires_grad_() for x in tensors[:2]]
    loss = ops.pixel_contrast(*none, tensors[2].detach()[:0], negatives[:0], TEMPERATURE)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, none)[0].shape == (0, 4)


def test_only_negatives_above_the_margin_push():
    anchors = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    candidates = torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    loss = ops.pixel_contrast(anchors, anchors, candidates, torch.tensor([[0, 1]]), 0.5, margin=0.3, normalize=False)
    near, far, good = math.exp(0.3 / 0.5), 1.0, math.exp(1 / 0.5)
    assert loss.item() == pytest.approx(-math.log(good / (good + near + far)))
    (grad,) = torch.autograd.grad(loss, candidates)
    assert grad[0, 0] == pytest.approx(near / (good + near + far) / 0.5)
    assert grad[1].tolist() == [0, 0]


def test_large_logits_do_not_overflow():
    anchors, positives, candidates = (50 * x for x in embeddings(5, 8, 4, torch.float32))
    loss = ops.pixel_contrast(anchors, positives, candidates, draws(5, 8, 6), 0.01, normalize=False, reduction="none")
    assert bool(loss.isfinite().all())


def test_only_the_gradients_asked_for_are_computed():
    anchors, positives, candidates = embeddings(5, 8, 4)
    negatives = draws(5, 8, 6)
    alone = candidates.clone().requires_grad_()
    ops.pixel_contrast(anchors, positives, alone, negatives, TEMPERATURE).backward()
    every = [x.clone().requires_grad_() for x in (anchors, positives, candidates)]
    ops.pixel_contrast(*every, negatives, TEMPERATURE).backward()
    torch.testing.assert_close(alone.grad, every[2].grad)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gradients_are_those_of_float32_rounded(dtype, normalize):
    """In whole registers and in the rest of a row; also what is not finite."""
    stored = [(x / 4).to(dtype) for x in embeddings(5, 8, 67)]
    negatives = draws(5, 8, 6)
    upstream = torch.tensor([1.0, -2.0, math.nan, math.inf, 1e-7])

    def gradients(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        leaves = [x.requires_grad_() for x in tensors]
        losses = ops.pixel_contrast(*leaves, negatives, TEMPERATURE, normalize=normalize, reduction="none")
        assert losses.dtype == torch.float32
        return torch.autograd.grad(losses, leaves, upstream)

    wide = gradients([x.float() for x in stored])
    found = gradients(stored)
    assert [x.dtype for x in found] == [dtype] * 3
    torch.testing.assert_close(found, tuple(x.to(dtype) for x in wide), rtol=0, atol=0, equal_nan=True)
    assert found[0].isnan().any() and found[0].isfinite().any()


def dense_expected(anchors, positives, candidates, w, draws_per_anchor):
    a, p, c = (F.normalize(x, dim=-1) for x in (anchors, positives, candidates))
    push = draws_per_anchor * (w * torch.exp(a @ c.t() / TEMPERATURE)).sum(1) / w.sum(1)
    good = torch.exp((a * p).sum(1) / TEMPERATURE)
    return -torch.log(good / (good + push)).mean()


def expected_case(anchors: int, candidates: int):
    tensors = embeddings(anchors, candidates, 5)
    generator = torch.Generator().manual_seed(11)
    scores = torch.rand(anchors + candidates, 4, generator=generator, dtype=torch.float64)
    ya, yq = F.normalize(scores, dim=-1).split([anchors, candidates])
    groups = torch.randint(0, 3, (anchors + candidates,), generator=generator).split([anchors, candidates])
    weight = torch.rand(candidates, generator=generator, dtype=torch.float64)
    return tensors, (ya, yq), groups, weight


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scope", ["all", "same", "other"])
@pytest.mark.parametrize("size", [(9, 12), (130, 515)])
def test_expected_form_follows_the_dense_formula(size, scope, weighted):
    """The larger size is one tile and a bit in both directions."""
    tensors, (ya, yq), (ga, gq), weight = expected_case(*size)
    tensors = [x.requires_grad_() for x in tensors]
    loss = ops.expected_pixel_contrast(
        *tensors,
        ya,
        yq,
        7,
        TEMPERATURE,
        anchor_group=ga,
        candidate_group=gq,
        scope=scope,
        candidate_weight=weight if weighted else None,
    )
    inside = torch.ones(size) if scope == "all" else (ga[:, None] == gq) == (scope == "same")
    w = (1 - ya @ yq.t()) * inside * (weight if weighted else 1)
    expected = dense_expected(*tensors, w, 7)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, tensors), torch.autograd.grad(expected, tensors))


def test_expected_form_with_equal_weights():
    tensors, _, _, _ = expected_case(9, 12)
    loss = ops.expected_pixel_contrast(*tensors, None, None, 7, TEMPERATURE)
    torch.testing.assert_close(loss, dense_expected(*tensors, torch.ones(9, 12, dtype=torch.float64), 7))
    halves = torch.full((12,), 0.5)  # float32 beside embeddings in float64
    weighted = ops.expected_pixel_contrast(*tensors, None, None, 7, TEMPERATURE, candidate_weight=halves)
    torch.testing.assert_close(weighted, loss)


def test_expected_form_passes_gradcheck_in_embeddings_and_scores():
    tensors, scores, groups, weight = expected_case(3, 5)
    inputs = [x.requires_grad_() for x in (*tensors, *scores)]

    def loss(a, p, c, ya, yq):
        return ops.expected_pixel_contrast(
            a,
            p,
            c,
            F.normalize(ya, dim=-1),
            F.normalize(yq, dim=-1),
            4,
            TEMPERATURE,
            anchor_group=groups[0],
            candidate_group=groups[1],
            scope="other",
            candidate_weight=weight,
        )

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("alone", [0, 1])
def test_either_side_of_the_scores_may_want_a_gradient_alone(alone):
    tensors, scores, _, _ = expected_case(9, 12)
    both = [x.clone().requires_grad_() for x in scores]
    expected = torch.autograd.grad(ops.expected_pixel_contrast(*tensors, *both, 7, TEMPERATURE), both)
    one = [x.clone().requires_grad_(i == alone) for i, x in enumerate(scores)]
    (grad,) = torch.autograd.grad(ops.expected_pixel_contrast(*tensors, *one, 7, TEMPERATURE), one[alone])
    torch.testing.assert_close(grad, expected[alone])
    assert float(grad.abs().max()) > 0


def test_expected_form_without_a_candidate_in_scope_is_zero():
    tensors, scores, _, _ = expected_case(3, 5)
    tensors = [x.requires_grad_() for x in tensors]
    loss = ops.expected_pixel_contrast(
        *tensors,
        *scores,
        4,
        TEMPERATURE,
        anchor_group=torch.tensor([0, 0, 1]),
        candidate_group=torch.full((5,), 2),
        scope="same",
    )
    assert loss.item() == 0
    assert all(float(g.abs().max()) == 0 for g in torch.autograd.grad(loss, tensors))


def test_the_sampled_loss_approaches_its_expected_form():
    """With R large, sum_r exp(s_r) over draws with replacement tends to its mean: one draw, repeated over anchors."""
    tensors, (ya, yq), _, _ = expected_case(1, 40)
    count = 20000
    drawn = ops.sample_negatives(ya.expand(count, -1).contiguous(), yq, 1, seed=2)
    a, _, c = (F.normalize(x, dim=-1) for x in tensors)
    push = torch.exp((a @ c.t())[0, drawn[:, 0].long()] / TEMPERATURE)
    w = 1 - ya @ yq.t()
    expected = (w * torch.exp(a @ c.t() / TEMPERATURE)).sum() / w.sum()
    assert float(push.mean()) == pytest.approx(float(expected), abs=4 * float(push.std()) / count**0.5)


def test_no_anchors_by_candidates_matrix_is_kept():
    """The state that the expected form saves for its backward pass grows with A + M, not with A x M."""
    tensors, scores, _, _ = expected_case(300, 700)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        ops.expected_pixel_contrast(*[x.requires_grad_() for x in tensors], *scores, 4, TEMPERATURE)
    assert max(saved) <= 700 * 5
    assert reference._TILE_ANCHORS * reference._TILE_CANDIDATES < 300 * 700


A, P, M_ = embeddings(3, 5, 4, torch.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"positives": P[:2]}, ValueError, r"positives: found shape \(2, 4\), expected \(3, 4\)"),
        ({"candidates": M_[:, :3]}, ValueError, r"candidates: found shape \(5, 3\), expected \(M, 4\)"),
        ({"candidates": M_.double()}, ValueError, "candidates: dtype torch.float64, expected torch.float32 as anchors"),
        ({"negatives": torch.zeros(3, 2)}, TypeError, "negatives: expected int32 or int64, found torch.float32"),
        ({"negatives": torch.full((3, 2), 5)}, ValueError, r"negatives: found values in \[5, 5\], expected -1 or an"),
        ({"negatives": torch.zeros(2, 2).long()}, ValueError, r"negatives: found shape \(2, 2\), expected \(3, R\)"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a positive finite number, found 0.0"),
        ({"reduction": "max"}, ValueError, "reduction='max' is unknown; expected one of mean, none, sum"),
        ({"backend": "cuda"}, RuntimeError, "backend='cuda' cannot run: it runs on cuda tensors"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    good = {"anchors": A, "positives": P, "candidates": M_, "negatives": draws(3, 5, 2), "temperature": 0.1}
    with pytest.raises(error, match=message):
        ops.pixel_contrast(**{**good, **arguments})


def test_expected_form_names_wrong_arguments():
    with pytest.raises(ValueError, match="expected both, or None for both"):
        ops.expected_pixel_contrast(A, P, M_, None, torch.rand(5, 2), 3, 0.1)
    with pytest.raises(ValueError, match="scope='same' needs anchor_group and candidate_group"):
        ops.expected_pixel_contrast(A, P, M_, None, None, 3, 0.1, scope="same")
    with pytest.raises(ValueError, match=r"candidate_scores: found shape \(4, 2\), expected \(5, 2\)"):
        ops.expected_pixel_contrast(A, P, M_, torch.rand(3, 2), torch.rand(4, 2), 3, 0.1)
