"""Properties of all operators on all backends: error budget, indices, schemas, compilation, odd shapes, strides."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.torch_version import TorchVersion

from sskd_fast import ops
from sskd_fast.reference.score_fusion import CUES

# (B, K, C, H, W, size): one pixel, primes, one vector of pixels and one past it, resized up and down.
FUSION_SHAPES = [
    (1, 1, 1, 1, 1, None),
    (2, 7, 3, 5, 11, None),
    (1, 3, 2, 4, 4, None),
    (1, 5, 4, 1, 17, None),
    (2, 4, 2, 3, 5, (7, 13)),
    (3, 9, 5, 16, 16, (5, 3)),
    (1, 100, 8, 8, 16, (19, 37)),
]
# (A, M, R, D): one of each, primes, tiles and one past a tile, more negatives than candidates, wide and narrow rows.
CONTRAST_SHAPES = [
    (1, 1, 1, 1),
    (7, 13, 5, 3),
    (64, 32, 16, 16),
    (65, 33, 17, 128),
    (31, 5, 40, 37),
    (130, 257, 200, 129),
]
# (A, M, E, R): few candidates (the race), many (rejection), one past a chunk of trials, wide rows, still wider ones.
SAMPLING_SHAPES = [
    (1, 1, 1, 1),
    (5, 3, 2, 7),
    (23, 401, 5, 17),
    (33, 530, 109, 60),
    (9, 700, 131, 16),
    (9, 300, 193, 16),
]


def generator(*seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(sum(7**i * s for i, s in enumerate(seed)))


def random(*shape: int, seed: int = 0) -> Tensor:
    """The same numbers on every device: on the one that is the default where this is called."""
    numbers = torch.randn(shape, generator=generator(*shape, seed), dtype=torch.float64, device="cpu")
    return numbers.to(torch.get_default_device())


def unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1)


def within_budget(found: Tensor, same_dtype: Tensor, exact: Tensor) -> None:
    """Error at most twice that of the reference in the same dtype, and a tiny absolute term."""
    assert found.dtype == same_dtype.dtype and found.shape == exact.shape
    if exact.numel() == 0:
        return
    budget = 2 * float((same_dtype.double() - exact).abs().max())
    largest, eps = float(exact.abs().max()), torch.finfo(found.dtype).eps
    # In float64 the reference is not more exact than what is tested. Where everything cancels, as in the gradient of a
    # normalised single number, rounding is all there is.
    tiny = (64 if found.dtype == torch.float64 else 4) * eps * largest if largest > 1e-3 else eps
    assert float((found.double() - exact).abs().max()) <= budget + tiny


def value_and_grads(run: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = run(*leaves)
    weight = random(*value.shape, seed=5).to(value)
    return [value.detach(), *torch.autograd.grad(value, leaves, weight, allow_unused=False)]


def check_budget(run: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype, backend: str = "cpu") -> None:
    rounded = [x.to(dtype) for x in inputs]
    exact = value_and_grads(lambda *x: run(*x, "reference"), [x.double() for x in rounded])
    reference = value_and_grads(lambda *x: run(*x, "reference"), rounded)
    found = value_and_grads(lambda *x: run(*x, backend), rounded)
    for each in zip(found, reference, exact, strict=True):
        within_budget(*each)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cues", CUES)
@pytest.mark.parametrize("shape", FUSION_SHAPES, ids=str)
def test_score_fusion_keeps_the_error_budget(shape, cues, dtype):
    b, k, c, h, w, size = shape
    inputs = [3 * random(b, k, h, w), 2 * random(b, k, c + 1)]
    check_budget(lambda m, p, backend: ops.fuse_scores(m, p, size, cues=cues, backend=backend), inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", CONTRAST_SHAPES, ids=str)
def test_pixel_contrast_keeps_the_error_budget(shape, normalize, margin, dtype):
    a, m, r, d = shape
    negatives = torch.randint(-1, m, (a, r), generator=generator(a, m, r))
    scale = 1 if normalize else 1 / math.sqrt(d)
    inputs = [scale * random(a, d), scale * random(a, d, seed=1), scale * random(m, d, seed=2)]

    def run(x: Tensor, p: Tensor, c: Tensor, backend: str) -> Tensor:
        settings = {"margin": margin, "normalize": normalize, "reduction": "none", "backend": backend}
        return ops.pixel_contrast(x, p, c, negatives, 0.2, **settings)

    check_budget(run, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", ["all", "same", "other"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (7, 13, 5, 3), (64, 32, 4, 16), (67, 131, 20, 40)], ids=str)
def test_the_expected_form_keeps_the_error_budget(shape, scope, dtype):
    a, m, e, d = shape
    inputs = [random(a, d), random(a, d, seed=1), random(m, d, seed=2)]
    scores = unit(random(a, e).abs()), unit(random(m, e, seed=1).abs())
    groups = {"anchor_group": torch.arange(a) % 3, "candidate_group": torch.arange(m) % 3}

    def run(x: Tensor, p: Tensor, c: Tensor, backend: str) -> Tensor:
        settings = {**groups, "scope": scope, "backend": backend, "candidate_weight": random(m, seed=3).abs()}
        return ops.expected_pixel_contrast(x, p, c, *scores, 9, 0.2, **settings)

    check_budget(run, inputs, dtype)


def sampling_case(a: int, m: int, e: int, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Unit score vectors: spread out, peaked, or nearly the same."""
    rows = random(a + m, e, seed=3)
    spread = {"fused": (3 * rows).softmax(-1), "peaked": (30 * rows).softmax(-1), "alike": 1 + 1e-3 * rows.abs()}
    anchors, candidates = unit(spread[kind]).to(dtype).split([a, m])
    return anchors.contiguous(), candidates.contiguous()


@pytest.mark.parametrize("kind", ["fused", "peaked", "alike"])
@pytest.mark.parametrize("scope", ["all", "same", "other"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SAMPLING_SHAPES, ids=str)
def test_both_backends_draw_the_same_negatives(shape, weighted, scope, kind):
    a, m, e, r = shape
    settings = {"seed": 11, "anchor_group": torch.arange(a) % 4, "candidate_group": torch.arange(m) % 3, "scope": scope}
    settings["candidate_weight"] = random(m, seed=3).abs() if weighted else None
    scores = sampling_case(a, m, e, kind, torch.float64)
    reference = ops.sample_negatives(*scores, r, **settings, backend="reference")
    assert torch.equal(reference, ops.sample_negatives(*scores, r, **settings, backend="cpu"))


@pytest.mark.parametrize("kind", ["fused", "peaked", "alike"])
def test_both_backends_draw_the_same_negatives_in_float32(kind):
    """2000 anchors: rounding may turn a trial, in at most one row of a thousand."""
    scores = sampling_case(2000, 1500, 109, kind, torch.float32)
    rows = [ops.sample_negatives(*scores, 100, seed=4, backend=b) for b in ("reference", "cpu")]
    assert float((rows[0] == rows[1]).all(1).float().mean()) >= 0.999


def test_uniform_negatives_are_the_same_on_both_backends():
    anchors, group = torch.zeros(40, 1), torch.zeros(300, dtype=torch.int64)
    settings = {"seed": 2, "candidate_group": group}
    rows = [ops.sample_negatives(anchors, None, 50, **settings, backend=b) for b in ("reference", "cpu")]
    assert torch.equal(*rows)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(threads):
    scores = sampling_case(700, 600, 20, "fused", torch.float32)
    masks, classes = random(2, 9, 20, 30).float(), random(2, 9, 4).float()
    z, p, c = (random(n, 24, seed=n).float() for n in (700, 700, 600))

    def everything() -> list[Tensor]:
        drawn = ops.sample_negatives(*scores, 60, seed=1, backend="cpu")
        leaves = [x.clone().requires_grad_() for x in (z, p, c)]
        loss = ops.pixel_contrast(*leaves, drawn, 0.1, backend="cpu")
        expected = ops.expected_pixel_contrast(*leaves, *scores, 60, 0.1, backend="cpu")
        logits = [x.clone().requires_grad_() for x in (masks, classes)]
        fused = ops.fuse_scores(*logits, (11, 13), cues="object", backend="cpu")
        return [
            drawn,
            loss,
            expected,
            fused,
            *torch.autograd.grad(loss + expected, leaves),
            *torch.autograd.grad(fused.square().cumsum(-1).sum(), logits),
        ]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        wanted = everything()
        torch.set_num_threads(threads)
        found = everything()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


def test_permuted_strides_and_slices_do_not_matter():
    masks, classes = random(2, 5, 6, 7), random(2, 5, 4)
    fused = ops.fuse_scores(masks, classes, backend="cpu")
    strided = masks.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0), classes.transpose(0, 1).contiguous()
    assert torch.equal(ops.fuse_scores(strided[0], strided[1].transpose(0, 1), backend="cpu"), fused)
    wide = [torch.randn(11, 20, generator=generator(i), dtype=torch.float64) for i in range(3)]
    halves = [x[:, ::2] for x in wide]
    negatives = torch.randint(0, 11, (11, 14), generator=generator(4))[:, ::2]
    packed = ops.pixel_contrast(*[x.contiguous() for x in halves], negatives.contiguous(), 0.2, backend="cpu")
    assert torch.equal(ops.pixel_contrast(*halves, negatives, 0.2, backend="cpu"), packed)
    scores = unit(random(30, 12).abs())[:, ::2]
    scores = unit(scores)
    transposed = scores.t().contiguous().t()
    drawn = ops.sample_negatives(scores, scores, 5, seed=1, backend="cpu")
    assert torch.equal(drawn, ops.sample_negatives(transposed, transposed, 5, seed=1, backend="cpu"))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_nothing_in_gives_nothing_out(backend):
    assert ops.fuse_scores(torch.zeros(0, 3, 4, 4), torch.zeros(0, 3, 2), backend=backend).shape == (0, 16, 5)
    none = torch.zeros(0, 8, requires_grad=True)
    loss = ops.pixel_contrast(none, none, none, torch.zeros(0, 3, dtype=torch.int32), 0.1, backend=backend)
    assert loss.item() == 0 and torch.autograd.grad(loss, none)[0].shape == (0, 8)
    z = torch.ones(2, 8, requires_grad=True)
    loss = ops.expected_pixel_contrast(z, z, none, None, None, 3, 0.1, backend=backend)
    assert loss.item() == 0 and float(torch.autograd.grad(loss, z)[0].abs().max()) == 0
    assert ops.hardest_negatives(z, none, torch.full((2, 3), -1), 2, backend=backend).tolist() == [[-1, -1]] * 2


def raw_samples(backend: str) -> list[tuple[Any, tuple[Any, ...]]]:
    """Every raw operator with arguments for it."""
    raw, heat = torch.ops.sskd_fast, torch.tensor([0.2], dtype=torch.float64)
    masks, classes = random(2, 5, 4, 6).float(), random(2, 5, 3).float()
    logits = masks, classes, 3, 5, "object", backend
    scores = ops.fuse_scores(masks, classes, cues="object")
    rows = scores.flatten(0, 1)
    group = torch.arange(len(rows)) // 24
    z, p = random(48, 8).float(), random(48, 8, seed=1).float()
    drawn = torch.randint(-1, 48, (48, 6), generator=generator(1), dtype=torch.int32, device="cpu").to(z.device)
    kept = raw.pixel_contrast.default(z, p, z, drawn, heat, 0.1, True, True, backend)
    details = rows, rows, None, group, group, False
    state = raw.expected_pixel_contrast.default(z, p, z, *details, 6, heat, True, backend)
    given = state[0], z, p, z, *details
    seed = torch.tensor([3])
    return [
        (raw.score_fusion.default, logits),
        (raw.score_fusion_backward.default, (random(2, 15, 8).float(), *logits)),
        (raw.negative_sampling.default, (rows, group, rows, rows[:, 0].double(), group, False, 4, seed, backend)),
        (raw.negative_sampling.default, (rows, group, None, None, group, True, 4, seed, backend)),
        (raw.hardest_negatives.default, (z, z, drawn, 2, backend)),
        (raw.pixel_contrast.default, (z, p, z, drawn, heat, None, True, True, backend)),
        (raw.pixel_contrast.default, (z, p, z, drawn, heat, 0.1, False, False, backend)),
        (raw.pixel_contrast_backward.default, (kept[0], z, p, z, drawn, *kept[1:], heat, True, True, True, backend)),
        (raw.pixel_contrast_backward.default, (kept[0], z, p, z, drawn, *kept[1:], heat, True, False, False, backend)),
        (raw.expected_pixel_contrast.default, (z, p, z, *details, 6, heat, True, backend)),
        (raw.expected_pixel_contrast_backward.default, (*given, *state[1:], heat, True, True, backend)),
        (raw.expected_pixel_contrast_backward.default, (*given, *state[1:], heat, True, False, backend)),
    ]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("index", range(12))
def test_raw_operators_match_their_schemas(index, backend):
    operator, arguments = raw_samples(backend)[index]
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_tensor_as_temperature_changes_without_another_compilation(backend):
    z, p, drawn = random(48, 8), random(48, 8, seed=1), torch.randint(0, 48, (48, 6), generator=generator(1))
    graphs = 0

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    def loss(temperature: Tensor | float) -> Tensor:
        sampled = ops.pixel_contrast(z, p, z, drawn, temperature, backend=backend)
        return sampled + ops.expected_pixel_contrast(z, p, z, None, None, 6, temperature, backend=backend)

    compiled = torch.compile(loss, fullgraph=True, backend=count)
    for value in (0.3, 0.2, 0.07):
        torch.testing.assert_close(compiled(torch.tensor(value)), loss(value), rtol=1e-6, atol=0)
    assert graphs == 1
    for wrong in (0.0, -0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature: expected a positive finite number"):
            loss(torch.tensor(wrong))
    with pytest.raises(ValueError, match=r"temperature: a tensor must have one element, found shape \(2,\)"):
        loss(torch.ones(2))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_public_functions_compile_into_one_graph(backend):
    masks, classes = random(2, 5, 4, 6).float(), random(2, 5, 3).float()
    z, p = random(48, 8).float(), random(48, 8, seed=1).float()
    group = torch.arange(48) // 24

    def step(masks: Tensor, classes: Tensor, z: Tensor, p: Tensor, seed: Tensor) -> Tensor:
        scores = ops.fuse_scores(masks, classes, cues="object", backend=backend)
        rows = scores.flatten(0, 1).detach()
        settings = {"anchor_group": group, "candidate_group": group, "scope": "other", "backend": backend}
        drawn = ops.sample_negatives(rows, rows, 8, seed=seed, **settings)
        hard = ops.hardest_negatives(z, z, drawn, 4, backend=backend)
        sampled = ops.pixel_contrast(z, p, z, hard, 0.2, backend=backend)
        return sampled + ops.expected_pixel_contrast(z, p, z, rows, rows, 8, 0.2, **settings) + scores[..., 0].sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for seed in (1, 2):
        leaves = [[x.clone().requires_grad_() for x in (masks, classes, z, p)] for _ in range(2)]
        values = [f(*x, torch.tensor([seed])) for f, x in zip((step, compiled), leaves, strict=True)]
        torch.testing.assert_close(*values)
        grads = [torch.autograd.grad(v, x) for v, x in zip(values, leaves, strict=True)]
        torch.testing.assert_close(*grads)


LOGITS = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_wrong_index_is_found_wherever_it_is(backend, dtype):
    rows = unit(random(4099, 3))

    def contrast(negatives: Tensor) -> Tensor:
        return ops.pixel_contrast(rows, rows, rows, negatives, 0.1, backend=backend)

    right = torch.arange(2 * 4099, dtype=dtype).remainder(4099).view(4099, 2)
    right[7, 0] = -1
    assert bool(contrast(right).isfinite())
    for place, value in [((4098, 1), 4099), ((4098, 1), -2), ((0, 0), 4099), ((2050, 0), -2)]:
        wrong = right.clone()
        wrong[place] = value
        with pytest.raises(ValueError, match=r"negatives: found values in \[.*expected -1 or an index below 4099"):
            contrast(wrong)


@pytest.mark.parametrize("value", [2**32, -(2**32) - 1])
def test_an_index_that_fits_into_32_bits_only_when_cut_is_wrong(backend, value):
    rows = unit(random(4, 3))
    with pytest.raises(ValueError, match="negatives: found values in"):
        ops.pixel_contrast(rows, rows, rows, torch.tensor([[0], [value], [0], [0]]), 0.1, backend=backend)


def test_values_out_of_range_are_named(backend):
    for index, name in enumerate(("mask_logits", "class_logits")):
        for value in (math.nan, math.inf):
            wrong = [x.clone() for x in LOGITS]
            wrong[index][1, 2, 0] = value
            with pytest.raises(ValueError, match=f"{name}: image 1 has non-finite values, expected finite logits"):
                ops.fuse_scores(*wrong, backend=backend)
    rows = unit(torch.eye(4))
    with pytest.raises(ValueError, match="candidate_scores: row 2 has norm 3, expected rows of unit norm"):
        ops.sample_negatives(rows, rows * torch.tensor([1, 1, 3, 1])[:, None], 1, seed=0, backend=backend)
    with pytest.raises(ValueError, match="anchor_scores: row 1 has entries down to -1, expected non-negative rows"):
        ops.sample_negatives(rows * torch.tensor([1, -1, 1, 1])[:, None], rows, 1, seed=0, backend=backend)
    with pytest.raises(ValueError, match=r"negatives: found values in \[-2, 0\], expected -1 or an index below 4"):
        ops.pixel_contrast(rows, rows, rows, torch.tensor([[0], [-2], [0], [0]]), 0.1, backend=backend)
    for temperature in (math.nan, math.inf, -0.1):
        with pytest.raises(ValueError, match="temperature: expected a positive finite number"):
            ops.expected_pixel_contrast(rows, rows, rows, None, None, 1, temperature, backend=backend)
    with pytest.raises(ValueError, match="margin: expected a finite number or None, found nan"):
        ops.pixel_contrast(rows, rows, rows, torch.zeros(4, 1).int(), 0.1, margin=math.nan, backend=backend)
    with pytest.raises(ValueError, match="candidate_weight: found negative or non-finite values"):
        weight = torch.tensor([1, math.nan, 1, 1])
        ops.expected_pixel_contrast(rows, rows, rows, None, None, 1, 0.1, candidate_weight=weight, backend=backend)
    with pytest.raises(ValueError, match="anchor_scores: row 0 has norm nan, expected rows of unit norm"):
        ops.expected_pixel_contrast(rows, rows, rows, rows * math.nan, rows, 1, 0.1, backend=backend)
    for empty in (torch.zeros(1, 0, 4, 4), torch.zeros(1, 3, 0, 4)):
        with pytest.raises(ValueError, match=r"mask_logits: found shape .* expected at least one query and one pixel"):
            ops.fuse_scores(empty, torch.zeros(1, empty.shape[1], 2), (2, 2), backend=backend)
    with pytest.raises(TypeError, match="temperature: expected a number or a tensor, found NoneType"):
        ops.pixel_contrast(rows, rows, rows, torch.zeros(4, 1).int(), None, backend=backend)
    with pytest.raises(TypeError, match=r"seed: a tensor must be int64, found torch\.int32"):
        ops.sample_negatives(rows, rows, 1, seed=torch.tensor([1], dtype=torch.int32), backend=backend)


def tiled_case(m: int) -> tuple[list[Tensor], Tensor]:
    """Rows of 64 KB. A tile has 16 to 64 of them, or 128 on processors with a small second-level cache.

    So there are several tiles of anchors on every processor. Of m candidates there are one or a few for 80, a few or
    many for 300, many for 1200. A few tiles pick their negatives, more than eight have them sorted.
    """
    a, d = 150, 16384
    negatives = torch.randint(-1, m, (a, 12), generator=generator(9))
    return [random(a, d) / 128, random(a, d, seed=1) / 128, random(m, d, seed=2) / 128], negatives


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("candidates", "margin", "normalize"),
    [(1200, 0.01, True), (300, None, True), (300, 0.01, True), (80, 0.01, True), (80, None, False)],
)
def test_large_sets_are_worked_through_in_tiles(candidates, margin, normalize, dtype):
    tensors, negatives = tiled_case(candidates)
    negatives[::3, 1::4] = -1

    def run(x: Tensor, p: Tensor, c: Tensor, backend: str) -> Tensor:
        settings = {"margin": margin, "normalize": normalize, "reduction": "none", "backend": backend}
        return ops.pixel_contrast(x, p, c, negatives, 0.07, **settings)

    check_budget(run, tensors, dtype)


@pytest.mark.parametrize("candidates", [80, 300, 1200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_number_of_threads_changes_no_bit_over_several_tiles(dtype, candidates):
    tensors, negatives = tiled_case(candidates)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            leaves = [x.to(dtype).requires_grad_() for x in tensors]
            loss = ops.pixel_contrast(*leaves, negatives, 0.07, margin=0.01, reduction="none", backend="cpu")
            results.append([loss, *torch.autograd.grad(loss.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_without_gradients_the_loss_is_the_same():
    tensors, negatives = tiled_case(300)
    with_gradient = ops.pixel_contrast(tensors[0].requires_grad_(), *tensors[1:], negatives, 0.07, backend="cpu")
    with torch.no_grad():
        assert torch.equal(ops.pixel_contrast(*tensors, negatives, 0.07, backend="cpu"), with_gradient.detach())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("scope", ["all", "same", "other"])
def test_extreme_weights_of_candidates_neither_crash_nor_bend_the_choice(scope, backend):
    """Weights all 0, huge, tiny; a group without weight beside one with."""
    rows = unit(random(60, 5).abs())
    group = torch.arange(60) // 30
    settings = {"seed": 1, "anchor_group": group, "candidate_group": group, "scope": scope, "backend": backend}
    plain = ops.sample_negatives(rows, rows, 4, candidate_weight=torch.ones(60, dtype=torch.float64), **settings)
    assert ops.sample_negatives(rows, rows, 4, candidate_weight=torch.zeros(60), **settings).eq(-1).all()
    for size in (1e308, 1e-300, 1e-309):
        weight = torch.full((60,), size, dtype=torch.float64)
        assert torch.equal(ops.sample_negatives(rows, rows, 4, candidate_weight=weight, **settings), plain)
    one_sided = torch.where(group == 0, 1e10, 0.0)
    drawn = ops.sample_negatives(rows, rows, 4, candidate_weight=one_sided, **settings)
    possible = torch.ones(60, dtype=torch.bool) if scope == "all" else (group == 0) == (scope == "same")
    assert bool((drawn[possible] >= 0).all()) and bool((drawn < 30).all()) and drawn[~possible].eq(-1).all()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_rows_a_little_longer_than_one_do_not_bend_the_law(backend):
    """Orthogonal rows of norm 1.0099 beside one of a third of the weight: s up to 1.02 is not cut off at 1."""
    rows = 1.0099 * unit(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.7, 0.714, 0]], dtype=torch.float64))
    candidates = torch.cat([rows[1:2], rows[2:3]]).repeat(4, 1)
    weights = 0.5 * (candidates - rows[0]).square().sum(1)
    drawn = ops.sample_negatives(rows[:1].expand(100_000, 3).contiguous(), candidates, 1, seed=3, backend=backend)
    share = float(torch.bincount(drawn[:, 0].long(), minlength=8)[::2].sum()) / 100_000
    assert share == pytest.approx(float(weights[::2].sum() / weights.sum()), abs=0.004)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_second_derivatives_are_refused(backend):
    masks, classes = random(1, 3, 2, 2).requires_grad_(), random(1, 3, 2)
    value = ops.fuse_scores(masks, classes, backend=backend).pow(3).sum()
    (grad,) = torch.autograd.grad(value, masks, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_tensors_on_other_devices_are_named():
    rows, away = unit(torch.eye(4)), torch.ones(4, device="meta")
    with pytest.raises(ValueError, match="candidate_weight: on meta, expected cpu as anchor_scores"):
        ops.sample_negatives(rows, rows, 1, seed=0, candidate_weight=away)
    with pytest.raises(ValueError, match="drawn: on meta, expected cpu as anchors"):
        ops.hardest_negatives(rows, rows, torch.zeros(4, 2, dtype=torch.int32, device="meta"), 1)
    with pytest.raises(ValueError, match="anchor_scores: on meta, expected cpu as anchors"):
        ops.expected_pixel_contrast(rows, rows, rows, rows.to("meta"), rows.to("meta"), 1, 0.1)


@pytest.mark.skipif(TorchVersion(torch.__version__) < "2.11", reason="PyTorch 2.10 takes no memory of a library")
def test_memory_in_whole_huge_pages_is_given_back_and_used_again():
    masks, classes = random(1, 20, 128, 160).float(), random(1, 20, 12).float()

    def scores() -> None:
        ops.fuse_scores(masks, classes, backend="cpu")  # 2.5 MB, in huge pages 4 MB

    ops.release_memory()
    scores()
    needed = ops.release_memory()
    assert needed >= 128 * 160 * 32 * 4
    for _ in range(3):
        scores()
    assert ops.release_memory() == needed


def test_large_results_lie_in_memory_that_is_used_again_and_can_be_given_back():
    z, drawn = random(512, 512).float().requires_grad_(), torch.zeros(512, 1024, dtype=torch.int32)

    def gradient() -> Tensor:
        (grad,) = torch.autograd.grad(ops.pixel_contrast(z, z, z, drawn, 0.2, backend="cpu"), z)
        return grad

    first = gradient()
    kept = first.clone()
    second = gradient()
    assert torch.equal(first, kept) and torch.equal(second, kept) and first.data_ptr() != second.data_ptr()
    del first, second
    ops.release_memory()
    gradient()
    needed = ops.release_memory()
    assert needed >= 512 * 1024 * 4  # the similarities of all draws
    for _ in range(3):
        gradient()
    assert ops.release_memory() == needed
    assert ops.release_memory() == 0
