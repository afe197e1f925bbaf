"""Dense queries: every cell's mask network, the best cells as queries, their assignment and loss."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sskd_fast.data.instances import Instances
from sskd_fast.losses.dense_loss import Cells, DenseLossConfig, _qualities, assign, dense_loss, drawn_cells
from sskd_fast.losses.heat_loss import centre_points
from sskd_fast.losses.matching import pad_targets
from sskd_fast.losses.set_loss import SetLoss, SetLossConfig
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.dense import DenseSegmenter, best_cells
from sskd_fast.models.dense_maps import DenseMaps, kernel_size, mask_logits
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.models.segmenter import Predictions
from sskd_fast.models.settings import ModelConfig

TINY = ModelConfig(
    kind="dense", channels=(8, 12, 16), blocks=(1, 1, 1), width=16, mask_width=8, layers=1, num_queries=5, embedding=6
)


def tiny(**changes: Any) -> DenseSegmenter:
    torch.manual_seed(0)
    model = build_segmenter(dataclasses.replace(TINY, **changes), ["a", "b"])
    assert isinstance(model, DenseSegmenter)
    return model


def square(size: int, top: int, left: int, side: int) -> Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def instances(*masks: Tensor, labels: list[int] | None = None) -> Instances:
    return Instances(
        torch.stack(masks),
        torch.tensor(labels or [0] * len(masks)),
        torch.ones(len(masks)),
        torch.zeros(len(masks), dtype=torch.bool),
    )


def random_maps(size: int = 16, classes: int = 2) -> DenseMaps:
    """Maps for 2 images whose finest map has size x size cells, with levels of 2 and 4 of its cells."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    sides = (size // 2, size // 4)
    return DenseMaps(
        [draw(2, classes, side, side) for side in sides],
        [draw(2, kernel_size(8), side, side) for side in sides],
        draw(2, 8, size, size),
        (2, 4),
    )


def test_predictions_have_the_form_of_every_model() -> None:
    model = tiny().eval()
    predictions = model(torch.rand(2, 3, 64, 40))
    assert predictions.mask_logits.shape == (2, 5, 32, 20)
    assert predictions.class_logits.shape == (2, 5, 3)
    assert predictions.pixel_features.shape == (2, 16, 16, 10)
    assert predictions.dense is not None and predictions.dense.strides == (2, 4)
    assert predictions.dense is not None
    _, classes = best_cells(predictions.dense, 5)
    torch.testing.assert_close(model.class_probs(predictions), classes.sigmoid())


def test_a_mask_is_what_its_cells_network_makes_of_features_and_places() -> None:
    torch.manual_seed(0)
    kernels, features = torch.randn(1, kernel_size(8)), torch.randn(1, 8, 4, 6)
    found = mask_logits(kernels, features, torch.tensor([0]), torch.tensor([[2.5, 1.0]]), torch.tensor([2.0]))
    numbers = kernels[0].tolist()
    take = lambda count: torch.tensor([numbers.pop(0) for _ in range(count)])  # noqa: E731
    layers = [(take(80).view(8, 10), take(8)), (take(64).view(8, 8), take(8)), (take(8).view(1, 8), take(1))]
    for y in range(4):
        for x in range(6):
            place = torch.tensor([(x - 2.5) / 16, (y - 1.0) / 16])
            value = torch.cat([features[0, :, y, x], place])
            for number, (weight, bias) in enumerate(layers):
                value = weight @ value + bias
                value = F.relu(value) if number < 2 else value
            assert found[0, y, x].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-4)


def test_cells_lie_at_the_middle_of_what_they_cover() -> None:
    logits, centres, covers = random_maps().cells()
    assert logits.shape == (2, 64 + 16, 2)
    assert centres[0].tolist() == [0.5, 0.5] and centres[1].tolist() == [2.5, 0.5]
    assert centres[64].tolist() == [1.5, 1.5] and covers[64] == 4


def test_the_best_cells_are_the_highest_peaks_of_all_levels() -> None:
    maps = random_maps(classes=1)
    for level in maps.classes:
        level.fill_(-5.0)
    maps.classes[0][0, 0, 3, 4], maps.classes[0][0, 0, 3, 5] = 3.0, 2.9  # the second is no peak
    maps.classes[1][0, 0, 1, 2] = 2.0
    cells, logits = best_cells(maps, 2)
    assert cells[0].tolist() == [3 * 8 + 4, 64 + 1 * 4 + 2]
    assert logits[0, :, 0].tolist() == [3.0, 2.0]


def test_more_queries_than_cells_give_all_cells() -> None:
    assert best_cells(random_maps(), 1000)[0].shape == (2, 80)


def test_cells_near_a_centre_learn_the_instance_on_the_level_of_its_size() -> None:
    maps = random_maps()
    config = DenseLossConfig(radius=0.75, sizes=(1.5, 3.0))
    small, large = square(16, 3, 3, 3), square(16, 4, 4, 10)  # sides 3 and 10 cells; centres 4 and 8.5
    targets = pad_targets(
        [instances(small, large), instances(small)], torch.ones(2, 16, 16, dtype=torch.bool), (16, 16)
    )
    found = assign(config, maps, targets)
    by = {(i, g): [] for i, g in ((0, 0), (0, 1), (1, 0))}
    for image, cell, instance in zip(found.image.tolist(), found.cell.tolist(), found.instance.tolist(), strict=True):
        by[image, instance].append(cell)
    # Side 3: the level of 2 alone (smallest of the next is 6); cells whose centre is less than 1.5 from 4.
    near = [y * 8 + x for y in range(8) for x in range(8) if max(abs(2 * x + 0.5 - 4), abs(2 * y + 0.5 - 4)) < 1.5]
    assert by[0, 0] == by[1, 0] == near
    # Side 10: above 3 x 2 for the finer level, so the coarser alone; cells less than 3 from 8.5.
    wide = [
        64 + y * 4 + x for y in range(4) for x in range(4) if max(abs(4 * x + 1.5 - 8.5), abs(4 * y + 1.5 - 8.5)) < 3
    ]
    assert by[0, 1] == wide


def test_a_cell_near_two_instances_takes_the_smaller() -> None:
    maps = random_maps()
    nested = instances(square(16, 4, 4, 6), square(16, 6, 6, 2))
    targets = pad_targets([nested, nested], torch.ones(2, 16, 16, dtype=torch.bool), (16, 16))
    found = assign(DenseLossConfig(), maps, targets)
    shared = (found.cell == 3 * 8 + 3) & (found.image == 0)
    assert found.instance[shared].tolist() == [1]


def test_centre_points_are_in_cells() -> None:
    assert centre_points(square(8, 2, 4, 3).float()[None, None])[0, 0].tolist() == [5.0, 3.0]


def test_a_draw_keeps_the_limits_an_instance_and_an_image() -> None:
    torch.manual_seed(0)
    cells = Cells(torch.zeros(12).long(), torch.arange(12), torch.tensor([0] * 9 + [1] * 3))
    drawn = drawn_cells(DenseLossConfig(masks_an_instance=2, masks_an_image=50), cells, 1)
    assert sorted(drawn.instance.tolist()) == [0, 0, 1, 1] and len(set(drawn.cell.tolist())) == 4
    assert all(
        (cell < 9) == (owner == 0) for cell, owner in zip(drawn.cell.tolist(), drawn.instance.tolist(), strict=True)
    )
    assert len(drawn_cells(DenseLossConfig(masks_an_instance=2, masks_an_image=3), cells, 1)) == 3


def loss_of(maps: DenseMaps, targets: list[Instances], valid: Tensor | None = None, **config: Any) -> dict[str, Tensor]:
    valid = torch.ones(len(targets), 32, 32, dtype=torch.bool) if valid is None else valid
    return dense_loss(DenseLossConfig(**config), maps, targets, valid)[0]


def slow_loss(
    config: DenseLossConfig, maps: DenseMaps, targets: list[Instances], valid: Tensor
) -> tuple[dict[str, float], float]:
    """The parts and the share of instances with a cell, one cell at a time, if every cell learns its mask."""
    logits, centres, covers = maps.cells()
    levels, weight, masks, dices, focal, found = covers.unique(), 0.0, 0.0, 0.0, 0.0, set()
    for image, record in enumerate(targets):
        coarse = [F.avg_pool2d(mask.float()[None], 2)[0] for mask in record.masks]
        owner: dict[int, int] = {}
        for n, (x, y) in enumerate(centres.tolist()):
            cover, near = float(covers[n]), []
            for g, mask in enumerate(coarse):
                area = float(mask.sum())
                if area <= 0.5:
                    continue
                cy, cx = (float((mask.sum(d) * torch.arange(16)).sum()) / area for d in (1, 0))
                fits = (cover == levels.min() or area**0.5 >= config.sizes[0] * cover) and (
                    cover == levels.max() or area**0.5 <= config.sizes[1] * cover
                )
                if fits and max(abs(x - cx), abs(y - cy)) < config.radius * cover:
                    near.append((area, g))
            if near:
                owner[n] = min(near)[1]
        found |= {(image, g) for g in owner.values()}
        ious: dict[int, list[float]] = {}
        for n, g in owner.items():
            z = maps.masks(torch.tensor([image]), torch.tensor([n]))
            z = F.interpolate(z[None], scale_factor=2, mode="bilinear")[0, 0]
            seen = valid[image].float()
            p, t, score = z.sigmoid() * seen, record.masks[g] * seen, float(record.scores[g])
            entropy = float((F.softplus(z) - t * z).mul(seen).sum() / (4 * t.sum() + 20))
            masks += score * entropy
            dices += score * float(1 - 2 * (p * t).sum() / (p.square() + t.square()).sum())
            weight += score
            drawn = (z > 0) * seen
            ious.setdefault(g, []).append(float((drawn * t).sum() / torch.maximum(drawn, t).sum()))
        share = F.avg_pool2d(valid[image].float()[None], 2)[0]
        for n, (x, y) in enumerate(centres.tolist()):
            g = owner.get(n)
            own = float(share[round(y), round(x)] > 0.5) if g is None else float(record.scores[g])
            for label, z in enumerate(logits[image, n].tolist()):
                goal = 0.0
                if g is not None and label == int(record.labels[g]):
                    goal = max(0.1, sum(ious[g]) / len(ious[g])) if config.quality else 1.0
                p = 1 / (1 + math.exp(-z))
                balance = 0.75 if goal == 0 else 1.0 if config.quality else 0.25
                focal += own * balance * (math.log1p(math.exp(z)) - goal * z) * (goal - p) ** 2
    parts = {"class": focal, "mask": masks, "dice": dices}
    return {name: value / max(1.0, weight) for name, value in parts.items()}, len(found) / sum(map(len, targets))


@pytest.mark.parametrize("quality", [True, False])
def test_the_dense_loss_equals_the_slow_implementation(quality: bool) -> None:
    valid = torch.ones(2, 32, 32, dtype=torch.bool)
    valid[0, 21:], valid[0, :2], valid[1, :, 25:], valid[1, :, :2] = False, False, False, False
    tiny_one = square(32, 28, 2, 1) | square(32, 28, 3, 1)  # half a cell, too small to be found
    first = instances(square(32, 4, 4, 8), square(32, 6, 8, 6), square(32, 12, 10, 16), tiny_one, labels=[0, 1, 1, 0])
    second = instances(
        square(32, 16, 2, 12), square(32, 0, 28, 2), square(32, 4, 14, 10), tiny_one, labels=[1, 0, 0, 1]
    )
    targets = [
        dataclasses.replace(first, scores=torch.tensor([1.0, 0.5, 0.75, 1.0])),
        dataclasses.replace(second, scores=torch.tensor([0.25, 1.0, 0.5, 1.0])),
    ]
    config = DenseLossConfig(radius=0.75, sizes=(1.5, 2.5), masks_an_instance=99, masks_an_image=99, quality=quality)
    for targets_ in (targets, [targets[1], Instances.empty(32, 32)]):
        parts, matched = dense_loss(config, random_maps(), targets_, valid)
        expected, share = slow_loss(config, random_maps(), targets_, valid)
        assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, rel=1e-4)
        assert matched.item() == pytest.approx(share) and 0 < share < 1
    single = [instances(square(32, 4, 4, 8)), Instances.empty(32, 32)]
    assert dense_loss(config, random_maps(), single, valid)[1] == 1


def test_masks_are_compared_in_the_cells_of_coarser_labels() -> None:
    """Labels in cells twice as large: mean probabilities of 2 x 2 cells against the shares of their cells."""
    config = DenseLossConfig(radius=0.75, sizes=(1.5, 2.5), masks_an_instance=99, masks_an_image=99)
    maps, mask, valid = random_maps(), square(32, 5, 7, 9), torch.ones(2, 32, 32, dtype=torch.bool)
    targets = [instances(mask), Instances.empty(32, 32)]
    found, _ = dense_loss(config, maps, targets, valid, label_pool=2)
    cells = assign(config, maps, pad_targets(targets, valid, (16, 16)))
    p = F.avg_pool2d(maps.masks(cells.image, cells.cell).unsqueeze(1).sigmoid(), 2).squeeze(1)
    t = F.avg_pool2d(mask.float()[None], 4)
    entropy = -(t * p.log() + (1 - t) * (1 - p).log()).flatten(1).sum(1) / (4 * t.sum() + 20)
    dice = 1 - 2 * (p * t).flatten(1).sum(1) / (p.square() + t.square()).flatten(1).sum(1)
    assert len(cells) > 1 and float(t.max()) == 1 and 0 < float(t[t > 0].min()) < 1
    assert found["mask"].item() == pytest.approx(entropy.mean().item(), rel=1e-4)
    assert found["dice"].item() == pytest.approx(dice.mean().item(), rel=1e-4)
    loss, given = SetLoss(SetLossConfig(dense=config)), Predictions(*[torch.zeros(2, 1, 16, 16)] * 3, dense=maps)
    whole = loss(given, targets, valid, label_pool=2)
    assert whole.parts["mask"].item() == found["mask"].item()


def test_instances_without_a_drawn_cell_have_an_even_quality() -> None:
    """The score of a cell learns the mean IoU of its instance's masks: at least 0.1, one half if none was drawn."""
    cells = Cells(torch.tensor([0, 0, 0, 1, 1]), torch.arange(5), torch.tensor([0, 0, 2, 0, 1]))
    drawn, ious = cells.at(torch.tensor([0, 1, 3])), torch.tensor([0.4, 0.8, 0.05])
    assert _qualities(cells, drawn, ious).tolist() == pytest.approx([0.6, 0.6, 0.5, 0.1, 0.5])


def test_images_without_instances_push_all_scores_down() -> None:
    maps = random_maps()
    for level in maps.classes:
        level.requires_grad_(True)
    parts = loss_of(maps, [Instances.empty(32, 32)] * 2)
    assert parts["dice"] == 0 and parts["mask"] == 0
    parts["class"].backward()
    assert all((level.grad > 0).all() for level in maps.classes)  # type: ignore[operator]


def test_cells_on_invalid_pixels_get_no_gradient() -> None:
    maps = random_maps()
    for level in maps.classes:
        level.requires_grad_(True)
    valid = torch.ones(2, 32, 32, dtype=torch.bool)
    valid[:, :, :16] = False
    loss_of(maps, [Instances.empty(32, 32)] * 2, valid)["class"].backward()
    gradient = maps.classes[0].grad
    assert gradient is not None and (gradient[..., :4] == 0).all() and (gradient[..., 4:] > 0).all()


def test_pseudo_labels_weigh_by_their_score() -> None:
    torch.manual_seed(0)
    maps, one = random_maps(), instances(square(32, 4, 4, 8))
    weak = dataclasses.replace(one, scores=torch.tensor([0.25]))
    both = loss_of(maps, [one, weak], masks_an_instance=100, masks_an_image=100)["dice"]
    first = loss_of(maps, [one, Instances.empty(32, 32)], masks_an_instance=100, masks_an_image=100)["dice"]
    second = loss_of(maps, [Instances.empty(32, 32), one], masks_an_instance=100, masks_an_image=100)["dice"]
    torch.testing.assert_close(both, (first + 0.25 * second) / 1.25)


def test_the_set_loss_of_dense_predictions_is_the_weighted_sum_of_its_parts() -> None:
    model = tiny().train()
    predictions = model(torch.rand(2, 3, 32, 32))
    targets = [instances(square(32, 4, 4, 8)), instances(square(32, 10, 10, 12), labels=[1])]
    config = SetLossConfig(dense=DenseLossConfig(class_weight=2.0, mask_weight=3.0, dice_weight=5.0))
    found = SetLoss(config)(predictions, targets, torch.ones(2, 32, 32, dtype=torch.bool), semi_masks=0.5)
    p = found.parts
    torch.testing.assert_close(found.loss, 2 * p["class"] + 0.5 * (3 * p["mask"] + 5 * p["dice"]))
    assert found.matched == 1


def test_training_finds_an_object_and_its_class() -> None:
    torch.manual_seed(0)
    model, images = tiny(channels=(8, 16, 24), width=24).train(), torch.zeros(2, 3, 32, 32)
    masks = [square(32, 5, 6, 12), square(32, 14, 12, 10)]
    images[0, :, masks[0]] = 1.0
    images[1, 0, masks[1]] = 1.0
    targets = [instances(masks[0], labels=[0]), instances(masks[1], labels=[1])]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss = SetLoss(SetLossConfig())(model(images), targets, torch.ones(2, 32, 32, dtype=torch.bool)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predictions = model.eval()(images)
    probs = predictions.class_logits.softmax(-1)
    for index, (mask, label) in enumerate(zip(masks, (0, 1), strict=True)):
        best = int(probs[index, :, :-1].amax(-1).argmax())
        assert int(probs[index, best].argmax()) == label
        full = F.interpolate(predictions.mask_logits[index, best][None, None], size=(32, 32), mode="bilinear")[0, 0] > 0
        assert (full & mask).sum() / (full | mask).sum() > 0.8


def test_levels_that_do_not_fit_are_named() -> None:
    with pytest.raises(
        FoundationError, match="mask_level: found 1 with 2 levels of the backbone; dense queries need a"
    ):
        tiny(channels=(8, 16), blocks=(1, 1), mask_level=1)
    with pytest.raises(FoundationError, match="mask_level: found 3 with 3 levels of the backbone, expected at most 2"):
        tiny(mask_level=3)
    assert tiny(mask_level=1).stride == 4.0


def test_maps_of_one_stride_are_refused() -> None:
    """A plain ViT has them, unless its maps are reassembled."""
    pytest.importorskip("timm", reason="backbones of timm need it: pip install 'sskd_fast[models]'")
    vit = {"backbone": "timm/vit_tiny_patch16_224"}
    with pytest.raises(FoundationError, match="pixel_decoder: found maps with strides of 16, 16"):
        tiny(**vit)
    assert tiny(**vit, pixel_decoder="dpt").strides == [4.0, 8.0, 16.0, 32.0]
