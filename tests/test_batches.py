"""The stream of batches: the same for any workers and start, each image once per epoch, weighted draws."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from sskd_fast.data.batches import balance_weights, batches
from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.views import Views

VIEWS = Views((16, 16), vflip=False, rot90=False, weak_color=0.0, noise=0.05, min_pixels=1)


@pytest.fixture
def source(make_coco, box_mask):
    """Ten images; image n has n - 1 instances."""
    coco = make_coco()
    for number in range(10):
        image = coco.image((20, 20))
        for index in range(number):
            coco.instance(image, box_mask(20, 20, index, index, index + 6, index + 8))
    return CocoInstances(coco.write(), coco.images)


def assert_same(first, second):
    assert first.image_ids == second.image_ids
    for name in ("weak", "strong", "valid"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    for a, b in zip(first.targets, second.targets, strict=True):
        assert torch.equal(a.masks, b.masks) and torch.equal(a.labels, b.labels)
        assert torch.equal(a.scores, b.scores) and torch.equal(a.crowd, b.crowd)


def test_shapes_and_types(source):
    batch = next(batches(source, 4, VIEWS, seed=0))
    assert batch.weak.shape == batch.strong.shape == (4, 3, 16, 16) and batch.weak.dtype == torch.float32
    assert batch.valid.shape == (4, 16, 16) and batch.valid.dtype == torch.bool
    assert len(batch.targets) == len(batch.image_ids) == 4
    for target, image_id in zip(batch.targets, batch.image_ids, strict=True):
        assert len(target) <= image_id - 1 and target.masks.shape == (len(target), 16, 16)
        assert target.masks.dtype == torch.bool and target.scores.tolist() == [1.0] * len(target)


@pytest.mark.parametrize("weights", [None, [1.0] * 5 + [3.0] * 5])
def test_workers_do_not_change_the_batches(source, weights):
    alone = list(batches(source, 4, VIEWS, seed=3, steps=5, weights=weights))
    shared = list(batches(source, 4, VIEWS, seed=3, steps=5, weights=weights, workers=2))
    assert len(alone) == len(shared) == 5
    for first, second in zip(alone, shared, strict=True):
        assert_same(first, second)


def test_workers_leave_pytorchs_random_numbers_alone(source):
    """Dense models draw the cells of a step from them on a CPU."""
    torch.manual_seed(3)
    expected = torch.random.get_rng_state()
    list(batches(source, 4, VIEWS, seed=3, steps=1, workers=1))
    assert torch.equal(torch.random.get_rng_state(), expected)


def test_endless_stream_of_workers_can_be_left(source):
    stream = batches(source, 4, VIEWS, seed=3, workers=1)
    taken = list(itertools.islice(stream, 3))
    for first, second in zip(taken, batches(source, 4, VIEWS, seed=3, steps=3), strict=True):
        assert_same(first, second)


def test_a_later_start_continues_the_same_stream(source):
    whole = list(batches(source, 3, VIEWS, seed=1, steps=8))
    for first, second in zip(whole[5:], batches(source, 3, VIEWS, seed=1, start_step=5, steps=3), strict=True):
        assert_same(first, second)


def test_every_image_comes_once_an_epoch_in_changing_order(source):
    ids = [i for batch in batches(source, 4, VIEWS, seed=0, steps=10) for i in batch.image_ids]
    epochs = [ids[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == source.image_ids for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_another_seed_is_another_stream(source):
    first, second = (next(batches(source, 10, VIEWS, seed=seed)) for seed in (0, 1))
    assert first.image_ids != second.image_ids


def test_a_set_smaller_than_the_batch_repeats_in_different_views(source):
    batch = next(batches(source.subset([4, 5]), 6, VIEWS, seed=0))
    assert Counter(batch.image_ids) == {4: 3, 5: 3}
    same = [view for view, image_id in zip(batch.weak, batch.image_ids, strict=True) if image_id == 4]
    assert not torch.equal(same[0], same[1])


def test_weights_set_how_often_images_come(source):
    weights = [0.0] * 8 + [1.0, 3.0]
    drawn = Counter(
        i for batch in batches(source, 50, VIEWS, seed=0, steps=8, weights=weights) for i in batch.image_ids
    )
    assert set(drawn) == {9, 10} and 260 <= drawn[10] <= 340


def test_plain_folders_give_batches_without_instances(source):
    batch = next(batches(ImageFolder(source.images_dir), 3, VIEWS, seed=0))
    assert [len(target) for target in batch.targets] == [0, 0, 0]
    assert batch.targets[0].masks.shape == (0, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"batch_size": 2, "weights": [1.0]}, "weights: 1 values .* each of 10 images"),
        ({"batch_size": 2, "weights": [-1.0] + [1.0] * 9}, "none negative"),
        ({"batch_size": 2, "weights": [0.0] * 10}, "one above 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(source, arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(source, views=VIEWS, seed=0, **arguments)


def test_an_empty_set_is_refused_at_once(source):
    with pytest.raises(ValueError, match="has no image"):
        batches(source.subset([]), 2, VIEWS, seed=0)


def test_balanced_weights_make_every_label_equally_likely():
    labels = ["a"] * 16 + ["b"] * 4
    weights = balance_weights(labels)
    assert sum(weights[:16]) == pytest.approx(0.5) and sum(weights[16:]) == pytest.approx(0.5)
    damped = balance_weights(labels, damped=True)
    assert sum(damped[:16]) == pytest.approx(2 / 3) and sum(damped[16:]) == pytest.approx(1 / 3)
    assert balance_weights([]) == []
