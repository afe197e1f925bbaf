"""L_pxl where instances meet, against a plain re-implementation: anchors, positives, negatives, gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sskd_fast import ops
from sskd_fast.losses.anchors import Pixels, pixel_rows
from sskd_fast.losses.boundary_contrast import BoundaryContrast, draw_near, near_another
from sskd_fast.losses.contrast_settings import ContrastConfig

B, K, C, D, H, W = 2, 5, 2, 6, 6, 8
BOUNDARY: dict[str, Any] = {"form": "boundary", "scope": "same", "max_anchors": 0}


def scene(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Two images: two instances side by side and a lonely one, then two a column apart."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    ids = torch.zeros((B, H, W), dtype=torch.int64)
    ids[0, :3, 0:2], ids[0, :3, 2:4], ids[0, 5, 7] = 1, 2, 3
    ids[1, 1:4, 1:3], ids[1, 1:4, 4:6] = 1, 2
    weights = torch.ones((B, H, W), dtype=dtype)
    weights[0][ids[0] == 2], weights[1][ids[1] == 1] = 0.25, 0.5
    valid = torch.ones((B, H, W), dtype=torch.bool)
    valid[1, :, 7] = False
    valid[0, 0, 1] = False
    return {
        "mask_logits": 3 * draw(B, K, H, W), "class_logits": draw(B, K, C + 1), "embeddings_weak": draw(B, D, H, W),
        "embeddings_strong": draw(B, D, H, W), "instance_ids": ids, "weights": weights, "valid": valid,
    }  # fmt: skip


def cells_of(inputs: dict[str, Tensor]) -> Pixels:
    return pixel_rows(
        inputs["mask_logits"], inputs["class_logits"], inputs["embeddings_weak"], inputs["instance_ids"], cues="object",
        weighted=True, backend="auto",
    )  # fmt: skip


def near_by_hand(ids: Tensor, reach: int) -> Tensor:
    out = torch.zeros(ids.shape, dtype=torch.bool)
    for b, y, x in (ids > 0).nonzero().tolist():
        window = ids[b, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        out[b, y, x] = bool(((window > 0) & (window != ids[b, y, x])).any())
    return out


@pytest.mark.parametrize(("reach", "density"), [(1, 0.2), (2, 0.1), (4, 0.05)])
def test_cells_beside_another_instance_are_those_of_a_search(reach: int, density: float) -> None:
    generator = torch.Generator().manual_seed(reach)
    shown = torch.rand((3, 14, 11), generator=generator) < density
    ids = torch.randint(-1, 4, shown.shape, generator=generator) * shown
    expected = near_by_hand(ids, reach)
    assert torch.equal(near_another(ids, reach), expected)
    assert expected.any() and not expected[ids > 0].all()
    assert not near_another(torch.zeros((1, 4, 4), dtype=torch.int64), reach).any()


def loss_by_hand(inputs: dict[str, Tensor], temperature: float, negatives: Tensor, anchors: list[list[int]]) -> Tensor:
    """The docstring's formula, one similarity at a time."""
    weak, strong = (F.normalize(inputs[f"embeddings_{view}"], dim=1) for view in ("weak", "strong"))
    ids, valid = inputs["instance_ids"], inputs["valid"]
    total = weight = torch.zeros((), dtype=torch.float64)
    for (b, y, x), drawn in zip(anchors, negatives.tolist(), strict=True):
        a = weak[b, :, y, x]
        own = ((ids[b] == ids[b, y, x]) & valid[b]).nonzero().tolist()
        attraction = torch.stack([((a * strong[b, :, i, j]).sum() / temperature).exp() for i, j in own]).mean()
        repulsion = sum(
            (((a * weak[b, :, q // W, q % W]).sum() / temperature).exp() for q in drawn if q >= 0), a[0] * 0
        )
        w = inputs["weights"][b, y, x]
        total, weight = total - w * (attraction / (attraction + repulsion)).log(), weight + w
    return total / weight


def anchors_by_hand(inputs: dict[str, Tensor], reach: int) -> list[list[int]]:
    seen = inputs["instance_ids"].where(inputs["valid"], 0)
    places: list[list[int]] = (near_by_hand(seen, reach) & (inputs["weights"] > 0)).nonzero().tolist()
    return places


@pytest.mark.parametrize(("reach", "negatives"), [(1, 4), (2, 12), (2, 500)])
def test_loss_and_gradient_are_those_of_the_formula(reach: int, negatives: int) -> None:
    inputs, config = scene(), ContrastConfig(**BOUNDARY, reach=reach, num_negatives=negatives, spread=3.0)
    weak = inputs["embeddings_weak"].requires_grad_()
    output = BoundaryContrast(config)(**inputs, progress=0.5, seed=7)
    anchors = anchors_by_hand(inputs, reach)
    index = torch.tensor([(b * H + y) * W + x for b, y, x in anchors])
    drawn = draw_near(cells_of(inputs), index, inputs["valid"].flatten(1), W, config, 7)
    expected = loss_by_hand(inputs, 0.185, drawn, anchors)
    torch.testing.assert_close(output.loss, expected, rtol=1e-10, atol=0)
    grad, by_hand = (torch.autograd.grad(x, weak)[0] for x in (output.loss, expected))
    torch.testing.assert_close(grad, by_hand, rtol=1e-8, atol=1e-12)
    assert float(output.diagnostics["fnr"]) < 1 and math.isfinite(float(output.diagnostics["margin"]))


def test_gradient_is_the_derivative_and_reaches_the_weak_embeddings_alone() -> None:
    inputs = scene()
    contrast = BoundaryContrast(ContrastConfig(**BOUNDARY, num_negatives=5))

    def loss(weak: Tensor) -> Tensor:
        return contrast(**{**inputs, "embeddings_weak": weak}, progress=0.0, seed=3).loss

    assert torch.autograd.gradcheck(loss, inputs["embeddings_weak"].requires_grad_(), fast_mode=True)
    others = [inputs[n].requires_grad_() for n in ("mask_logits", "class_logits", "embeddings_strong")]
    contrast(**inputs, progress=0.0, seed=3).loss.backward()
    assert all(tensor.grad is None for tensor in others)


def weights_by_hand(inputs: dict[str, Tensor], b: int, y: int, x: int, spread: float) -> Tensor:
    masks, classes = inputs["mask_logits"], inputs["class_logits"]
    scores = ops.fuse_scores(masks, classes, cues="object").view(B, H, W, -1)
    objectness = ops.objectness(masks, classes).view(B, H, W)
    dissimilarity = (1 - scores[b] @ scores[b, y, x]).clamp(min=0)
    rows, columns = torch.arange(H)[:, None] - y, torch.arange(W) - x
    near = torch.exp(-(rows**2 + columns**2).double() / (2 * spread**2))
    return (dissimilarity * (0.03 + 0.97 * objectness[b]) * near * inputs["valid"][b]).flatten()


def test_first_negatives_follow_the_law_and_none_is_drawn_twice() -> None:
    inputs, config = scene(), ContrastConfig(**BOUNDARY, num_negatives=20, spread=2.0)
    place, cells = torch.tensor([H * W + W + 2]), cells_of(inputs)
    weights = weights_by_hand(inputs, 1, 1, 2, 2.0)
    draws = torch.stack(
        [draw_near(cells, place, inputs["valid"].flatten(1), W, config, seed)[0] for seed in range(800)]
    )
    assert all(len(set(row)) == 20 for row in draws[:50].tolist())
    counts = torch.bincount(draws[:, 0], minlength=H * W).double()
    expected = 800 * weights / weights.sum()
    common = expected > 5
    chi = ((counts - expected).square() / expected)[common].sum()
    degrees = int(common.sum())
    assert float(chi) < degrees + 4 * math.sqrt(2 * degrees)
    assert not counts[weights == 0].any()


def test_cells_out_of_reach_of_any_weight_are_not_drawn() -> None:
    inputs, config = scene(), ContrastConfig(**BOUNDARY, num_negatives=500)
    valid = inputs["valid"].flatten(1)
    drawn = draw_near(cells_of(inputs), torch.tensor([1, H * W + W + 2]), valid, W, config, 0)
    assert drawn.shape == (2, H * W)
    for row, image, own in ((drawn[0], 0, 1), (drawn[1], 1, W + 2)):
        kept = row[row >= 0].tolist()
        usable = set(valid[image].nonzero().flatten().tolist()) - {own}
        assert set(kept) <= usable and len(kept) == len(set(kept)) > 30
        assert (row[len(kept) :] == -1).all()


def test_images_draw_the_same_negatives_in_every_part_of_the_joint_batch() -> None:
    inputs, config = scene(), ContrastConfig(**BOUNDARY, num_negatives=9)
    whole, valid = cells_of(inputs), inputs["valid"].flatten(1)
    second = whole.select(torch.arange(H * W, 2 * H * W))._replace(image=torch.zeros(H * W, dtype=torch.int64))
    places = torch.tensor([3, W + 2, 40])
    expected = draw_near(whole, H * W + places, valid, W, config, 5)
    assert torch.equal(draw_near(second, places, valid[1:], W, config, 5, numbers=[1]), expected)
    assert not torch.equal(draw_near(second, places, valid[1:], W, config, 5), expected)


def test_anchors_are_capped_an_image_and_weigh_by_score() -> None:
    inputs = scene()
    config = ContrastConfig(**{**BOUNDARY, "max_anchors": 3}, num_negatives=8)
    output = BoundaryContrast(config)(**inputs, progress=0.0, seed=1)
    every = BoundaryContrast(ContrastConfig(**BOUNDARY, num_negatives=8))(**inputs, progress=0.0, seed=1)
    assert float(output.loss) > 0 and float(output.loss) != pytest.approx(float(every.loss))
    silent = {**inputs, "weights": inputs["weights"] * 0}
    assert float(BoundaryContrast(config)(**silent, progress=0.0, seed=1).loss) == 0


def test_without_touching_instances_the_loss_is_zero_and_nothing_is_known() -> None:
    inputs = scene()
    inputs["instance_ids"] = (inputs["instance_ids"] == 1).long()
    weak = inputs["embeddings_weak"].requires_grad_()
    output = BoundaryContrast(ContrastConfig(**BOUNDARY))(**inputs, progress=0.0, seed=1)
    output.loss.backward()
    assert float(output.loss.detach()) == 0 and not weak.grad.any()
    assert all(math.isnan(float(value)) for value in output.diagnostics.values()) and "fnr" in output.diagnostics


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "all"}, "set scope='same', found 'all'"),
        ({"cues": "uniform"}, "form='boundary' needs cues that tell the pixels apart"),
        ({"margin": 0.2}, "form='boundary' has no margin"),
        ({"hard_share": 0.5}, "no draws of which to take the hardest"),
        ({"objectness": True}, "no choice of objectness"),
        ({"reach": 0}, "reach: expected at least 1 cell, found 0"),
        ({"spread": 0.0}, "spread: expected cells > 0, found 0.0"),
    ],
)
def test_settings_without_a_meaning_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastConfig(**{**BOUNDARY, **changes})


def test_shapes_are_checked() -> None:
    inputs = scene()
    inputs["embeddings_strong"] = inputs["embeddings_strong"][..., :4]
    with pytest.raises(ValueError, match="embeddings_strong: found shape"):
        BoundaryContrast(ContrastConfig(**BOUNDARY))(**inputs, progress=0.0, seed=1)
