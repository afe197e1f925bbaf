"""The losses of boxes that a model predicts beside its masks."""

from __future__ import annotations

import pytest
import torch

from sskd_fast.data.instances import Instances
from sskd_fast.losses.box_loss import box_losses, boxes_of
from sskd_fast.losses.set_loss import SetLoss, SetLossConfig
from sskd_fast.models.segmenter import Predictions


def test_boxes_enclose_the_masks_as_shares_of_the_image() -> None:
    masks = torch.zeros((3, 10, 20), dtype=torch.bool)
    masks[0, 2:5, 4:15] = True
    masks[1, 9, 19] = True
    boxes = boxes_of(Instances(masks, torch.zeros(3).long(), torch.ones(3), torch.zeros(3, dtype=torch.bool)))
    expected = torch.tensor([[0.2, 0.2, 0.75, 0.5], [0.95, 0.9, 1.0, 1.0], [0, 0, 0, 0]])
    torch.testing.assert_close(boxes, expected)
    assert boxes_of(Instances.empty(10, 20)).shape == (0, 4)


def test_distance_and_overlap_are_means_over_the_instances_by_weight() -> None:
    """Two layers; the first image has a box without width, the second an instance with a query in one layer."""
    predicted = torch.tensor(
        [[[0.5, 0.5, 0.4, 0.4], [0.25, 0.5, 0.5, 1.0]], [[0.5, 0.5, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0]]]
    )
    boxes = [torch.tensor([[0.5, 0.0, 1.0, 1.0], [0.25, 0.0, 0.25, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]])]
    first, second = torch.tensor([[1, 0], [-1, -1]]), torch.tensor([[1, 0], [0, -1]])
    weights = torch.tensor([[0.5, 1.0], [1.0, 0.0]])
    parts = box_losses([predicted, predicted], [first, second], boxes, weights)
    # Side by side: L1 of the centres 0.5, no intersection, and an enclosing box without a gap: 1 - (0 - 0).
    # Half of the height in the one layer that counts: L1 0.5, IoU 0.5.
    assert parts["box"].item() == pytest.approx((2 * 0.5 * 0.5 + 0.5) / 2.5)
    assert parts["overlap"].item() == pytest.approx((2 * 1.0 * 0.5 + 0.5) / 2.5, abs=1e-6)
    assert box_losses([predicted], [first], [torch.zeros(0, 4)] * 2, weights)["box"].item() == 0


def test_the_set_loss_adds_the_boxes_of_every_layer() -> None:
    masks = torch.zeros((1, 16, 16), dtype=torch.bool)
    masks[0, :8, 4:12] = True
    truth = [Instances(masks, torch.tensor([0]), torch.ones(1), torch.zeros(1, dtype=torch.bool))]
    logits = torch.where(masks[:, ::2, ::2], 20.0, -20.0).unsqueeze(0)
    layer = (torch.cat([-logits, logits], 1), torch.zeros(1, 2, 2))
    right = torch.tensor([[[0.1, 0.1, 0.1, 0.1], [0.5, 0.25, 0.5, 0.5]]])
    moved = (right + 0.25).requires_grad_()

    def loss(boxes: list[torch.Tensor], **options: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        predictions = Predictions(*layer, torch.zeros(1, 1, 4, 4), [layer], boxes=boxes)
        output = SetLoss(SetLossConfig())(predictions, truth, torch.ones(1, 16, 16, dtype=torch.bool), **options)  # type: ignore[arg-type]
        return output.loss, output.parts

    without, _ = loss([])
    perfect, parts = loss([right, right])
    torch.testing.assert_close(perfect, without)
    assert parts["box"].item() == 0 and parts["overlap"].item() == pytest.approx(0, abs=1e-5)
    wrong, parts = loss([moved, right])
    assert parts["box"].item() == pytest.approx(1.0)
    torch.testing.assert_close(wrong, without + 5 * parts["box"] + 2 * parts["overlap"])
    wrong.backward()
    assert moved.grad is not None and bool((moved.grad[0, 1] != 0).all()) and bool((moved.grad[0, 0] == 0).all())
    less, _ = loss([moved, right], semi_masks=0.5)
    half, _ = loss([right, right], semi_masks=0.5)
    torch.testing.assert_close(less - half, (wrong - without) / 2)
