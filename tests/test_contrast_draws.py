"""Draws of L_pxl: hard negatives, anchors and negatives in parts of the joint batch, the memory bank, diagnostics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sskd_fast import ops
from sskd_fast.losses.anchors import Pixels, draw_anchors, pixel_rows
from sskd_fast.losses.contrast import InstancePixelContrast, diagnose
from sskd_fast.losses.joint_batch import JointBatch
from sskd_fast.losses.memory_bank import MemoryBank
from tests.test_contrast_module import CPU, SIDE, B, run, scene


def unit_rows(view: str) -> Tensor:
    return F.normalize(scene()[f"embeddings_{view}"].flatten(2).transpose(1, 2).flatten(0, 1), dim=-1)


def score_rows() -> Tensor:
    return ops.fuse_scores(scene()["mask_logits"], scene()["class_logits"], cues="object").flatten(0, 1)


def test_hard_negatives_are_the_most_similar_of_four_times_as_many_draws() -> None:
    weak, strong, scores = unit_rows("weak"), unit_rows("strong"), score_rows()
    drawn = ops.sample_negatives(scores, scores, 5 + 4 * 3, seed=3)
    hard = ops.hardest_negatives(weak, weak, drawn[:, 5:].contiguous(), 3)
    expected = ops.pixel_contrast(weak, strong, weak, torch.cat([drawn[:, :5], hard], 1), 0.185)
    torch.testing.assert_close(run({"num_negatives": 8, "hard_share": 0.4}, seed=3).loss, expected)


def test_candidates_weigh_by_objectness_and_never_nothing() -> None:
    inputs = scene()
    predicted = inputs["mask_logits"], inputs["class_logits"]
    pixels = pixel_rows(*predicted, inputs["embeddings_weak"], None, cues="uniform", weighted=True, backend="auto")
    assert pixels.weight is not None and pixels.scores is None and pixels.label.eq(-1).all()
    torch.testing.assert_close(pixels.weight, 0.03 + 0.97 * ops.objectness(*predicted).flatten())
    assert pixels.image.tolist() == [image for image in range(B) for _ in range(SIDE**2)]


def test_images_draw_the_same_anchors_in_every_part_of_the_joint_batch() -> None:
    valid = torch.rand(4, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.7
    whole = draw_anchors((4, 20), valid, 6, 9, CPU)
    part = draw_anchors((2, 20), valid[2:], 6, 9, CPU, numbers=[2, 3])
    assert torch.equal(part + 40, whole[whole >= 40])
    assert not torch.equal(draw_anchors((2, 20), valid[2:], 6, 9, CPU), part)
    assert torch.equal(draw_anchors((4, 20), valid, 0, 9, CPU), valid.flatten().nonzero()[:, 0])


def test_parts_of_the_joint_batch_draw_other_negatives_and_share_its_mean() -> None:
    weak, strong, scores = unit_rows("weak"), unit_rows("strong"), score_rows()
    joint = JointBatch(known={"anchors": torch.tensor(4.0 * len(weak))})
    for numbers, seed in (([0, 1, 2, 3], 1), ([4, 5, 6, 7], 1 + (4 << 44))):
        negatives = ops.sample_negatives(scores, scores, 32, seed=seed)
        expected = ops.pixel_contrast(weak, strong, weak, negatives, 0.185)
        torch.testing.assert_close(run({}, numbers=numbers).loss, expected)
        torch.testing.assert_close(run({}, numbers=numbers, joint=joint).loss, expected / 4)


def test_without_scores_an_anchor_is_no_negative_of_itself_beside_padding() -> None:
    """Two valid pixels, so that each has the other as its one negative, whatever their places."""
    inputs = {name: value[:1] for name, value in scene().items()}
    valid = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    valid[0, 2, 5] = valid[0, 9, 3] = True
    contrast = InstancePixelContrast(max_anchors=0, num_negatives=5, cues="uniform")
    found = contrast(**inputs, progress=0.5, seed=0, valid=valid).loss
    weak, strong = (unit_rows(view)[[2 * SIDE + 5, 9 * SIDE + 3]] for view in ("weak", "strong"))
    near, far = (weak * strong).sum(1) / 0.185, (weak * weak.flip(0)).sum(1) / 0.185
    torch.testing.assert_close(found, F.softplus(far - near).mean())


def rows(values: Tensor) -> Pixels:
    count = len(values)
    return Pixels(values, values, None, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def test_the_bank_keeps_a_quarter_of_its_size_a_step_from_learning_passes_alone() -> None:
    contrast = InstancePixelContrast(num_negatives=4, memory_bank=64)
    assert contrast.bank is not None
    contrast(**scene(), progress=0.5, seed=0, joint=JointBatch(learns=False))
    contrast.eval()(**scene(), progress=0.5, seed=0)
    assert contrast.bank.pixels is None
    contrast.load_state_dict(contrast.state_dict())
    assert contrast.bank.pixels is None, "an empty bank stays empty when it is resumed"
    contrast.train()(**scene(), progress=0.5, seed=0, joint=JointBatch(parts=4))
    assert len(contrast.bank.pixels.label) == 4  # a sixteenth for each of four parts
    contrast(**scene(), progress=0.5, seed=1)
    assert len(contrast.bank.pixels.label) == 4 + 16
    known = {tuple(row) for row in unit_rows("weak").tolist()}
    assert {tuple(row) for row in contrast.bank.pixels.embedding.tolist()} <= known


def test_kept_pixels_come_with_their_scores_and_weights() -> None:
    first, second = (rows(torch.full((count, 2), value)) for count, value in ((2, 1.0), (3, 2.0)))
    full = [pixels._replace(scores=pixels.embedding, weight=pixels.embedding[:, 0]) for pixels in (first, second)]
    joined = full[0].join(full[1])
    assert joined.weight is not None and joined.weight.tolist() == [1, 1, 2, 2, 2]
    assert joined.scores is not None and joined.scores[:, 1].tolist() == [1, 1, 2, 2, 2]
    assert joined.label.tolist() == [0, 1, 0, 1, 2] and joined.widths() == (2, 2, True)
    bare = first._replace(scores=None).join(second)
    assert bare.scores is bare.weight is None and len(bare.image) == 5 and bare.widths() == (2, 0, False)


def test_a_bank_takes_its_pixels_from_the_anchors_and_at_least_one() -> None:
    values, anchors = torch.arange(40.0)[:, None], torch.tensor([3, 8, 21, 34])
    bank = MemoryBank(3)
    bank.add(rows(values), anchors, 0)
    assert bank.pixels is not None and len(bank.pixels.label) == 1
    kept = set()
    for seed in range(20):
        bank = MemoryBank(8)
        bank.add(rows(values), anchors, seed)
        assert bank.pixels is not None and len(bank.pixels.label) == 2
        kept |= set(bank.pixels.embedding[:, 0].tolist())
    assert kept == {3.0, 8.0, 21.0, 34.0}


def test_the_margin_is_measured_on_at_most_128_anchors_and_the_rest_on_all() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = F.normalize(torch.randn(300, 4, generator=generator), dim=1)
    label = torch.randint(0, 3, (300,), generator=generator)
    pixels = Pixels(embedding, None, None, torch.zeros(300, dtype=torch.int64), label)
    positives = F.normalize(torch.randn(300, 4, generator=generator), dim=1)
    negatives = torch.randint(0, 300, (300, 5), generator=generator)
    found = diagnose(pixels, positives, pixels, negatives)
    third = slice(None, None, 3)
    pushed = (embedding[negatives[third]] * embedding[third, None]).sum(-1).mean()
    assert found["margin"].item() == pytest.approx(float((embedding * positives)[third].sum(-1).mean() - pushed))
    assert found["fnr"].item() == pytest.approx(float((label[negatives] == label[:, None]).float().mean()))


def test_the_expected_form_is_watched_by_draws_of_every_eighth_anchor() -> None:
    """1024 anchors and 128 watched ones; at most 32 negatives each."""
    inputs, output = scene(), run({"form": "expected", "num_negatives": 40}, seed=6)
    pixels = pixel_rows(
        inputs["mask_logits"], inputs["class_logits"], inputs["embeddings_weak"], inputs["instance_ids"],
        cues="object", weighted=False, backend="auto",
    )  # fmt: skip
    watched = pixels.select(torch.arange(0, B * SIDE**2, 8))
    assert watched.scores is not None and pixels.scores is not None
    negatives = ops.sample_negatives(watched.scores, pixels.scores, 32, seed=6)
    expected = diagnose(watched, unit_rows("strong")[::8], pixels, negatives)
    assert {name: value.item() for name, value in output.diagnostics.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-5, nan_ok=True
    )
    assert 0 < output.diagnostics["fnr"] < 1, "known, though no anchor of these lies on an instance"
