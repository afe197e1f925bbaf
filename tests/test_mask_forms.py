"""L_pxl on mask features and on mask logits, against plain re-implementations cell by cell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sskd_fast.losses.contrast_settings import ContrastConfig
from sskd_fast.losses.mask_ownership import ownership_sums
from sskd_fast.losses.mask_prototypes import prototype_sums
from sskd_fast.losses.matching import Targets

B, K, G, P, H, W = 2, 5, 3, 4, 4, 5


def targets() -> Targets:
    """Two instances that share cells, the second image with one instance; some cells are invalid, some half valid."""
    masks = torch.zeros((B, G, H, W), dtype=torch.float64)
    masks[0, 0, :2, :2], masks[0, 1, 1:, 2:], masks[0, 1, 1, 1] = 1.0, 1.0, 0.5
    masks[0, 0, 3, 0], masks[1, 0, 2:, 1:4] = 0.25, 0.75
    valid = torch.ones((B, H, W), dtype=torch.float64)
    valid[0, 0, 0], valid[1, :, 4], valid[1, 2, 2] = 0.5, 0.0, 0.25
    present = torch.tensor([[True, True, False], [True, False, False]])
    weights = torch.tensor([[1.0, 0.5, 0.0], [0.25, 0.0, 0.0]], dtype=torch.float64)
    return Targets(masks, torch.zeros((B, G), dtype=torch.int64), present, valid, weights)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def prototypes_by_hand(features: Tensor, t: Targets, temperature: float) -> tuple[Tensor, Tensor]:
    total = weight = features.new_zeros(())
    for b in range(B):
        count = int(t.present[b].sum())
        shares = [t.masks[b, i] * t.valid[b] for i in range(count)]
        shares = [(t.valid[b] - sum(shares)).clamp(min=0), *shares]
        prototypes = [F.normalize((share * features[b]).sum((1, 2)), dim=0) for share in shares]
        for y in range(H):
            for x in range(W):
                cell = F.normalize(features[b, :, y, x], dim=0)
                mass = [torch.exp(p @ cell / temperature) for p in prototypes]
                for i in range(1, count + 1):
                    w = t.weights[b, i - 1] * shares[i][y, x]
                    total, weight = total - w * torch.log(mass[i] / sum(mass)), weight + w
    return total, weight


def ownership_by_hand(logits: Tensor, t: Targets, assigned: Tensor) -> tuple[Tensor, Tensor]:
    total = weight = logits.new_zeros(())
    for b in range(B):
        instances = [i for i in range(G) if t.present[b, i]]
        matched = [i for i in instances if assigned[b, i] >= 0]
        for y in range(H):
            for x in range(W):
                owned = {i: torch.exp(logits[b, int(assigned[b, i]), y, x]) for i in matched}
                norm = 1 + sum(owned.values())
                covered = max(1.0, sum(float(t.masks[b, i, y, x]) for i in instances))
                free = 1 - sum(t.masks[b, i, y, x] for i in instances) / covered
                pairs = [(free, 1 / norm)]
                pairs += [(t.weights[b, i] * t.masks[b, i, y, x] / covered, owned[i] / norm) for i in matched]
                for w, share in pairs:
                    total = total - t.valid[b, y, x] * w * torch.log(share)
                    weight = weight + t.valid[b, y, x] * w
    return total, weight


def test_prototypes_are_those_of_the_formula() -> None:
    features = draw(B, P, H, W)
    found, expected = prototype_sums(features, targets(), 0.3), prototypes_by_hand(features, targets(), 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    grads = [torch.autograd.grad(x[0], features)[0] for x in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-12)
    assert torch.autograd.gradcheck(lambda m: prototype_sums(m, targets(), 0.3)[0], features)


@pytest.mark.parametrize("assigned", [[[3, 1, -1], [0, -1, -1]], [[2, -1, -1], [4, -1, -1]]])
def test_ownership_is_that_of_the_formula(assigned: list[list[int]]) -> None:
    logits, query = draw(B, K, H, W), torch.tensor(assigned)
    found, expected = ownership_sums(logits, targets(), query), ownership_by_hand(logits, targets(), query)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    grads = [torch.autograd.grad(x[0], logits)[0] for x in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-12)
    assert torch.autograd.gradcheck(lambda m: ownership_sums(m, targets(), query)[0], logits)


def test_ownership_counts_whole_cells_as_the_paper_of_kmax_does() -> None:
    """Two matched queries, whole cells: the cross-entropy of a softmax over them and a background of 0."""
    logits = draw(1, K, 2, 2)
    masks = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]], dtype=torch.float64)
    ones, here = torch.ones((1, 2), dtype=torch.float64), torch.ones((1, 2), dtype=torch.bool)
    t = Targets(masks, torch.zeros((1, 2), dtype=torch.int64), here, torch.ones((1, 2, 2), dtype=torch.float64), ones)
    loss, weight = ownership_sums(logits, t, torch.tensor([[4, 2]]))
    classes = torch.stack([torch.zeros(4, dtype=torch.float64), logits[0, 4].flatten(), logits[0, 2].flatten()], 1)
    torch.testing.assert_close(loss / weight, F.cross_entropy(classes, torch.tensor([1, 2, 0, 0])))


def test_an_image_without_instances_gives_no_nan() -> None:
    t = targets()
    t.present[:] = False
    features, logits = draw(B, P, H, W), draw(B, K, H, W)
    loss, weight = prototype_sums(features, t, 0.3)
    assert (float(loss.detach()), float(weight)) == (0.0, 0.0)
    background, mass = ownership_sums(logits, t, torch.full((B, G), -1))
    assert float(background.detach()) == 0.0 and float(mass) == pytest.approx(float(t.valid.sum()))
    for grad in torch.autograd.grad(loss + background, (features, logits)):
        assert grad.isfinite().all()


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features: found a map of \(8, 8\), expected that of the targets, \(4, 5\)"):
        prototype_sums(draw(B, P, 8, 8), targets(), 0.3)
    with pytest.raises(ValueError, match=r"mask_logits: found a map of \(8, 8\), expected that of the targets"):
        ownership_sums(draw(B, K, 8, 8), targets(), torch.zeros((B, G), dtype=torch.int64))


@pytest.mark.parametrize("form", ["prototypes", "ownership"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_bank": 64}, "takes no pixels of earlier steps"),
        ({"all_ranks": True}, "takes no pixels of other ranks"),
        ({"margin": 0.1}, "has no margin"),
        ({"hard_share": 0.1}, "no draws of which to take the hardest"),
        ({"objectness": True}, "no choice of objectness"),
    ],
)
def test_settings_without_a_meaning_are_refused(form: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"form='{form}'.*{message}"):
        ContrastConfig(form=form, **changes)
