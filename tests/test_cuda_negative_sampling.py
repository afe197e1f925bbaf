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
    if scope == "one":  # as sample_negatives has it: no need to sort
        return torch.zeros(1, dtype=torch.int64).expand(anchors), torch.zeros(1, dtype=torch.int64).expand(candidates)
    return torch.arange(anchors) % 4, torch.arange(candidates) % 3


@pytest.mark.parametrize("kind", ["fused", "peaked", "alike"])
@pytest.mark.parametrize("scope", ["all", "one", "same", "other"])
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


@pytest.mark.parametrize("kind", ["single", "images", "uneven", "foreign"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_negatives_of_groups_of_any_size(emulated, weighted, kind):
    """Groups shorter and longer than a block of places, with gaps among their ids; rows of a group may be equal."""
    size = 300
    groups = {
        "single": torch.arange(size),
        "images": torch.arange(size) * 3 // size,
        "uneven": (random(size, seed=8).square() * 3).long() * 7 - 5,
        "foreign": torch.arange(size) % 40,
    }[kind]
    own = groups[::3] + (2 if kind == "foreign" else 0)
    rows = sampling_case(1, size, 20, "alike", torch.float64)[1]
    rows[groups == groups[0]] = rows[0].clone()
    weight = random(size, seed=3).abs().clamp_min(0.4) - 0.4 if weighted else None
    for same in (True, False):
        settings = {"groups": (own, groups), "same": same, "weight": weight}
        for scores in (rows, None):
            found, wanted = (drawn(run, rows[::3].contiguous(), scores, 9, **settings) for run in (emulated, reference))
            assert torch.equal(found, wanted)


# Of PyTorch, beside seven kernels: rows padded and marks of the race cleared.
CALLS = {"one": [], "other": ["sort", "searchsorted", "searchsorted"], "same": ["sort", *["searchsorted"] * 3]}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scope", CALLS)
def test_few_calls_of_pytorch_come_with_the_kernels(emulated_library, scope, weighted):
    scores, weight = torch.eye(9)[torch.arange(40) % 9], torch.ones(40, dtype=torch.float64) if weighted else None
    (own, group), seed = groups_of(40, 40, scope), torch.tensor([11])
    with torch.profiler.profile() as profile:
        emulated_library.negative_sampling(scores, own, scores, weight, group, scope == "same", 8, seed)
    calls = [event for event in profile.events() if event.name.startswith("aten::")]
    outer = [x.name for x in calls if x.cpu_parent is None or not x.cpu_parent.name.startswith("aten::")]
    launches = [name.removeprefix("aten::") for name in outer if not name.startswith("aten::empty")]
    assert launches == ["pad", "zero_", *CALLS[scope], *["mean"] * weighted, "cumsum"]
