"""The models that benchmarks.other_models compares do the same work: sizes, mask stride, targets."""

from __future__ import annotations

import math

import pytest
import torch

SIDE = 64


def test_a_step_of_ours_and_of_mask2former_are_alike() -> None:
    pytest.importorskip("transformers", reason="needs the extra models")
    pytest.importorskip("timm", reason="needs the extra photos")
    from benchmarks import other_models

    torch.manual_seed(0)
    ours, theirs = other_models.our_model(), other_models.mask2former()
    assert 0.85 < other_models.parameters(ours) / other_models.parameters(theirs) < 1
    images = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        mine, other = ours.eval()(images), theirs.eval()(images)
    cells = SIDE // other_models.MASK_STRIDE
    assert mine.mask_logits.shape == other.masks_queries_logits.shape == (1, other_models.QUERIES, cells, cells)
    assert mine.class_logits.shape == other.class_queries_logits.shape
    assert len(mine.auxiliary) == len(theirs.model.transformer_module.decoder.layers) == other_models.LAYERS

    batch = other_models.random_batch(SIDE, images=1, instances=2)
    assert [target.masks.sum().item() for target in batch.targets] == [2 * (SIDE // 4) ** 2]
    for model, loss in ((ours, other_models.our_loss(ours, batch)), (theirs, other_models.their_loss(theirs, batch))):
        before = [p.detach().clone() for p in model.parameters()]
        other_models.train_step(model, loss)(0)
        assert math.isfinite(loss(1).item())
        assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_times_stand_beside_the_first_contender_on_the_page() -> None:
    pytest.importorskip("transformers", reason="needs the extra models")
    from benchmarks import other_models
    from benchmarks.marked import replaced

    found = {"ours": [10.0, 30.0, 20.0], "theirs": [50.0, 40.0, 60.0]}
    text = other_models.rows(["a step", "M"], {"ours": ["1.0"], "theirs": ["2.0"]}, found)
    assert text.splitlines()[0] == "| a step | M | ms | times the first |"
    assert "| theirs | 2.0 | 50 (40 to 60) | 2.50 |" in text
    assert text in replaced(other_models.PAGE.read_text(encoding="utf-8"), other_models.COMMAND, text)
