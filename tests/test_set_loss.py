"""The set loss against a slow implementation written from its definition, and the laws it must obey."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sskd_fast.data.instances import Instances
from sskd_fast.losses.heat_loss import centre_points, heat_loss
from sskd_fast.losses.matching import MatchCosts, lies_inside, match, pad_targets
from sskd_fast.losses.pooling import pooled
from sskd_fast.losses.set_loss import (
    SetLoss,
    SetLossConfig,
    SetLossOutput,
    drawn_instances,
    inside_everywhere,
    sample_points,
)
from sskd_fast.models.segmenter import Answers, Predictions

CLASSES = 3
SIDE = 8


def record(boxes: list[tuple[int, int, int, int]], labels: list[int], scores: list[float] | None = None) -> Instances:
    """Instances that fill (top, left, bottom, right) boxes of a 16 x 16 image."""
    masks = torch.zeros((len(boxes), 2 * SIDE, 2 * SIDE), dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    weights = torch.tensor(scores if scores is not None else [1.0] * len(boxes))
    return Instances(masks, torch.tensor(labels, dtype=torch.int64), weights, torch.zeros(len(boxes), dtype=torch.bool))


def everything(images: int) -> Tensor:
    return torch.ones((images, 2 * SIDE, 2 * SIDE), dtype=torch.bool)


def random_predictions(images: int, queries: int, *, layers: int = 1, seed: int = 0, heat: bool = False) -> Predictions:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 2

    pairs = [(draw(images, queries, SIDE, SIDE), draw(images, queries, CLASSES + 1)) for _ in range(layers)]
    *auxiliary, (masks, classes) = pairs
    return Predictions(masks, classes, draw(images, 4, 4, 4), auxiliary, draw(images, SIDE, SIDE) if heat else None)


TARGETS = [
    record([(0, 0, 6, 6), (8, 8, 16, 14), (3, 9, 7, 12)], [0, 2, 1], [1.0, 0.5, 0.25]),
    record([(1, 2, 5, 15)], [1], [0.75]),
]


def valid_with_a_hole() -> Tensor:
    valid = everything(2)
    valid[0, :, 14:] = False
    valid[1, 9:, :8] = False
    return valid


# The slow implementation: one number at a time, from the definition


def cells_of(pixels: np.ndarray) -> np.ndarray:
    """Means over 2 x 2 pixels."""
    return np.asarray([[pixels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() for x in range(SIDE)] for y in range(SIDE)])


def pair_terms(logits: np.ndarray, goal: np.ndarray, valid: np.ndarray, normalizer: str) -> tuple[float, float]:
    """Cross-entropy and dice of one query and one instance."""
    entropy = inside = total = area = 0.0
    for x, t, v in zip(logits.flat, goal.flat, valid.flat, strict=True):
        p = 1 / (1 + math.exp(-x))
        entropy += -v * (t * math.log(p) + (1 - t) * math.log(1 - p))
        inside += v * p * t
        total += v * p
        area += v * t
    over = 4 * area + 20 if normalizer == "area" else float(valid.sum())
    return entropy / over, 1 - (2 * inside + 1) / (total + area + 1)


def best_assignment(cost: np.ndarray) -> tuple[float, list[tuple[int, int]]]:
    """The cheapest set of (query, instance) pairs, by trying all."""
    queries, instances = cost.shape
    count = min(queries, instances)
    options = [
        (sum(cost[q, g] for q, g in zip(chosen, group, strict=True)), list(zip(chosen, group, strict=True)))
        for group in itertools.combinations(range(instances), count)
        for chosen in itertools.permutations(range(queries), count)
    ]
    return min(options, key=lambda option: option[0])


def slow_layer(
    masks: Tensor, classes: Tensor, targets: list[Instances], valid: Tensor, config: SetLossConfig
) -> tuple[dict[str, float], list[list[tuple[int, int]]]]:
    sums = {"class": 0.0, "mask": 0.0, "dice": 0.0}
    class_weight = 0.0
    assignments = []
    scores = sum(float(t.scores.sum()) for t in targets)
    for b, target in enumerate(targets):
        logits, share = masks[b].double().numpy(), cells_of(valid[b].double().numpy())
        goals = [cells_of(m.double().numpy()) for m in target.masks]
        prob = classes[b].double().softmax(-1).numpy()
        cost = np.zeros((len(logits), len(goals)))
        for k, g in itertools.product(range(len(logits)), range(len(goals))):
            entropy, dice = pair_terms(logits[k], goals[g], share, config.normalizer)
            class_cost = -prob[k, int(target.labels[g])]
            cost[k, g] = config.class_weight * class_cost + config.mask_weight * entropy + config.dice_weight * dice
        pairs = best_assignment(cost)[1]
        assignments.append(pairs)
        of_query = {q: g for q, g in pairs}
        for k in range(len(logits)):
            if k in of_query:
                g = of_query[k]
                weight, label = float(target.scores[g]), int(target.labels[g])
                entropy, dice = pair_terms(logits[k], goals[g], share, config.normalizer)
                sums["mask"] += weight * entropy
                sums["dice"] += weight * dice
            else:
                sure = 1 / (1 + np.exp(-logits[k]))
                counts = (sure * share).sum() > 0.5 * sure.sum()
                weight, label = config.no_object_weight * counts, CLASSES
                if config.no_object_by_score:
                    weight *= float(target.scores.mean())
            sums["class"] += -weight * math.log(prob[k, label])
            class_weight += weight
    return {
        "class": sums["class"] / max(class_weight, 1.0),
        "mask": sums["mask"] / max(scores, 1.0),
        "dice": sums["dice"] / max(scores, 1.0),
    }, assignments


@pytest.mark.parametrize("normalizer", ["area", "pixels"])
@pytest.mark.parametrize("hole", [False, True])
@pytest.mark.parametrize("by_score", [False, True])
def test_dense_loss_equals_the_slow_implementation(normalizer: Any, hole: bool, by_score: bool) -> None:
    config = SetLossConfig(1.5, 3.0, 4.0, normalizer=normalizer, no_object_by_score=by_score)
    valid = valid_with_a_hole() if hole else everything(2)
    for seed in range(3):
        predictions = random_predictions(2, 4, seed=seed)
        output = SetLoss(config)(predictions, TARGETS, valid)
        expected, _ = slow_layer(predictions.mask_logits, predictions.class_logits, TARGETS, valid, config)
        for name, value in expected.items():
            assert output.parts[name].item() == pytest.approx(value, rel=1e-4), name
        total = 1.5 * expected["class"] + 3 * expected["mask"] + 4 * expected["dice"]
        assert output.loss.item() == pytest.approx(total, rel=1e-4)
        assert output.matched == 1.0


@pytest.mark.parametrize("queries", [2, 3, 5])
def test_matching_is_the_brute_force_optimum(queries: int) -> None:
    valid = valid_with_a_hole()
    targets = pad_targets(TARGETS, valid, (SIDE, SIDE))
    pixels, share = targets.masks.flatten(2), targets.valid.flatten(1).unsqueeze(1)
    normalizer = 4 * (pixels * share).sum(-1) + 20
    for seed in range(5):
        predictions = random_predictions(2, queries, seed=seed)
        found = match(
            predictions.mask_logits.flatten(2), predictions.class_logits, targets, pixels * share, share, normalizer,
            MatchCosts(),
        ).assigned  # fmt: skip
        _, expected = slow_layer(predictions.mask_logits, predictions.class_logits, TARGETS, valid, SetLossConfig())
        for b, pairs in enumerate(expected):
            assert {(int(q), g) for g, q in enumerate(found[b]) if q >= 0} == set(pairs)


def test_matching_takes_the_right_one_of_masks_surer_than_float32_can_tell() -> None:
    targets = [record([(0, 0, 8, 8)], [0])]
    small = pad_targets(targets, everything(1), (SIDE, SIDE))
    pixels, share = small.masks.flatten(2), small.valid.flatten(1).unsqueeze(1)
    right = torch.where(small.masks[0, 0] > 0.5, 1e4, -1e4)
    masks = torch.stack([-right, torch.full_like(right, 1e4), right, torch.full_like(right, -1e4)]).unsqueeze(0)
    classes = torch.zeros(1, 4, CLASSES + 1)
    found = match(masks.flatten(2), classes, small, pixels, share, 4 * pixels.sum(-1) + 20, MatchCosts())
    assert found.assigned.tolist() == [[2]]
    assert found.inside.tolist() == [[True, True, True, True]]


@pytest.mark.parametrize("side", [16, 256])
def test_a_mask_of_one_cell_has_a_place_and_an_empty_one_has_none(side: int) -> None:
    valid = torch.ones(1, side, side, dtype=torch.bool)
    valid[:, :, side // 2 :] = False
    masks = torch.full((1, 3, side, side), -80.0)
    masks[0, 0, 3, side - 2] = masks[0, 1, 3, 2] = 80.0
    expected = [[False, True, True]]
    targets = pad_targets([Instances.empty(side, side)], valid, (side, side))
    pixels, share = targets.masks.flatten(2), targets.valid.flatten(1).unsqueeze(1)
    found = match(masks.flatten(2), torch.zeros(1, 3, 2), targets, pixels, share, 4 * pixels.sum(-1) + 20, MatchCosts())
    assert found.inside.tolist() == expected
    assert inside_everywhere(masks, targets.valid).tolist() == expected


def test_a_mask_lies_inside_if_more_than_half_of_it_does() -> None:
    everywhere = torch.tensor([10.0, 10.0, 10.0, 0.009, 0.011])
    on_valid = torch.tensor([5.1, 5.0, 4.9, 0.0, 0.0])
    assert lies_inside(on_valid, everywhere, 1000).tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_matching_names_logits_that_are_not_finite(value: float) -> None:
    predictions = random_predictions(2, 4)
    predictions.mask_logits[0, 0, 0, 0] = value
    with pytest.raises(FloatingPointError, match=r"not finite; lower train\.lr"):
        SetLoss(SetLossConfig())(predictions, TARGETS, everything(2))


def perfect(targets: list[Instances], queries: int) -> Predictions:
    """Sure and right: query g is instance g, the rest is no object."""
    masks = torch.full((len(targets), queries, SIDE, SIDE), -30.0)
    classes = torch.full((len(targets), queries, CLASSES + 1), -30.0)
    for b, target in enumerate(targets):
        goals = torch.nn.functional.interpolate(target.masks[None].float(), size=(SIDE, SIDE), mode="area")[0]
        for k in range(queries):
            if k < len(target):
                masks[b, k] = goals[k] * 60 - 30
                classes[b, k, target.labels[k]] = 30.0
            else:
                classes[b, k, CLASSES] = 30.0
    return Predictions(masks, classes, torch.zeros(len(targets), 1, 4, 4), [], None)


def test_perfect_prediction_costs_nothing() -> None:
    even = [record([(0, 0, 6, 6), (8, 8, 16, 14)], [0, 2]), record([(2, 2, 6, 16)], [1])]
    output = SetLoss(SetLossConfig())(perfect(even, 4), even, everything(2))
    assert output.loss.item() < 1e-4
    wrong = perfect(even, 4)
    wrong.class_logits[0, 0] = wrong.class_logits[0, 3]
    assert SetLoss(SetLossConfig())(wrong, even, everything(2)).loss.item() > 1.0


def test_losses_do_not_depend_on_the_order_of_instances_and_queries() -> None:
    predictions = random_predictions(2, 5)
    before = SetLoss(SetLossConfig())(predictions, TARGETS, everything(2))
    order = torch.tensor([4, 2, 0, 1, 3])
    shuffled = dataclasses.replace(
        predictions, mask_logits=predictions.mask_logits[:, order], class_logits=predictions.class_logits[:, order]
    )
    targets = [TARGETS[0].select(torch.tensor([2, 0, 1])), TARGETS[1]]
    after = SetLoss(SetLossConfig())(shuffled, targets, everything(2))
    assert after.loss.item() == pytest.approx(before.loss.item(), rel=1e-5)


# Sampled points


def test_uniform_points_approximate_every_cell() -> None:
    """Averaged cross-entropy over points is that over the map, up to interpolation; on smooth maps that is small."""
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    predictions = random_predictions(2, 4)
    slopes = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(5))
    smooth = slopes[..., 0, None, None] * xs + slopes[..., 1, None, None] * ys + slopes[..., 2, None, None]
    predictions = dataclasses.replace(predictions, mask_logits=smooth)
    for normalizer in ("pixels", "area"):
        dense = SetLossConfig(normalizer=normalizer)
        points = dataclasses.replace(dense, masks="points", points=40_000, oversample=1.0, importance=0.0)
        torch.manual_seed(0)
        expected = SetLoss(dense)(predictions, TARGETS, everything(2))
        found = SetLoss(points)(predictions, TARGETS, everything(2))
        for name in ("class", "mask", "dice"):
            assert found.parts[name].item() == pytest.approx(expected.parts[name].item(), rel=0.12), (normalizer, name)


def test_sampled_points_favour_unsure_places_and_stay_inside() -> None:
    """A quarter of eight times as many places, those where the surest query of all is least sure, then uniform ones."""
    torch.manual_seed(0)
    column = (torch.arange(64) + 0.5) / 32 - 1
    logits = torch.stack([8 * (column.expand(64, 64) + 0.75), torch.full((64, 64), 8.0)])[None].repeat(2, 1, 1, 1)
    grid = sample_points(logits, 1000, 8.0, 0.25)
    assert grid.shape == (2, 1, 1000, 2) and grid.abs().max() <= 1
    for chosen in grid.squeeze(1):
        hard, rest = chosen[:250, 0], chosen[250:]
        # 250 of 8000 uniform places lie closer to the line than 1 / 32; at the border, maps fade to 0.
        assert 0.025 < (hard + 0.75).abs().quantile(0.95) < 0.04
        assert hard.median() == pytest.approx(-0.75, abs=0.006)
        assert chosen[:250, 1].abs().mean() == pytest.approx(0.5, abs=0.08)
        assert rest.abs().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    assert not torch.equal(grid[0], grid[1])


def test_gradients_flow_through_sampled_points() -> None:
    torch.manual_seed(0)
    predictions = random_predictions(2, 4)
    predictions.mask_logits.requires_grad_()
    SetLoss(SetLossConfig(masks="points", points=200))(predictions, TARGETS, everything(2)).loss.backward()
    assert predictions.mask_logits.grad is not None and predictions.mask_logits.grad.abs().sum() > 0


# Masks compared on a coarser map


def test_pooled_masks_are_the_logits_of_mean_probabilities() -> None:
    logits = random_predictions(1, 2).mask_logits
    assert pooled(logits, 1) is logits
    coarse = pooled(logits, 2)
    assert coarse.shape == (1, 2, SIDE // 2, SIDE // 2)
    mean = logits[0, 1, 2:4, 4:6].sigmoid().mean()
    assert coarse[0, 1, 1, 2].sigmoid().item() == pytest.approx(mean.item(), rel=1e-4)


@pytest.mark.parametrize("level", [40.0, -40.0, 70.0, -70.0])
def test_pooled_logits_of_sure_cells_keep_their_value_and_gradient(level: float) -> None:
    logits = torch.full((1, 1, 4, 4), level, requires_grad=True)
    coarse = pooled(logits, 2)
    assert coarse.flatten().tolist() == pytest.approx([level] * 4, rel=1e-4)
    coarse.sum().backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([0.25] * 16, rel=1e-4)


def test_a_pooled_loss_is_the_loss_of_pooled_masks_and_keeps_the_heat_fine() -> None:
    predictions = random_predictions(2, 4, heat=True)
    valid = valid_with_a_hole()
    output = SetLoss(SetLossConfig())(predictions, TARGETS, valid, label_pool=2)
    coarse = dataclasses.replace(predictions, mask_logits=pooled(predictions.mask_logits, 2), heat=None)
    expected = SetLoss(SetLossConfig())(coarse, TARGETS, valid)
    for name in ("class", "mask", "dice"):
        assert output.parts[name].item() == pytest.approx(expected.parts[name].item(), rel=1e-5), name
    fine = SetLoss(SetLossConfig())(predictions, TARGETS, valid)
    assert output.parts["heat"].item() == fine.parts["heat"].item()


def test_a_blurred_edge_costs_nothing_beyond_the_label_in_a_pooled_loss() -> None:
    """Masks that differ within the cells of the labels' map, not in their means, cost the same."""
    sharp = torch.full((1, 1, SIDE, SIDE), -9.0)
    sharp[0, 0, :, 0::2] = 9.0
    moved = sharp.roll(1, -1)
    target = [record([(0, 0, 16, 8)], [0])]
    classes = torch.zeros(1, 1, CLASSES + 1)
    values = [
        SetLoss(SetLossConfig())(
            Predictions(m, classes, torch.zeros(1, 1, 1, 1), [], None), target, everything(1), label_pool=2
        ).loss
        for m in (sharp, moved)
    ]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-6)


# Odd numbers of instances


def test_images_without_instances_teach_no_object_only() -> None:
    predictions = random_predictions(2, 4, heat=True)
    for tensor in (predictions.mask_logits, predictions.class_logits):
        tensor.requires_grad_()
    output = SetLoss(SetLossConfig(heat_weight=0.0))(predictions, [Instances.empty(16, 16)] * 2, everything(2))
    assert output.parts["mask"] == output.parts["dice"] == output.matched == 0
    no_object = -predictions.class_logits.log_softmax(-1)[..., CLASSES]
    assert output.parts["class"].item() == pytest.approx(
        (0.1 * no_object).sum().item(), rel=1e-5
    )  # 8 x 0.1 < 1: not averaged
    output.loss.backward()
    assert predictions.mask_logits.grad is None or not predictions.mask_logits.grad.any()


def test_one_image_without_instances_beside_one_with_them() -> None:
    predictions = random_predictions(2, 4)
    targets = [TARGETS[0], Instances.empty(16, 16)]
    output = SetLoss(SetLossConfig())(predictions, targets, everything(2))
    expected, _ = slow_layer(predictions.mask_logits, predictions.class_logits, targets, everything(2), SetLossConfig())
    for name, value in expected.items():
        assert output.parts[name].item() == pytest.approx(value, rel=1e-4), name


def test_more_instances_than_queries() -> None:
    predictions = random_predictions(2, 2)
    output = SetLoss(SetLossConfig())(predictions, TARGETS, everything(2))
    expected, _ = slow_layer(predictions.mask_logits, predictions.class_logits, TARGETS, everything(2), SetLossConfig())
    for name, value in expected.items():
        assert output.parts[name].item() == pytest.approx(value, rel=1e-4), name
    assert output.matched.item() == pytest.approx(3 / 4)


# Padding and crowds


@pytest.mark.parametrize("masks", ["dense", "points"])
def test_invalid_pixels_get_no_gradient_and_change_nothing(masks: str) -> None:
    config = SetLossConfig(masks=masks, points=300)  # type: ignore[arg-type]
    targets = [record([(0, 0, 6, 6), (8, 2, 14, 8)], [0, 2]), record([(1, 2, 5, 8)], [1])]
    valid = everything(2)
    valid[:, :, 10:] = False
    predictions = random_predictions(2, 4, heat=True)
    assert predictions.heat is not None
    leaves = (predictions.mask_logits, predictions.heat)
    for tensor in leaves:
        tensor.requires_grad_()
    torch.manual_seed(0)
    output = SetLoss(config)(predictions, targets, valid)
    output.loss.backward()
    blind = 5 if masks == "dense" else 6  # a point beside the border mixes in the first invalid column
    for tensor in leaves:
        assert tensor.grad is not None
        assert not tensor.grad[..., blind:].any()
        assert tensor.grad[..., :5].any()


def test_matching_does_not_look_at_invalid_pixels() -> None:
    """The first query is better on the valid pixels; on the others anything may be predicted."""
    targets = [record([(0, 0, 8, 8)], [0])]
    valid = everything(1)
    valid[:, :, 10:] = False
    masks = torch.full((1, 2, SIDE, SIDE), -4.0)
    masks[0, 0, :4, :4], masks[0, 1, :4, :4] = 2.0, 1.0
    classes = torch.zeros(1, 2, CLASSES + 1)
    for junk in (-20.0, 20.0):
        masks[0, 0, :, 5:] = junk
        small = pad_targets(targets, valid, (SIDE, SIDE))
        share = small.valid.flatten(1).unsqueeze(1)
        pixels = small.masks.flatten(2) * share
        found = match(masks.flatten(2), classes, small, pixels, share, 4 * pixels.sum(-1) + 20, MatchCosts())
        assert found.assigned.tolist() == [[0]]


@pytest.mark.parametrize("kind", ["dense", "points"])
def test_unmatched_queries_on_invalid_pixels_are_not_trained_as_no_object(kind: Literal["dense", "points"]) -> None:
    targets = [record([(0, 0, 8, 8)], [0])]
    valid = everything(1)
    valid[:, :, 10:] = False
    masks = torch.full((1, 3, SIDE, SIDE), -8.0)
    masks[0, 0, :4, :4] = 8.0  # the instance
    masks[0, 1, :, 6:] = 8.0  # on invalid pixels
    masks[0, 2, 5:, :4] = 8.0  # on valid background
    classes = torch.zeros(1, 3, CLASSES + 1, requires_grad=True)
    predictions = Predictions(masks, classes, torch.zeros(1, 1, 4, 4), [], None)
    SetLoss(SetLossConfig(masks=kind, points=64))(predictions, targets, valid).loss.backward()
    assert classes.grad is not None
    gradient = classes.grad[0].abs().sum(-1)
    assert gradient[1] == 0 and gradient[0] > 0 and gradient[2] > 0


# Weights of pseudo-labels


def test_pseudo_labels_count_by_their_score() -> None:
    boxes, labels = [(0, 0, 6, 6), (8, 8, 16, 14)], [0, 2]
    predictions = random_predictions(1, 3)

    def parts(scores: list[float]) -> dict[str, float]:
        output = SetLoss(SetLossConfig(no_object_weight=0.0))(
            predictions, [record(boxes, labels, scores)], everything(1)
        )
        return {name: float(value) for name, value in output.parts.items()}

    first, second, mixed = parts([1.0, 0.0]), parts([0.0, 1.0]), parts([0.9, 0.3])
    for name in first:
        assert mixed[name] == pytest.approx((0.9 * first[name] + 0.3 * second[name]) / 1.2, rel=1e-5), name


def test_few_unsure_labels_weigh_less_than_one_sure_one() -> None:
    predictions = random_predictions(1, 3)
    half = SetLoss(SetLossConfig())(predictions, [record([(0, 0, 6, 6)], [0], [0.5])], everything(1))
    full = SetLoss(SetLossConfig())(predictions, [record([(0, 0, 6, 6)], [0], [1.0])], everything(1))
    assert half.parts["mask"].item() == pytest.approx(0.5 * full.parts["mask"].item(), rel=1e-5)


def test_an_image_without_instances_is_background_for_any_scores() -> None:
    predictions = random_predictions(2, 3)
    for targets in ([record([], []), record([(0, 0, 6, 6)], [0], [0.5])], [record([], []), record([], [])]):
        outputs = [
            SetLoss(SetLossConfig(no_object_by_score=on))(predictions, targets, everything(2)) for on in (False, True)
        ]
        same = outputs[0].parts["class"] == outputs[1].parts["class"]
        assert bool(same) == (not len(targets[1]))


# Deep supervision and the heat map


def test_every_layer_counts_with_a_matching_of_its_own() -> None:
    predictions = random_predictions(2, 4, layers=3)
    loss = SetLoss(SetLossConfig())
    output = loss(predictions, TARGETS, everything(2))
    layers = [*predictions.auxiliary, (predictions.mask_logits, predictions.class_logits)]
    alone: list[SetLossOutput] = [
        loss(dataclasses.replace(predictions, mask_logits=m, class_logits=c, auxiliary=[]), TARGETS, everything(2))
        for m, c in layers
    ]
    assert len(alone) == 3
    assert output.loss.item() == pytest.approx(sum(o.loss.item() for o in alone), rel=1e-5)
    for name in ("class", "mask", "dice"):
        assert output.parts[name].item() == pytest.approx(sum(o.parts[name].item() for o in alone), rel=1e-5)


def test_heat_part_is_weighted_and_added_once() -> None:
    predictions = random_predictions(2, 4, layers=2, heat=True)
    with_heat = SetLoss(SetLossConfig(heat_weight=2.0))(predictions, TARGETS, everything(2))
    without = SetLoss(SetLossConfig())(dataclasses.replace(predictions, heat=None), TARGETS, everything(2))
    assert predictions.heat is not None
    heat = heat_loss(predictions.heat, pad_targets(TARGETS, everything(2), (SIDE, SIDE)))
    assert with_heat.parts["heat"].item() == pytest.approx(heat.item())
    assert with_heat.loss.item() == pytest.approx(without.loss.item() + 2 * heat.item(), rel=1e-5)
    assert "heat" not in without.parts


def test_centroids_are_in_cells() -> None:
    targets = pad_targets([record([(0, 4, 4, 8), (8, 0, 16, 2)], [0, 1])], everything(1), (SIDE, SIDE))
    assert centre_points(targets.masks).tolist() == [[[2.5, 0.5], [0.0, 5.5]]]


def test_heat_is_lowest_with_peaks_at_the_centres_alone() -> None:
    target = [record([(2, 2, 8, 8), (8, 10, 14, 16)], [0, 1])]
    targets = pad_targets(target, everything(1), (SIDE, SIDE))
    assert centre_points(targets.masks)[0].tolist() == [[2.0, 2.0], [6.0, 5.0]]

    def loss(peaks: list[tuple[int, int]]) -> float:
        heat = torch.full((1, SIDE, SIDE), -9.0)
        for x, y in peaks:
            heat[0, y, x] = 9.0
        return heat_loss(heat, targets).item()

    best = loss([(2, 2), (6, 5)])
    assert best < 1e-3
    for worse in ([], [(2, 2)], [(2, 2), (6, 5), (0, 7)], [(2, 2), (5, 5)]):
        assert loss(worse) > best + 1.0
    assert loss([(2, 2), (6, 5), (3, 2)]) < loss([(2, 2), (6, 5), (0, 7)])  # beside a centre is forgiven


def test_gradient_descent_on_the_heat_finds_the_centres() -> None:
    targets = pad_targets([record([(2, 2, 8, 8), (8, 10, 14, 16)], [0, 1])], everything(1), (SIDE, SIDE))
    heat = torch.zeros(1, SIDE, SIDE, requires_grad=True)
    optimizer = torch.optim.Adam([heat], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        heat_loss(heat, targets).backward()
        optimizer.step()
    best = heat.detach().flatten().topk(2).indices
    assert {(int(i) % SIDE, int(i) // SIDE) for i in best} == {(2, 2), (6, 5)}


def test_heat_without_instances_is_pushed_down() -> None:
    targets = pad_targets([Instances.empty(16, 16)], everything(1), (SIDE, SIDE))
    heat = torch.zeros(1, SIDE, SIDE, requires_grad=True)
    heat_loss(heat, targets).backward()
    assert heat.grad is not None and bool((heat.grad > 0).all())


# Models that are asked for the masks of given boxes


@dataclass
class Asked(Predictions):
    """Says what it was told to say, and 3 as a loss of its own."""

    promptable = True
    answers: Tensor | None = None
    seen: list[list[int]] = field(default_factory=list)

    def answer(
        self, boxes: Sequence[Tensor], labels: Sequence[Tensor], weights: Any = None, valid: Any = None,
        masked: Sequence[Tensor] = (), total: Any = None,
    ) -> Answers:  # fmt: skip
        assert self.answers is not None and [len(b) for b in boxes] == [len(c) for c in labels]
        self.seen = [index.tolist() for index in masked]
        chosen = [masks[index] for masks, index in zip(self.answers, masked, strict=True)]
        return Answers(pad_sequence(chosen, batch_first=True), {"detector": torch.tensor(float(len(boxes[0])))})


def asked_for(masks: Tensor) -> Asked:
    return Asked(torch.zeros(2, 5, 1, 1), torch.zeros(2, 5, CLASSES + 1), torch.zeros(2, 1, 1, 1), answers=masks)


def test_drawn_boxes_alone_learn_masks_and_all_boxes_teach_the_detector() -> None:
    """The loss with a cap is that of the drawn instances alone; the draw follows the seed."""
    masks = torch.randn((2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    asked, draws = asked_for(masks), set()
    few, every = SetLoss(SetLossConfig(trained_boxes=2)), SetLoss(SetLossConfig(trained_boxes=0))
    for seed in range(8):
        capped = few(asked, TARGETS, everything(2), seed=seed)
        first, second = asked.seen
        assert len(first) == 2 and first == sorted(set(first)) and second == [0]
        draws.add(tuple(first))
        assert torch.equal(few(asked, TARGETS, everything(2), seed=seed).loss, capped.loss)
        chosen = asked_for(torch.stack([masks[0, first], masks[1, :2]]))
        alone = every(chosen, [TARGETS[0].select(torch.tensor(first)), TARGETS[1]], everything(2))
        for name in ("mask", "dice"):
            torch.testing.assert_close(capped.parts[name], alone.parts[name])
        assert (capped.parts["detector"].item(), alone.parts["detector"].item()) == (3.0, 2.0)
    assert draws == {(0, 1), (0, 2), (1, 2)}


def test_boxes_are_drawn_for_an_image_whatever_batch_it_is_in() -> None:
    """Of images of a joint batch, each draws alike in any part of it, and images and steps draw differently."""
    records = [everywhere(count) for count in (40, 3, 0, 40, 40)]
    whole = [index.tolist() for index in drawn_instances(records, 32, seed=5)]
    parts = drawn_instances(records[:2], 32, seed=5) + drawn_instances(records[2:], 32, seed=5, first=2)
    assert [index.tolist() for index in parts] == whole
    assert [len(index) for index in whole] == [32, 3, 0, 32, 32]
    assert all(index == sorted(set(index)) for index in whole)
    others = drawn_instances(records[:1], 32, seed=6)[0].tolist()
    assert len({tuple(index) for index in (whole[0], whole[3], whole[4], others)}) == 4
    assert drawn_instances(records[:1], 0, seed=5)[0].tolist() == list(range(40))


def everywhere(count: int) -> Instances:
    """So many instances on an image of one pixel."""
    crowd = torch.zeros(count, dtype=torch.bool)
    return Instances(torch.ones((count, 1, 1), dtype=torch.bool), torch.zeros(count).long(), torch.ones(count), crowd)


@pytest.mark.parametrize("semi_masks", [1.0, 0.2])
def test_answers_are_compared_with_the_instance_that_was_asked_for(semi_masks: float) -> None:
    """No matching, no class loss: mask i is compared with instance i, and the model's own term is added."""
    masks = torch.randn((2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    asked = asked_for(masks)
    config = SetLossConfig(normalizer="pixels")
    output = SetLoss(config)(asked, TARGETS, everything(2), semi_masks=semi_masks)
    entropies, dices, total = [], [], 0.0
    for image, target in enumerate(TARGETS):
        for i in range(len(target)):
            t = torch.nn.functional.avg_pool2d(target.masks[i].float()[None], 2)[0]
            x, weight = masks[image, i], float(target.scores[i])
            p = x.sigmoid()
            entropies.append(weight * float((-t * p.log() - (1 - t) * (1 - p).log()).mean()))
            dices.append(weight * float(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)))
            total += weight
    assert output.parts["mask"].item() == pytest.approx(sum(entropies) / total, rel=1e-4)
    assert output.parts["dice"].item() == pytest.approx(sum(dices) / total, rel=1e-4)
    expected = 3.0 + semi_masks * (5 * sum(entropies) + 5 * sum(dices)) / total
    assert output.loss.item() == pytest.approx(expected, rel=1e-4) and output.parts["detector"].item() == 3.0
    assert set(output.parts) == {"mask", "dice", "detector"} and output.matched.item() == 1.0
