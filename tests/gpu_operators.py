"""The GPU backends against the reference: values, gradients and indices, operator by operator.

On a GPU both backends, else Triton's in its interpreter on the CPU; the CUDA kernels have emulated tests in
test_cuda_*.py. test_triton.py and test_gpu_steps.py run all gpu_*.py in processes of their own, since the interpreter
has to be chosen before Triton is imported: TRITON_INTERPRET=1 python -m pytest tests/gpu_*.py. They need nothing but
torch, Triton, NumPy, SciPy and pytest.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from on_device import DEVICE, on_device, thinned
from test_operators import (
    CONTRAST_SHAPES,
    CUES,
    FUSION_SHAPES,
    SAMPLING_SHAPES,
    check_budget,
    generator,
    random,
    raw_samples,
    sampling_case,
    unit,
)
from torch import Tensor

from sskd_fast import kernels, ops

pytestmark = pytest.mark.usefixtures("on_the_device")
LONG = pytest.mark.slow


FUSION = [
    pytest.param(shape, cues, dtype, id=f"{shape}-{cues}-{dtype}", marks=[LONG] * long)
    for shape in FUSION_SHAPES
    for cues in CUES
    for dtype in (torch.float64, torch.float32)
    for long in [shape[-1] is not None and (cues != "object" or shape[1] > 50 or dtype == torch.float64)]
]


@pytest.mark.parametrize(("shape", "cues", "dtype"), thinned(FUSION))
def test_score_fusion_keeps_the_error_budget(backend, shape, cues, dtype):
    b, k, c, h, w, size = shape
    inputs = on_device(3 * random(b, k, h, w), 2 * random(b, k, c + 1))
    check_budget(lambda m, p, on: ops.fuse_scores(m, p, size, cues=cues, backend=on), inputs, dtype, backend)


def test_more_classes_than_a_panel_and_more_queries_than_a_tile(backend):
    for cues in CUES:
        inputs = on_device(3 * random(1, 130, 3, 5), 2 * random(1, 130, 45))
        check_budget(
            lambda m, p, on, cues=cues: ops.fuse_scores(m, p, cues=cues, backend=on), inputs, torch.float32, backend
        )


SHORT = ((True, 0.1, True), (False, None, False))
CONTRAST = [
    pytest.param(shape, normalize, margin, dtype, id=f"{shape}-{normalize}-{margin}-{dtype}", marks=[LONG] * long)
    for shape in CONTRAST_SHAPES
    for normalize, margin in ((True, None), (True, 0.1), (False, None))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    # Every shape in both precisions at least once; the rest of the product takes minutes.
    for long in [shape[0] > 100 or (shape[0] > 30 and (normalize, margin, dtype.itemsize != 2) not in SHORT)]
]


@pytest.mark.parametrize(("shape", "normalize", "margin", "dtype"), thinned(CONTRAST))
def test_pixel_contrast_keeps_the_error_budget(backend, shape, normalize, margin, dtype):
    a, m, r, d = shape
    negatives = torch.randint(-1, m, (a, r), generator=generator(a, m, r), device="cpu").to(DEVICE)
    scale = 1 if normalize else 1 / math.sqrt(d)
    inputs = on_device(scale * random(a, d), scale * random(a, d, seed=1), scale * random(m, d, seed=2))

    def run(x: Tensor, p: Tensor, c: Tensor, backend: str) -> Tensor:
        settings = {"margin": margin, "normalize": normalize, "reduction": "none", "backend": backend}
        return ops.pixel_contrast(x, p, c, negatives, 0.2, **settings)

    check_budget(run, inputs, dtype, backend)


# One of each, primes, a tile, one past a tile, and rows of more than one panel in the last two.
EXPECTED_SHAPES = [(1, 1, 1, 1), (7, 13, 5, 3), (64, 32, 4, 16), (67, 131, 20, 40), (5, 9, 140, 150), (5, 9, 300, 20)]


EXPECTED = [
    pytest.param(shape, scope, dtype, id=f"{shape}-{scope}-{dtype}", marks=[LONG] * long)
    for i, shape in enumerate(EXPECTED_SHAPES)
    for j, scope in enumerate(("all", "same", "other"))
    for k, dtype in enumerate((torch.float64, torch.float32, torch.bfloat16, torch.float16))
    # Every type once in each shape, with another scope in the next one; a tile takes the interpreter a second.
    for long in [shape[0] > 1 and (i + j + k) % 3 > 0]
]


@pytest.mark.parametrize(("shape", "scope", "dtype"), thinned(EXPECTED))
def test_the_expected_form_keeps_the_error_budget(backend, shape, scope, dtype):
    a, m, e, d = shape
    inputs = on_device(random(a, d), random(a, d, seed=1), random(m, d, seed=2))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    scores = on_device(unit(random(a, e).abs()), unit(random(m, e, seed=1).abs()))
    settings: dict[str, Any] = {"anchor_group": torch.arange(a) % 3, "candidate_group": torch.arange(m) % 3}
    settings |= {"scope": scope, "candidate_weight": random(m, seed=3).abs().to(DEVICE)}

    def of_embeddings(x: Tensor, p: Tensor, c: Tensor, backend: str) -> Tensor:
        return ops.expected_pixel_contrast(x, p, c, *scores, 9, 0.2, backend=backend, **settings)

    def of_scores(y: Tensor, q: Tensor, backend: str) -> Tensor:
        rows = [x.to(y.dtype) for x in inputs]
        return ops.expected_pixel_contrast(*rows, y, q, 9, 0.2, backend=backend, **settings)

    check_budget(of_embeddings, inputs, dtype, backend)
    if dtype == compute:
        check_budget(of_scores, scores, dtype, backend)


def test_the_expected_form_without_scores_and_unit_vectors_as_they_are(backend):
    inputs = on_device(*(random(n, 24, seed=n) / 5 for n in (40, 40, 70)))
    for scope in ("all", "other"):
        groups = {"anchor_group": torch.arange(40) % 3, "candidate_group": torch.arange(70) % 3, "scope": scope}
        check_budget(
            lambda x, p, c, on, groups=groups: ops.expected_pixel_contrast(
                x, p, c, None, None, 7, 0.3, normalize=False, backend=on, **groups
            ),
            inputs,
            torch.float32,
            backend,
        )


SAMPLING = [
    pytest.param(shape, kind, scope, weighted, id=f"{shape}-{kind}-{scope}-{weighted}", marks=[LONG] * long)
    for shape in SAMPLING_SHAPES
    for i, kind in enumerate(("fused", "peaked", "alike"))
    for j, scope in enumerate(("all", "same", "other"))
    for weighted in (False, True)
    # Every kind and scope once of the larger shapes: a draw takes the interpreter a millisecond.
    for long in [shape[0] > 1 and (i != j or (shape[0] > 5 and (weighted != (i == 1) or (shape[0] > 30 and i > 0))))]
]


@pytest.mark.parametrize(("shape", "kind", "scope", "weighted"), thinned(SAMPLING))
def test_the_same_negatives_are_drawn(backend, shape, kind, scope, weighted):
    a, m, e, r = shape
    settings: dict[str, Any] = {"seed": 11, "anchor_group": torch.arange(a) % 4, "candidate_group": torch.arange(m) % 3}
    settings |= {"scope": scope, "candidate_weight": random(m, seed=3).abs().to(DEVICE) if weighted else None}
    scores = on_device(*sampling_case(a, m, e, kind, torch.float64))
    rows = [ops.sample_negatives(*scores, r, **settings, backend=b) for b in ("reference", backend)]
    assert torch.equal(*rows)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fused", "peaked", "alike"] if DEVICE == "cuda" else ["fused"])
def test_the_same_negatives_are_drawn_in_float32(backend, kind):
    """Rounding may turn a trial, in at most one row of a thousand."""
    # The interpreter takes a millisecond for a draw.
    anchors, draws = (500, 100) if DEVICE == "cuda" else (150, 20)
    scores = on_device(*sampling_case(anchors, 1500, 109, kind, torch.float32))
    rows = [ops.sample_negatives(*scores, draws, seed=4, backend=b) for b in ("reference", backend)]
    assert float((rows[0] == rows[1]).all(1).float().mean()) >= 0.999


def test_uniform_negatives_are_the_same(backend):
    anchors, group = torch.zeros(20, 1), torch.zeros(300, dtype=torch.int64)
    rows = [
        ops.sample_negatives(anchors, None, 50, seed=2, candidate_group=group, backend=b)
        for b in ("reference", backend)
    ]
    assert torch.equal(*rows)


def test_the_race_completes_what_the_trials_left(backend):
    """Two candidates of 10 have nearly all the weight, so that the third draw outlasts the trials."""
    rows = torch.cat([torch.tensor([[1.0, 1e-6 * i, 0] for i in range(8)]), torch.eye(3)[1:]]).double()
    scores = unit(rows)
    drawn = [
        ops.sample_negatives(scores[:1].expand(6, 3).contiguous(), scores, 4, seed=9, backend=b)
        for b in ("reference", backend)
    ]
    assert torch.equal(*drawn) and bool((drawn[0][:, :2] >= 8).all())


def test_programs_of_the_race_take_one_anchor_after_the_other(backend, monkeypatch):
    """Two programs for seven anchors, some of which lack nothing."""
    monkeypatch.setattr(importlib.import_module(f"{kernels.__name__}._tuning"), "RACE_PROGRAMS", 2)
    scores = on_device(*sampling_case(7, 60, 5, "fused", torch.float64))
    groups = {"anchor_group": torch.arange(7) % 2, "candidate_group": (torch.arange(60) >= 50).long()}
    drawn = [
        ops.sample_negatives(*scores, 6, seed=3, scope="same", **groups, backend=b) for b in ("reference", backend)
    ]
    assert torch.equal(*drawn)


def test_missing_candidates_and_extreme_weights(backend):
    scores = unit(torch.eye(4, dtype=torch.float64)[[0] * 47 + [1, 2, 3]])
    drawn = [ops.sample_negatives(scores[:3], scores, 6, seed=0, backend=b) for b in ("reference", backend)]
    assert torch.equal(*drawn) and bool(drawn[0][:, 3:].eq(-1).all())
    for weight in (torch.zeros(50), torch.full((50,), 1e-300, dtype=torch.float64), torch.eye(50)[48]):
        drawn = [
            ops.sample_negatives(scores[:3], scores, 2, seed=0, candidate_weight=weight, backend=b)
            for b in ("reference", backend)
        ]
        assert torch.equal(*drawn)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_hardest_are_the_same(backend, dtype):
    anchors, candidates = on_device(random(23, 37).to(dtype), random(90, 37, seed=1).to(dtype))
    drawn = torch.randint(-1, 90, (23, 45), generator=generator(4), device="cpu").to(DEVICE)
    candidates[5] = math.nan
    assert torch.equal(
        *(ops.hardest_negatives(anchors, candidates, drawn, 20, backend=b) for b in ("reference", backend))
    )


def test_ties_keep_the_order_drawn_and_nan_comes_last(backend):
    candidates = torch.tensor([[1.0, 0], [2, 0], [math.nan, 0], [-0.0, 1], [0, 1], [-1, 0], [0, 0]])
    drawn = torch.tensor([[2, -1, 1, 0, 4, 3, 5, 6]])
    found = ops.hardest_negatives(torch.tensor([[1.0, 0]]), candidates, drawn, 8, backend=backend)
    assert found.tolist() == [[1, 0, 4, 3, 6, 5, 2, -1]]


def test_half_precision_ranks_by_similarities_in_float32(backend):
    """Cosines that differ by less than bfloat16 can tell."""
    candidates = torch.stack([torch.ones(16), torch.arange(16) / 64], 1).bfloat16()
    drawn = torch.randperm(16, generator=generator(3), device="cpu").to(DEVICE)[None]
    found = ops.hardest_negatives(candidates[:1], candidates, drawn, 16, backend=backend)
    assert found.tolist() == [list(range(16))]


def test_nothing_in_gives_nothing_out(backend):
    assert ops.fuse_scores(torch.zeros(0, 3, 4, 4), torch.zeros(0, 3, 2), backend=backend).shape == (0, 16, 5)
    none = torch.zeros(0, 8, requires_grad=True)
    loss = ops.pixel_contrast(none, none, none, torch.zeros(0, 3, dtype=torch.int32), 0.1, backend=backend)
    assert loss.item() == 0 and torch.autograd.grad(loss, none)[0].shape == (0, 8)
    z = torch.ones(2, 8, requires_grad=True)
    loss = ops.expected_pixel_contrast(z, z, none, None, None, 3, 0.1, backend=backend)
    assert loss.item() == 0 and float(torch.autograd.grad(loss, z)[0].abs().max()) == 0
    assert ops.hardest_negatives(z, none, torch.full((2, 3), -1), 2, backend=backend).tolist() == [[-1, -1]] * 2
    scores = unit(torch.ones(4, 3))
    assert ops.sample_negatives(scores[:0], scores, 3, seed=0, backend=backend).shape == (0, 3)
    assert ops.sample_negatives(scores, scores[:0], 3, seed=0, backend=backend).eq(-1).all()


def test_strided_inputs_and_every_run_give_the_same_bits(backend):
    wide = [torch.randn(11, 20, generator=generator(i), dtype=torch.float64, device="cpu").to(DEVICE) for i in range(3)]
    negatives = torch.randint(0, 11, (11, 14), generator=generator(4), device="cpu").to(DEVICE)[:, ::2]
    results = []
    for strided in (True, False, False):
        leaves = [(x[:, ::2] if strided else x[:, ::2].contiguous()).detach().requires_grad_() for x in wide]
        loss = ops.pixel_contrast(*leaves, negatives if strided else negatives.contiguous(), 0.2, backend=backend)
        loss = loss + ops.expected_pixel_contrast(*leaves, None, None, 5, 0.2, backend=backend)
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("index", range(12))
def test_raw_operators_match_their_schemas(backend, index):
    operator, arguments = raw_samples(backend)[index]
    # The interpreter leaves out what does not depend on the backend, which test_operators.py checks.
    of_backend = "test_schema", "test_faketensor"
    torch.library.opcheck(operator, arguments, **({} if DEVICE == "cuda" else {"test_utils": of_backend}))
