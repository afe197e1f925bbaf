"""A fine map of pixels: some of its anchors, chosen all over it, against the float64 reference of these anchors alone.

On a GPU two images of 128 x 256 pixels, each pixel an anchor and a candidate, with the widths of the benchmarks; in
Triton's interpreter the same code on two images of 4 x 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from on_device import DEVICE
from test_operators import generator, random, within_budget
from torch import Tensor

from benchmarks.cases import FINE, TEMPERATURE, Case
from sskd_fast import ops
from sskd_fast.ops.expected_pixel_contrast import ExpectedPixelContrastFunction
from sskd_fast.ops.negative_sampling import SCOPES

pytestmark = pytest.mark.usefixtures("on_the_device", "little_memory")
CASE, CHOSEN, DRAWS = (FINE, 64, 200) if DEVICE == "cuda" else (Case(2, 4, 6), 8, 5)
EMBEDDINGS = [torch.float32, torch.bfloat16]
Run = Callable[..., Tensor]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Fails a test that takes 20 GB of a GPU, so that several run side by side."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield
    if DEVICE == "cuda":
        assert torch.cuda.max_memory_allocated() < 20e9


@dataclass(frozen=True)
class FineMap:
    """scores (A, 109) float64, embeddings of both views (A, 128) float64 and the image (A,) of every pixel.

    The chosen pixels come first, so that their random numbers are those of the reference on these rows alone.
    """

    scores: Tensor
    weak: Tensor
    strong: Tensor
    image: Tensor


@pytest.fixture(scope="module")
def fine_map() -> FineMap:
    masks, classes, weak, strong = (x.detach().to(DEVICE) for x in CASE.inputs(torch.float64))
    scores = ops.fuse_scores(masks, classes, backend="reference").flatten(0, 1)
    assert scores.shape == (CASE.pixels, 109) and weak.shape == (CASE.pixels, 128)
    order = torch.randperm(CASE.pixels, generator=generator(1)).to(DEVICE)
    image = torch.arange(CASE.pixels, device=DEVICE) // (CASE.height * CASE.width)
    return FineMap(*(x[order] for x in (scores, weak, strong, image)))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_negatives_of_chosen_anchors_are_those_of_the_reference(backend, fine_map, dtype, scope):
    """In float32 rounding may turn a trial, in at most one row."""
    scores, image = fine_map.scores.to(dtype), fine_map.image
    settings: dict[str, Any] = {"seed": 3, "candidate_group": image, "scope": scope}
    found = ops.sample_negatives(scores, scores, DRAWS, anchor_group=image, backend=backend, **settings)
    assert found.shape == (CASE.pixels, DRAWS) and bool((found >= 0).all())
    exact, own = scores.double(), image[:CHOSEN]
    wanted = ops.sample_negatives(exact[:CHOSEN], exact, DRAWS, anchor_group=own, backend="reference", **settings)
    equal = int((found[:CHOSEN] == wanted).all(1).sum())
    assert equal >= (CHOSEN if dtype == torch.float64 else CHOSEN - 1)


def value_and_grads(run: Run, anchors: int, inputs: list[Tensor]) -> list[Tensor]:
    """Losses (CHOSEN,) and the gradients in anchors and positives (CHOSEN, D) and candidates (M, D), for the first
    `anchors` anchors, of whose losses only the chosen first ones have a gradient from above."""
    a, p, c = inputs
    leaves = [x.clone().requires_grad_() for x in (a[:anchors], p[:anchors], c)]
    losses = run(*leaves)
    above = torch.zeros_like(losses)
    above[:CHOSEN] = random(CHOSEN, seed=5).to(losses)
    grads = torch.autograd.grad(losses, leaves, above)
    assert losses.shape == (anchors,)
    assert all(not bool(g[CHOSEN:].any()) for g in grads[:2])
    return [losses.detach()[:CHOSEN], grads[0][:CHOSEN], grads[1][:CHOSEN], grads[2]]


def check_chosen(run: Callable[[int, str], Run], inputs: list[Tensor], dtype: torch.dtype, backend: str) -> None:
    """run(anchors, backend): the operator on the first anchors only. All of them by `backend` against the chosen ones
    by the reference, within the error budget."""
    rounded = [x.to(dtype) for x in inputs]
    reference = run(CHOSEN, "reference")
    exact = value_and_grads(reference, CHOSEN, [x.double() for x in rounded])
    same_dtype = value_and_grads(reference, CHOSEN, rounded)
    found = value_and_grads(run(CASE.pixels, backend), CASE.pixels, rounded)
    for each in zip(found, same_dtype, exact, strict=True):
        within_budget(*each)


@pytest.mark.parametrize("dtype", EMBEDDINGS, ids=str)
def test_pixel_contrast_of_chosen_anchors_keeps_the_error_budget(backend, fine_map, dtype):
    drawn = torch.randint(-1, CASE.pixels, (CASE.pixels, DRAWS), generator=generator(2), device="cpu").to(DEVICE)

    def run(anchors: int, on: str) -> Run:
        settings = {"reduction": "none", "backend": on}
        return lambda a, p, c: ops.pixel_contrast(a, p, c, drawn[:anchors], TEMPERATURE, **settings)

    check_chosen(run, [fine_map.weak, fine_map.strong, fine_map.weak], dtype, backend)


@pytest.mark.parametrize("dtype", EMBEDDINGS, ids=str)
@pytest.mark.parametrize("scope", ["all", "other"])
def test_the_expected_form_of_chosen_anchors_keeps_the_error_budget(backend, fine_map, scope, dtype):
    """By the Function under the public one, which gives the mean of the losses only."""
    temperature = torch.full((1,), TEMPERATURE, dtype=torch.float64)

    def run(anchors: int, on: str) -> Run:
        def losses(a: Tensor, p: Tensor, c: Tensor) -> Tensor:
            scores = fine_map.scores.to(torch.float64 if a.dtype == torch.float64 else torch.float32)
            own, group = (None, None) if scope == "all" else (fine_map.image[:anchors], fine_map.image)
            given = scores[:anchors], scores, None, own, group
            return ExpectedPixelContrastFunction.apply(a, p, c, *given, False, DRAWS, temperature, True, on)

        return losses

    check_chosen(run, [fine_map.weak, fine_map.strong, fine_map.weak], dtype, backend)
