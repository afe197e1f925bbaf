"""Copy-paste of labelled instances onto views of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from sskd_fast.data.copy_paste import _Move, paste_instances
from sskd_fast.data.instances import Batch, Instances


def batch(values: list[float], squares: list[tuple[int, int, int]]) -> Batch:
    """Grey views of 12 x 12 pixels, one square (top, left, side) each, with strong views of half the value."""
    masks = torch.zeros(len(values), 1, 12, 12, dtype=torch.bool)
    for mask, (top, left, side) in zip(masks, squares, strict=True):
        mask[0, top : top + side, left : left + side] = True
    weak = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 12, 12).clone()
    one = torch.ones(1)
    targets = [Instances(m, torch.tensor([i]), one, torch.zeros(1, dtype=torch.bool)) for i, m in enumerate(masks)]
    return Batch(weak, weak / 2, torch.ones(len(values), 12, 12, dtype=torch.bool), targets, list(range(len(values))))


def test_a_move_shifts_and_mirrors_and_fills_with_zeros() -> None:
    pixels = torch.arange(6).view(2, 3) + 1
    assert _Move(0, 1, False).of(pixels).tolist() == [[0, 1, 2], [0, 4, 5]]
    assert _Move(-1, 0, False).of(pixels).tolist() == [[4, 5, 6], [0, 0, 0]]
    assert _Move(1, -1, True).of(pixels).tolist() == [[0, 0, 0], [2, 1, 0]]


def test_without_a_chance_nothing_changes() -> None:
    own = batch([0.2], [(1, 1, 4)])
    pasted = paste_instances(own, batch([0.8], [(6, 6, 5)]), 0.0, 4, seed=0)
    assert torch.equal(pasted.weak, own.weak) and pasted.targets[0] is own.targets[0]


def hidden(first: Tensor, second: Tensor) -> bool:
    return bool((first & second).any())


def test_pasted_instances_bring_their_pixels_and_hide_what_lies_below() -> None:
    seen_hidden = False
    for seed in range(20):
        own, source = batch([0.2], [(2, 2, 8)]), batch([0.8], [(4, 4, 4)])
        found = paste_instances(own, source, 1.0, 4, seed)
        below, above = found.targets[0].masks
        assert not hidden(below, above)
        assert found.targets[0].labels.tolist() == [0, 0] and above.sum() == 16
        assert (found.weak[0, :, above] == 0.8).all() and (found.weak[0, :, ~above] == 0.2).all()
        assert (found.strong[0, :, above] == 0.4).all() and (found.strong[0, :, ~above] == 0.1).all()
        seen_hidden |= int(below.sum()) < 64
        assert (own.weak == 0.2).all() and own.targets[0].masks.sum() == 64  # the arguments stay
    assert seen_hidden


def test_an_instance_of_which_too_little_is_left_is_neither_object_nor_background() -> None:
    found = None
    for seed in range(60):
        own, source = batch([0.2], [(4, 4, 4)]), batch([0.8], [(3, 3, 7)])
        candidate = paste_instances(own, source, 1.0, 12, seed)
        if len(candidate.targets[0]) == 1 and not bool(candidate.valid.all()):
            found = candidate
            break
    assert found is not None, "no draw covers most of the small square"
    rest = ~found.valid[0]
    assert 0 < int(rest.sum()) < 12
    assert (found.weak[0, :, rest] == 0.2).all() and not hidden(rest, found.targets[0].masks[0])


def test_the_same_seed_pastes_the_same() -> None:
    own, source = batch([0.1, 0.2, 0.3], [(0, 0, 4)] * 3), batch([0.7, 0.9], [(6, 6, 5), (2, 5, 4)])
    first, second = (paste_instances(own, source, 0.5, 4, seed=3) for _ in range(2))
    assert torch.equal(first.weak, second.weak) and torch.equal(first.valid, second.valid)
    assert all(torch.equal(a.masks, b.masks) for a, b in zip(first.targets, second.targets, strict=True))
