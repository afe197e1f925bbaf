"""The expected form of pixel contrast in Triton: what its tiles and parts might get wrong.

gpu_operators.py compares every backend with the reference. On a GPU, else in Triton's interpreter on the CPU;
test_gpu_steps.py runs them.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from on_device import on_device
from test_operators import check_budget, generator, random, unit, value_and_grads
from torch import Tensor

from sskd_fast import kernels, ops

pytestmark = pytest.mark.usefixtures("on_the_device")
_tuning = importlib.import_module(f"{kernels.__name__}._tuning")


def case(a: int, m: int, e: int, d: int) -> list[Tensor]:
    """Anchors, positives, candidates, and the scores of anchors and candidates."""
    scores = unit(random(a, e).abs()), unit(random(m, e, seed=1).abs())
    return on_device(random(a, d), random(a, d, seed=1), random(m, d, seed=2), *scores)


def losses(*inputs: Any, temperature: float = 0.2, **settings: Any) -> Tensor:
    """inputs: the tensors of `case`, then the backend."""
    *tensors, backend = inputs
    return ops.expected_pixel_contrast(*tensors, 9, temperature, backend=backend, **settings)


def of_groups(a: int, m: int, scope: str) -> dict[str, Any]:
    """Weights of the candidates, 0 for one of four, and groups, one of which only anchors have."""
    weight = random(m, seed=3).abs() * (torch.arange(m, device="cpu") % 4 != 1)
    groups = {"anchor_group": torch.arange(a) % 4, "candidate_group": torch.arange(m) % 3, "scope": scope}
    return groups | {"candidate_weight": on_device(weight)[0]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(7, 13, 5, 3), (67, 131, 20, 40), (5, 9, 140, 150)], ids=str)
def test_tiles_without_tensor_copies_keep_the_error_budget(shape, dtype, monkeypatch):
    """As on NVIDIA's GPUs before Hopper and on AMD's, whose programs compute addresses of their own."""
    monkeypatch.setattr(_tuning, "_tensor_copies", lambda dtype: False)
    assert not _tuning.expected_forward(dtype)["TENSOR_COPIES"]
    *embeddings, y, q = case(*shape)
    settings = of_groups(*shape[:2], "other")
    check_budget(lambda x, p, c, on: losses(x, p, c, y, q, on, **settings), embeddings, dtype, "triton")
    if dtype == torch.float32:
        rows = [x.float() for x in embeddings]

        def of_scores(y: Tensor, q: Tensor, on: str) -> Tensor:
            return losses(*(x.to(y.dtype) for x in rows), y, q, on, **settings)

        check_budget(of_scores, [y, q], dtype, "triton")


def test_scores_that_are_all_alike_keep_their_differences():
    """Distances of 1e-3: from the products of the scores alone, 1 - <y_a, y_q> would have three digits in float32."""
    embeddings = on_device(*(random(n, 64, seed=n) for n in (6, 6, 9)))
    scores = on_device(*(unit(1 + 1e-3 * random(n, 40, seed=n).abs()).float() for n in (6, 9)))
    check_budget(lambda x, p, c, on: losses(x, p, c, *scores, on), embeddings, torch.float32, "triton")


def test_logits_of_50_keep_the_error_budget():
    """Two numbers of float16 have 22 bits: with colder temperatures, or narrower rows, that shows."""
    *embeddings, y, q = case(6, 9, 40, 64)
    settings = of_groups(6, 9, "all") | {"temperature": 0.02}
    check_budget(lambda x, p, c, on: losses(x, p, c, y, q, on, **settings), embeddings, torch.float32, "triton")


def test_logits_of_500_do_not_overflow():
    settings = of_groups(6, 9, "all") | {"temperature": 0.002}
    inputs = [x.float() for x in case(6, 9, 40, 64)]
    exact = value_and_grads(lambda *x: losses(*x, "reference", **settings), [x.double() for x in inputs])
    for found, wanted in zip(value_and_grads(lambda *x: losses(*x, "triton", **settings), inputs), exact, strict=True):
        assert float((found - wanted).abs().max()) <= 500 * 2**-22 * float(wanted.abs().max())


@pytest.mark.parametrize(
    "settings",
    [
        {"anchor_group": [0, 0, 1], "candidate_group": [2] * 5, "scope": "same"},
        {"anchor_group": [2] * 3, "candidate_group": [2] * 5, "scope": "other"},
        {"candidate_weight": [0.0] * 5},
    ],
    ids=["no candidate of the group", "none of another group", "no weight"],
)
def test_anchors_without_a_candidate_have_no_loss_and_no_gradient(settings):
    tensors = {name: torch.tensor(x) if isinstance(x, list) else x for name, x in settings.items()}
    inputs = [x.float() for x in case(3, 5, 4, 6)]
    for found in value_and_grads(lambda *x: losses(*x, "triton", **tensors), inputs):
        assert torch.equal(found, torch.zeros_like(found))


def test_scores_get_a_gradient_only_if_wanted():
    inputs = [x.float() for x in case(7, 13, 5, 3)]
    value, *grads = value_and_grads(lambda *x: losses(*x, "triton"), inputs)
    alone = value_and_grads(lambda *x: losses(*x, *inputs[3:], "triton"), inputs[:3])
    assert [x.shape for x in grads[3:]] == [(7, 5), (13, 5)] and all(float(x.abs().max()) > 0 for x in grads)
    assert all(torch.allclose(x, y, rtol=1e-5, atol=1e-8) for x, y in zip([value, *grads[:3]], alone, strict=True))


@pytest.mark.parametrize(("width", "scores", "ratio"), [(4, 5, 2), (64, 40, 1.5)])
def test_random_cases_are_as_exact_as_the_reference(width, scores, ratio):
    """The budget by the mean over many cases, which luck does not decide."""
    errors = torch.zeros(2, 6)
    for seed in range(12):
        rows = generator(seed)
        drawn = [torch.randn(n, width, generator=rows, dtype=torch.float64, device="cpu") for n in (6, 6, 10)]
        drawn += [unit(torch.rand(n, scores, generator=rows, dtype=torch.float64, device="cpu")) for n in (6, 10)]
        inputs = [x.float() for x in on_device(*drawn)]
        exact = value_and_grads(lambda *x: losses(*x, "reference"), [x.double() for x in inputs])
        for i, backend in enumerate(("triton", "reference")):
            found = value_and_grads(lambda *x, on=backend: losses(*x, on), inputs)
            distances = [(x - y).abs().max() / y.abs().max() for x, y in zip(found, exact, strict=True)]
            errors[i] += torch.stack(distances).float().cpu()
    assert bool((errors[0] <= ratio * errors[1]).all()), errors / 12
