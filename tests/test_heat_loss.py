"""The loss of the centre heat map against a slow implementation, one cell at a time."""

from __future__ import annotations

import math

import pytest
import torch

from sskd_fast.losses.heat_loss import heat_loss
from sskd_fast.losses.joint_batch import JointBatch
from sskd_fast.losses.matching import Targets

H, W = 9, 11


def targets() -> Targets:
    """Two images: a large, a small and an absent instance, then one without area; one row half valid, one invalid."""
    masks = torch.zeros(2, 3, H, W)
    masks[0, 0, 1:8, 2:9] = 1.0
    masks[0, 1, 6:8, 8:11] = 0.5
    masks[0, 2, 0:2, 0:2] = masks[1, 1, 3:5, 3:4] = 1.0
    present = torch.tensor([[True, True, False], [True, True, False]])
    valid = torch.ones(2, H, W)
    valid[:, 7], valid[:, 8] = 0.5, 0.0
    return Targets(masks, torch.zeros(2, 3).long(), present, valid, torch.ones(2, 3))


def slow_loss(heat: torch.Tensor, wanted: Targets) -> tuple[float, int]:
    """The sum over all cells, and the number of instances with area."""
    total, count = 0.0, 0
    for image in range(len(heat)):
        gaussians = []
        for mask, here in zip(wanted.masks[image], wanted.present[image], strict=True):
            area = float(mask.sum())
            if not here or area == 0:
                continue
            count += 1
            y = round(sum(float(mask[y].sum()) * y for y in range(H)) / area)
            x = round(sum(float(mask[:, x].sum()) * x for x in range(W)) / area)
            gaussians.append((x, y, max(0.7, math.sqrt(area) / 6)))
        for y in range(H):
            for x in range(W):
                p = 1 / (1 + math.exp(-float(heat[image, y, x])))
                away = [((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2) for cx, cy, sigma in gaussians]
                goal = math.exp(-min(away)) if away else 0.0
                if goal == 1:
                    total -= (1 - p) ** 2 * math.log(p)
                elif wanted.valid[image, y, x] > 0.5:
                    total -= p**2 * (1 - goal) ** 4 * math.log(1 - p)
    return total, count


def test_the_heat_loss_is_that_of_its_definition() -> None:
    heat, wanted = torch.randn(2, H, W, generator=torch.Generator().manual_seed(0)) * 2, targets()
    total, count = slow_loss(heat, wanted)
    assert count == 3
    assert heat_loss(heat, wanted).item() == pytest.approx(total / 3, rel=1e-5)
    known = JointBatch(known={"centres": torch.tensor(12)})
    assert heat_loss(heat, wanted, known).item() == pytest.approx(total / 12, rel=1e-5)
    wanted.present[:] = False
    total, count = slow_loss(heat, wanted)
    assert count == 0 and heat_loss(heat, wanted).item() == pytest.approx(total, rel=1e-5)
