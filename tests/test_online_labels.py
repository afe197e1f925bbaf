"""Labels of the moving average: which predictions become labels, which pixels are left out, on which view it learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sskd_fast.data.instances import Batch, Instances
from sskd_fast.models.segmenter import Predictions, Segmenter
from sskd_fast.models.settings import ModelConfig
from sskd_fast.train.online_labels import OnlineConfig, OnlineLabels

SIZE = 16
BOXES = {"sure": (2, 2, 8, 8), "unsure": (6, 6, 14, 14), "ignored": (0, 10, 4, 16)}


class Planted(Segmenter):
    """Predicts the same three objects on every image, of classes 1, 0 and 1 with the given probabilities."""

    def __init__(self, probabilities: dict[str, float]) -> None:
        super().__init__()
        self.config, self.probabilities = ModelConfig(), probabilities
        self.seen: list[Tensor] = []

    def encode(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return images

    def decode(self, encoded: Tensor) -> Predictions:
        masks = torch.full((3, SIZE, SIZE), -20.0)
        classes = torch.zeros((3, 3))
        for query, (name, (top, left, bottom, right)) in enumerate(BOXES.items()):
            masks[query, top:bottom, left:right] = 20.0
            rest = (1 - self.probabilities[name]) / 2
            own = 0 if name == "unsure" else 1
            probs = [rest, rest, rest]
            probs[own] = self.probabilities[name]
            classes[query] = torch.tensor([math.log(p) for p in probs])
        count = len(encoded)
        return Predictions(masks.expand(count, -1, -1, -1), classes.expand(count, -1, -1), encoded)


def batch() -> Batch:
    valid = torch.ones((2, SIZE, SIZE), dtype=torch.bool)
    valid[1, :, 15] = False
    views = torch.rand((2, 2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    return Batch(views[0], views[1], valid, [Instances.empty(SIZE, SIZE)] * 2, [7, 8])


def area(name: str) -> Tensor:
    top, left, bottom, right = BOXES[name]
    mask = torch.zeros((SIZE, SIZE), dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


PROBABILITIES = {"sure": 0.9, "unsure": 0.42, "ignored": 0.36}
CONFIG = OnlineConfig(start=0.3, score=0.6, unsure=0.4)


def test_sure_predictions_on_the_weak_view_become_labels_of_the_strong_one() -> None:
    model, drawn = Planted(PROBABILITIES), batch()
    labelled = OnlineLabels(CONFIG, taught=False)(model, drawn, 0.3)
    assert labelled is not None and torch.equal(model.seen[0], drawn.weak)
    assert torch.equal(labelled.weak, drawn.strong) and torch.equal(labelled.strong, drawn.weak)
    assert labelled.image_ids == [7, 8]
    for target in labelled.targets:
        assert torch.equal(target.masks, area("sure").unsqueeze(0)) and target.labels.tolist() == [1]
        assert target.scores.tolist() == pytest.approx([0.9], abs=1e-4) and not target.crowd.any()


def test_unsure_predictions_are_neither_object_nor_background() -> None:
    drawn = batch()
    labelled = OnlineLabels(CONFIG, taught=False)(Planted(PROBABILITIES), drawn, 1.0)
    assert labelled is not None
    left_out = area("unsure") & ~area("sure")
    assert torch.equal(labelled.valid[0], ~left_out)
    assert torch.equal(labelled.valid[1], drawn.valid[1] & ~left_out)
    assert drawn.valid[0].all(), "the batch itself is not changed"


def test_labels_may_count_alike() -> None:
    labelled = OnlineLabels(CONFIG, taught=False, weigh_by_score=False)(Planted(PROBABILITIES), batch(), 0.5)
    assert labelled is not None and labelled.targets[0].scores.tolist() == [1.0]


def test_before_its_share_of_the_stage_a_teacher_labels_or_nobody() -> None:
    model, drawn = Planted(PROBABILITIES), batch()
    assert OnlineLabels(CONFIG, taught=True)(model, drawn, 0.29) is drawn
    assert OnlineLabels(CONFIG, taught=False)(model, drawn, 0.29) is None
    assert OnlineLabels(CONFIG, taught=True)(model, None, 0.9) is None
    assert model.seen == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 1.2}, "start: expected a share of the stage in [0, 1], 1 for never, found 1.2"),
        ({"score": 0.2}, "unsure, score: expected 0 < unsure <= score < 1, found 0.25, 0.2"),
        ({"score": 1.0}, "unsure, score: expected 0 < unsure <= score < 1, found 0.25, 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        OnlineConfig(**changes)
    assert str(refused.value) == message
