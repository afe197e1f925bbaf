"""The tables of slots that kernels build, against those of the reference, number by number.

On a GPU, else in Triton's interpreter on the CPU; test_gpu_steps.py runs them.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from on_device import on_device
from test_operators import random, sampling_case, unit
from torch import Tensor

from sskd_fast import kernels
from sskd_fast.reference.proposals import Candidates, Proposals
from sskd_fast.reference.proposals import build_proposals as reference_tables

pytestmark = pytest.mark.usefixtures("on_the_device")


def built(
    anchors: Tensor, own: Tensor, scores: Tensor | None, weight: Tensor | None, group: Tensor, same: bool
) -> Proposals:
    module = importlib.import_module(f"{kernels.__name__}.proposals")
    padded = importlib.import_module(f"{kernels.__name__}._tl").padded_rows
    rows = [x if x is None else padded(x) for x in (anchors, scores)]
    tables, _centre = module.build_proposals(rows[0], own, rows[1], weight, group, same)
    names = [name for name in Proposals.__dataclass_fields__ if name != "acceptance"]
    return Proposals(**dict(zip(names, tables, strict=True)), acceptance=tables[7])


def check(
    anchors: Tensor, own: Tensor, scores: Tensor | None, weight: Tensor | None, group: Tensor, same: bool
) -> Proposals:
    """Whole numbers are equal, float64 numbers up to the order of their sums; returns the tables."""
    found = built(anchors, own, scores, weight, group, same)
    wanted = reference_tables(anchors, own, Candidates(scores, weight, group, same))
    placed = ("own_from", "own_until") if group.stride(0) > 0 else ()  # an empty range of one group lies anywhere
    for name in ("table", "available", "order", *placed):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    for a in range(len(anchors)):
        assert torch.equal(slots_of(found, a), slots_of(wanted, a)), a
    torch.testing.assert_close(found.ratio, wanted.ratio, rtol=1e-9, atol=0)
    drawn = wanted.available > 0
    torch.testing.assert_close(found.bound[drawn], wanted.bound[drawn], rtol=1e-9, atol=1e-16)
    return wanted


def slots_of(tables: Proposals, anchor: int) -> Tensor:
    """The candidate of each slot from which an anchor draws."""
    first, count, skip_from, skip_length = (
        int(x[anchor]) for x in (tables.first, tables.count, tables.skip_from, tables.skip_length)
    )
    slot = torch.arange(count)
    return tables.entries[first + slot + (slot >= skip_from) * skip_length]


def groups(kind: str, anchors: int, size: int) -> tuple[Tensor, Tensor]:
    """Groups of anchors, one of which no candidate has, and of candidates."""
    if kind == "one":
        own, group = torch.arange(-1, 1).split(1)
        return own.expand(anchors), group.expand(size)
    if kind == "its own":
        return torch.zeros(1, dtype=torch.int64).expand(anchors), torch.zeros(1, dtype=torch.int64).expand(size)
    return {
        "images": lambda: (torch.arange(anchors) * 4 // anchors, torch.arange(size) * 3 // size),
        "mixed": lambda: (torch.arange(anchors) % 6 - 2, (torch.arange(size) * 7) % 5 - 2),
        "single": lambda: (3 * torch.arange(anchors), torch.arange(size)),
        "uneven": lambda: (torch.arange(anchors) % 9, (random(size, seed=8).square() * 3).long()),
    }[kind]()


KINDS = ("one", "its own", "images", "mixed", "single", "uneven")


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_those_of_the_reference(kind, weighted, same):
    weight = random(90, seed=3).abs().clamp_min(0.4).sub(0.4).double() if weighted else None
    for case, dtype, width in (("fused", torch.float64, 20), ("alike", torch.float32, 37)):
        scores = on_device(*sampling_case(13, 90, width, case, dtype))
        own, group = groups(kind, 13, 90)
        wanted = check(scores[0], own, scores[1], weight, group, same)
        if kind != "single":
            assert bool((wanted.table > 0).any()) == (case == "alike")


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_tables_without_scores(kind, weighted, same):
    weight = random(90, seed=3).abs().clamp_min(0.4).sub(0.4).double() if weighted else None
    own, group = groups(kind, 13, 90)
    check(torch.zeros(13, 1), own, None, weight, group, same)


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 257])
@pytest.mark.parametrize("same", [False, True])
def test_sizes_around_a_block_and_around_a_program(size, same):
    scores = on_device(*sampling_case(size, size, 9, "alike", torch.float64))
    for kind in ("one", "images", "uneven"):
        own, group = groups(kind, size, size)
        check(scores[0], own, scores[1], None, group, same)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("scored", [False, True])
def test_without_weight_there_is_nothing_to_draw(scored, same):
    scores = on_device(*sampling_case(5, 40, 9, "alike", torch.float64))
    own, group = groups("images", 5, 40)
    weight = torch.zeros(40, dtype=torch.float64)
    for positive in ([], [0], [3, 39]):  # none, and groups without any
        weight.zero_()[positive] = 0.25
        found = check(scores[0], own, scores[1] if scored else None, weight, group, same)
        assert int(found.available.max()) <= len(positive)


@pytest.mark.parametrize("kind", ["one", "images", "single"])
def test_rows_that_are_equal_have_one_slot_each_as_large_as_the_others(kind):
    """Rounding moves the centre of equal rows off them, and by how much depends on the order of a sum."""
    rows = unit(random(3, 11).abs())[torch.arange(60) * 3 // 60]
    own, group = groups(kind, 60, 60)
    own = own if kind == "one" else group
    weight = (1 + torch.arange(60) % 7).double() / 7
    for same in (True, False):
        found = check(rows, own, rows, weight, group, same)
        if same and kind != "one":
            assert float(found.bound.max()) < 1e-11  # an anchor of the group is as near as its candidates


def test_few_candidates_may_hold_nearly_all_slots():
    rows = unit(torch.cat([torch.tensor([[1.0, 1e-4 * i, 0] for i in range(88)]), torch.eye(3)[1:]]).double())
    own, group = groups("one", 90, 90)
    found = check(rows, own, rows, None, group, False)
    spread = slots_of(found, 0) if int(found.table[0]) else found.entries[90:]
    assert int((spread >= 88).sum()) > len(spread) / 3


def test_masses_that_are_equal_up_to_rounding_get_the_same_number_of_slots():
    """Rows that are one row turned around lie equally far from their mean. Weights have the ratio of whole numbers."""
    row = unit(random(1, 11).abs())[0]
    rows = torch.stack([row.roll(i) for i in range(66)])
    own, group = groups("one", 66, 66)
    for weight, numbers in ((None, [8]), ((1 + torch.arange(66) // 11 % 3).double() / 3, [4, 8, 12])):
        tables = check(rows, own, rows, weight, group, False)
        spread = tables.entries[9 * 66 :] if weight is not None else tables.entries[66:]
        assert spread[: 8 * 66].bincount(minlength=66).unique().tolist() == numbers
