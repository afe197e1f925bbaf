"""Negative sampling of csrc/cuda, emulated on the CPU: the same negatives as the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_operators import SAMPLING_SHAPES, random, sampling_case
from torch import Tensor

from sskd_fast.reference import negative_sampling as reference


def drawn(
    run: Any,
    anchors: Tensor,
    scores: Tensor | None,
    wanted: int,
    *,
    groups: tuple[Tensor, Tensor],
    same: bool = True,
    weight: Tensor | None = None,
) -> Tensor:
    arguments = anchors, groups[0], scores, weight, groups[1], same, wanted, torch.tensor([11])
    if run is reference:
        return reference.negative_sampling(*arguments)
    found: Tensor = run.negative_sampling(*arguments)
    return found


def groups_of(anchors: int, candidates: int, scope: str) -> tuple[Tensor, Tensor]:
    if scope == "all":
        return torch.zeros(anchors, dtype=torch.int64), torch.zeros(candidates, dtype=torch.int64)
    return torch.arange(anchors) % 4, torch.arange(candidates) % 3


@pytest.mark.parametrize("kind", ["fused", "peaked", "alike"])
@pytest.mark.parametrize("scope", ["all", "same", "other"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SAMPLING_SHAPES, ids=str)
def test_the_same_negatives_as_the_reference(emulated, shape, weighted, scope, kind):
    a, m, e, r = shape
    scores = sampling_case(a, m, e, kind, torch.float64)
    weight = random(m, seed=3).abs() if weighted else None
    settings = {"groups": groups_of(a, m, scope), "same": scope != "other", "weight": weight}
    assert torch.equal(drawn(emulated, *scores, r, **settings), drawn(reference, *scores, r, **settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["fused", "alike"])
def test_the_same_negatives_in_other_types(emulated, kind, dtype):
    """The same rows widened to float32; rounding may turn a trial, in at most one row of a thousand."""
    scores = [x.to(dtype) for x in sampling_case(300, 900, 37, kind, torch.float64)]
    settings = {"groups": groups_of(300, 900, "all")}
    found = drawn(emulated, *scores, 20, **settings)
    expected = drawn(reference, *(x.float() for x in scores), 20, **settings)
    assert float((found == expected).all(1).float().mean()) >= 0.999


def test_uniform_negatives_are_the_same(emulated):
    for size, wanted in ((300, 100), (300, 301), (40, 200)):
        settings = {"groups": groups_of(20, size, "all")}
        found = drawn(emulated, torch.zeros(20, 1), None, wanted, **settings)
        assert torch.equal(found, drawn(reference, torch.zeros(20, 1), None, wanted, **settings))


def test_many_negatives_do_without_shared_memory(emulated):
    """The set of what is drawn and the buffer of the race lie in global memory."""
    scores = sampling_case(3, 9000, 4, "fused", torch.float64)
    for wanted in (1100, 4600):
        settings = {"groups": groups_of(3, 9000, "all")}
        assert torch.equal(drawn(emulated, *scores, wanted, **settings), drawn(reference, *scores, wanted, **settings))


def test_more_anchors_than_blocks_of_the_race(emulated):
    """The race of an anchor leaves nothing behind for the next one of its block."""
    scores = sampling_case(1100, 9, 3, "fused", torch.float64)
    settings = {"groups": groups_of(1100, 9, "other"), "same": False}
    assert torch.equal(drawn(emulated, *scores, 5, **settings), drawn(reference, *scores, 5, **settings))


def test_without_weight_nothing_is_drawn(emulated):
    scores = sampling_case(5, 700, 4, "fused", torch.float64)
    weight = torch.zeros(700, dtype=torch.float64)
    settings = {"groups": groups_of(5, 700, "all"), "weight": weight}
    assert drawn(emulated, *scores, 6, **settings).eq(-1).all()
    weight[[3, 500]] = 1
    assert torch.equal(drawn(emulated, *scores, 6, **settings), drawn(reference, *scores, 6, **settings))
