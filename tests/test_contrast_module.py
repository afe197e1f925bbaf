"""InstancePixelContrast: schedule, diagnostics, padding, anchor cap, memory bank, hard negatives, expected form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sskd_fast import ops
from sskd_fast.losses.anchors import Pixels, draw_anchors
from sskd_fast.losses.contrast import InstancePixelContrast, diagnose
from sskd_fast.losses.memory_bank import MemoryBank

CPU = torch.device("cpu")
B, K, C, D, SIDE = 4, 10, 3, 8, 16


def scene(seed: int = 0) -> dict[str, torch.Tensor]:
    """Images of three square instances with good predictions; the empty queries split the background at random."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(B, SIDE, SIDE, dtype=torch.int64)
    masks = torch.empty(B, K, SIDE, SIDE)
    classes = torch.zeros(B, K, C + 1)
    classes[..., -1] = 6
    for b in range(B):
        for i, (top, left) in enumerate([(1, 1), (9, 2), (5, 10)]):
            ids[b, top : top + 5, left : left + 4] = i + 1
            masks[b, i] = torch.where(ids[b] == i + 1, 6.0, -6.0)
            classes[b, i] = torch.eye(C + 1)[(b + i) % C] * 6
    coarse = 4 * torch.randn(B, K - 3, 4, 4, generator=generator) - 3
    masks[:, 3:] = F.interpolate(coarse, size=(SIDE, SIDE), mode="nearest")
    masks[:, 3:][(ids > 0)[:, None].expand(-1, K - 3, -1, -1)] = -6.0
    weak, strong = (torch.randn(B, D, SIDE, SIDE, generator=generator) for _ in range(2))
    return {
        "mask_logits": masks,
        "class_logits": classes,
        "embeddings_weak": weak,
        "embeddings_strong": strong,
        "instance_ids": ids,
    }


def run(settings: dict[str, Any], *, progress: float = 0.5, seed: int = 1, **changes: Any):
    contrast = InstancePixelContrast(**{"num_negatives": 32, "max_anchors": 0, **settings})
    return contrast(**{**scene(), **changes}, progress=progress, seed=seed)


def test_temperature_falls_linearly():
    contrast = InstancePixelContrast(num_negatives=200, max_anchors=0, temperature=(0.3, 0.07))
    assert [contrast.temperature(x) for x in (0, 0.5, 1)] == pytest.approx([0.3, 0.185, 0.07])
    with pytest.raises(ValueError, match=r"progress: expected a number in \[0, 1\], found 1.2"):
        contrast.temperature(1.2)


def test_loss_is_that_of_the_operators_at_the_scheduled_temperature():
    inputs = scene()
    output = run({}, progress=0.25)
    rows = [F.normalize(inputs[f"embeddings_{v}"].flatten(2).transpose(1, 2).flatten(0, 1), dim=-1) for v in VIEWS]
    scores = ops.fuse_scores(inputs["mask_logits"], inputs["class_logits"], cues="object").flatten(0, 1)
    negatives = ops.sample_negatives(scores, scores, 32, seed=1)
    expected = ops.pixel_contrast(rows[0], rows[1], rows[0], negatives, 0.3 + 0.25 * (0.07 - 0.3))
    torch.testing.assert_close(output.loss, expected)


VIEWS = ("weak", "strong")


def test_gradient_reaches_the_weak_embeddings_alone():
    inputs = {name: value.requires_grad_() if value.is_floating_point() else value for name, value in scene().items()}
    InstancePixelContrast(max_anchors=0, num_negatives=16)(**inputs, progress=0.0, seed=0).loss.backward()
    assert float(inputs["embeddings_weak"].grad.abs().max()) > 0
    assert all(inputs[name].grad is None for name in ("mask_logits", "class_logits", "embeddings_strong"))


def test_a_step_along_the_gradient_lowers_the_loss_and_widens_the_margin():
    inputs = scene()
    weak = inputs["embeddings_weak"].requires_grad_()
    contrast = InstancePixelContrast(max_anchors=0, num_negatives=32)
    before = contrast(**inputs, progress=0.0, seed=2)
    before.loss.backward()
    moved = {**inputs, "embeddings_weak": (weak - 300 * weak.grad).detach()}
    after = contrast(**moved, progress=0.0, seed=2)
    assert float(after.loss) < before.loss.item() - 0.1
    assert float(after.diagnostics["margin"]) > float(before.diagnostics["margin"]) + 0.1


def test_object_cue_finds_more_true_negatives_than_the_fused_cue():
    """p = 1 - fnr must exceed 0.5 for a step to widen the margin between instances."""
    p = {cue: run({"cues": cue}).diagnostics for cue in ("object", "fused", "uniform")}
    assert 1 - float(p["object"]["fnr_background"]) > 0.7
    assert float(p["fused"]["fnr_background"]) - float(p["object"]["fnr_background"]) > 0.2
    assert float(p["uniform"]["fnr_background"]) - float(p["fused"]["fnr_background"]) > 0.2
    assert 1 - float(p["object"]["fnr"]) > 0.75
    for cue in p:
        assert 1 - float(p[cue]["fnr_foreground"]) > 0.9
    share = 1 - 3 * 20 / SIDE**2
    assert float(p["uniform"]["fnr_background"]) == pytest.approx(share, abs=0.02)


def test_objectness_draws_more_negatives_from_other_instances():
    plain = float(run({}).diagnostics["other_instance_share"])
    preferred = float(run({"objectness": True}).diagnostics["other_instance_share"])
    assert preferred > 1.5 * plain


def test_false_negatives_are_counted_by_instance_and_image():
    label = torch.tensor([0, 0, (1 << 32) + 1, (2 << 32) + 1, -1])
    pixels = Pixels(torch.eye(5), None, None, torch.tensor([0, 1, 0, 1, 1]), label)
    negatives = torch.tensor([[1, 2, 4], [0, 2, 3], [2, 3, -1], [2, 0, 4], [0, 1, 2]])
    found = diagnose(pixels, pixels.embedding, pixels, negatives)
    assert float(found["fnr"]) == pytest.approx((1 + 1 + 1 + 0) / (2 + 3 + 2 + 2))
    assert float(found["fnr_background"]) == pytest.approx(2 / 5)
    assert float(found["fnr_foreground"]) == pytest.approx(1 / 4)
    assert float(found["other_instance_share"]) == pytest.approx((1 + 1) / 4)
    assert float(found["margin"]) == pytest.approx(1 - 1 / 14)


def test_unknown_instances_give_nan_and_are_left_out():
    ids = scene()["instance_ids"]
    assert all(math.isnan(run({}, instance_ids=x).diagnostics["fnr"]) for x in (None, torch.full_like(ids, -1)))
    ids[2:] = -1
    assert not math.isnan(run({}, instance_ids=ids).diagnostics["fnr_foreground"])


def test_padding_is_neither_anchor_nor_candidate():
    """Whatever stands in the padding, the loss and its gradient are the same, and none reaches the padding."""
    valid = torch.ones(B, SIDE, SIDE, dtype=torch.bool)
    valid[:, :, 11:] = False
    valid[1] = False
    inputs, losses, grads = scene(), [], []
    for noise in (0.0, 5.0):
        changed = {name: value.clone() for name, value in inputs.items()}
        for name in ("embeddings_weak", "embeddings_strong", "mask_logits"):
            changed[name] += noise * ~valid[:, None]
        weak = changed["embeddings_weak"].requires_grad_()
        for settings in ({"max_anchors": 20}, {"form": "expected"}, {"hard_share": 0.5}):
            contrast = InstancePixelContrast(**{"num_negatives": 16, "max_anchors": 0, **settings})
            loss = contrast(**changed, progress=0.5, seed=3, valid=valid).loss
            losses.append(loss.item())
            grads.append(torch.autograd.grad(loss, weak)[0])
    assert losses[:3] == losses[3:]
    assert all(torch.equal(a, b) for a, b in zip(grads[:3], grads[3:], strict=True))
    assert all(float((g * ~valid[:, None]).abs().max()) == 0 for g in grads)


def test_a_batch_without_a_valid_pixel_has_no_loss():
    weak = scene()["embeddings_weak"].requires_grad_()
    for form in ("sampled", "expected"):
        output = run({"form": form}, embeddings_weak=weak, valid=torch.zeros(B, SIDE, SIDE, dtype=torch.bool))
        assert output.loss.item() == 0
        assert float(torch.autograd.grad(output.loss, weak)[0].abs().max()) == 0


def test_anchors_are_capped_per_image_distinct_and_uniform():
    valid = torch.ones(3, 4, 5, dtype=torch.bool)
    valid[0, :, 1:] = False
    counts = torch.zeros(60)
    for seed in range(400):
        index = draw_anchors((3, 20), valid, 6, seed, CPU)
        assert torch.bincount(index // 20, minlength=3).tolist() == [4, 6, 6]
        assert len(index.unique()) == len(index)
        counts[index] += 1
    assert bool((counts[:20].view(4, 5)[:, 0] == 400).all()) and float(counts[:20].sum()) == 1600
    assert float((counts[20:] - 120).abs().max()) < 5 * (400 * 0.3 * 0.7) ** 0.5
    assert torch.equal(draw_anchors((3, 20), valid, 6, 5, CPU), draw_anchors((3, 20), valid, 6, 5, CPU))
    assert torch.equal(draw_anchors((3, 20), None, 0, 5, CPU), torch.arange(60))


def test_the_loss_is_a_pure_function_of_the_seed():
    settings = {"max_anchors": 30, "hard_share": 0.25}
    assert torch.equal(run(settings, seed=4).loss, run(settings, seed=4).loss)
    assert not torch.equal(run(settings, seed=4).loss, run(settings, seed=5).loss)


def test_hard_negatives_are_more_similar():
    margins = [float(run({"hard_share": share}).diagnostics["margin"]) for share in (0.0, 0.5, 1.0)]
    assert margins[0] > margins[1] + 0.05 > margins[2] + 0.1


def test_the_margin_lets_dissimilar_negatives_go():
    free = run({"margin": 2.0})
    good = math.e ** (1 / 0.185)
    assert float(run({"margin": 2.0}, embeddings_strong=scene()["embeddings_weak"]).loss) == pytest.approx(
        -math.log(good / (good + 32)), rel=1e-4
    )
    assert float(free.loss) < float(run({}).loss)


def test_expected_form_is_the_mean_of_the_sampled_one_up_to_jensen():
    """With many negatives the log of the sum is close to the log of its expectation."""
    cosine = {name: value for name, value in scene().items() if name != "instance_ids"}
    contrast = {
        form: InstancePixelContrast(max_anchors=0, num_negatives=200, form=form) for form in ("sampled", "expected")
    }
    expected = float(contrast["expected"](**cosine, progress=0.0, seed=0).loss)
    sampled = torch.tensor([float(contrast["sampled"](**cosine, progress=0.0, seed=s).loss) for s in range(5)])
    assert float(sampled.mean()) == pytest.approx(expected, abs=0.02)


def test_expected_form_reports_the_same_diagnostics():
    sampled, expected = (run({"form": form}).diagnostics for form in ("sampled", "expected"))
    assert sampled.keys() == expected.keys()
    assert float(expected["fnr"]) == pytest.approx(float(sampled["fnr"]), abs=0.05)


@pytest.mark.parametrize("scope", ["same", "other"])
def test_scope_decides_which_images_the_gradient_touches(scope):
    inputs = scene()
    weak = inputs["embeddings_weak"].requires_grad_()
    valid = torch.ones(B, SIDE, SIDE, dtype=torch.bool)
    valid[2:] = False
    contrast = InstancePixelContrast(max_anchors=0, num_negatives=16, scope=scope, temperature=(0.3, 0.3))
    both = contrast(**inputs, progress=0.0, seed=3, valid=valid)
    valid = valid.clone()
    valid[1] = False
    alone = contrast(**inputs, progress=0.0, seed=3, valid=valid)
    if scope == "other":
        assert alone.loss.item() == 0 and both.loss.item() > 1
        return
    assert alone.loss.item() > 1
    grad = torch.autograd.grad(alone.loss, weak)[0]
    assert float(grad[0].abs().max()) > 0 and float(grad[1:].abs().max()) == 0


def test_uniform_cue_never_draws_the_anchor_itself():
    """One pixel an image, so that the only candidate of scope "same" is the anchor."""
    inputs = {name: value[..., :1, :1] for name, value in scene().items() if value.dim() > 3}
    inputs["class_logits"] = scene()["class_logits"]
    contrast = InstancePixelContrast(max_anchors=0, num_negatives=3, cues="uniform", scope="same")
    assert contrast(**inputs, progress=0.5, seed=0).loss.item() == 0


def test_memory_bank_adds_candidates_of_earlier_steps_and_resumes_from_its_state():
    settings = {"num_negatives": 16, "memory_bank": 64, "scope": "other"}
    contrast = InstancePixelContrast(**settings)
    single = {name: value[:1] for name, value in scene().items()}
    first = contrast(**single, progress=0.5, seed=0)
    assert first.loss.item() == 0
    second = contrast(**single, progress=0.5, seed=1)
    assert second.loss.item() > 1
    for step in range(2, 8):
        contrast(**single, progress=0.5, seed=step)
    assert len(contrast.bank.pixels.label) == 64
    resumed = InstancePixelContrast(**settings)
    resumed.load_state_dict(contrast.state_dict())
    resumed.eval()
    contrast.eval()
    assert torch.equal(*(c(**single, progress=0.5, seed=9).loss for c in (contrast, resumed)))
    assert torch.equal(contrast.bank.pixels.image, torch.full((64,), -1))


def test_memory_bank_keeps_the_newest_pixels_and_drops_those_of_another_width():
    bank = MemoryBank(8)

    def pixels(value: float, width: int) -> Pixels:
        rows = torch.full((5, width), value)
        return Pixels(rows, rows, None, torch.zeros(5, dtype=torch.int64), torch.full((5,), 3))

    for step in range(6):
        bank.add(pixels(float(step), 2), torch.arange(5), step)
    assert bank.pixels.embedding[:, 0].tolist() == [5, 5, 4, 4, 3, 3, 2, 2]
    assert len(bank.extend(pixels(9.0, 2)).label) == 13
    assert len(bank.extend(pixels(9.0, 3)).label) == 5
    assert int(bank.pixels.label[0]) == 3 + (1 << 62)


def test_half_precision_embeddings_and_autocast():
    exact = run({}).loss
    inputs = scene()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = run({}, **{name: inputs[name].bfloat16() for name in ("embeddings_weak", "embeddings_strong")}).loss
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, atol=1e-2, rtol=0)


def test_mask_logits_of_another_size_are_resized():
    inputs = scene()
    large = F.interpolate(inputs["mask_logits"], scale_factor=2, mode="bilinear", align_corners=False)
    assert run({}, mask_logits=large).loss.isfinite()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cues": "all"}, "cues='all' is unknown; expected one of fused, object, mask, class, uniform"),
        ({"scope": "near"}, "scope='near' is unknown"),
        ({"form": "dense"}, "form='dense' is unknown"),
        ({"num_negatives": 0}, "num_negatives: expected at least 1"),
        ({"temperature": (0.3, 0.0)}, r"temperature: expected two > 0, found \(0.3, 0.0\)"),
        ({"hard_share": 1.5}, r"hard_share: expected a share in \[0, 1\], found 1.5"),
        ({"max_anchors": -1}, "max_anchors: expected a number, 0 for every pixel, found -1"),
        ({"memory_bank": -1}, "memory_bank: expected a number of pixels"),
        ({"memory_bank": 4, "scope": "same"}, "never in scope 'same'"),
        ({"all_ranks": True, "scope": "same"}, "all_ranks: no image of another rank is in scope 'same'"),
        ({"form": "expected", "cues": "uniform"}, "form='expected' needs cues"),
        ({"form": "expected", "margin": 0.1}, "form='expected' has no margin"),
        ({"form": "expected", "hard_share": 0.1}, "form='expected' has no draws"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        InstancePixelContrast(**settings)


def test_candidates_may_come_from_other_ranks_and_earlier_steps():
    for scope in ("all", "other"):
        config = InstancePixelContrast(all_ranks=True, memory_bank=8, scope=scope, objectness=True).config
        assert (config.all_ranks, config.memory_bank, config.scope) == (True, 8, scope)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"embeddings_strong": torch.rand(B, D, 2, 2)}, ValueError, r"embeddings_strong: found shape \(4, 8, 2, 2\)"),
        ({"embeddings_weak": torch.rand(B, D, 2)}, ValueError, r"embeddings_weak: found shape \(4, 8, 2\), expected"),
        ({"valid": torch.ones(B, 2, 2).bool()}, ValueError, r"valid: found shape \(4, 2, 2\), expected \(4, 16, 16\)"),
        ({"instance_ids": torch.zeros(B, 2, 2).long()}, ValueError, r"instance_ids: found shape \(4, 2, 2\), expected"),
        ({"valid": torch.ones(B, SIDE, SIDE)}, TypeError, "valid: expected bool, found torch.float32"),
        ({"mask_logits": torch.rand(2, K, 4, 4)}, ValueError, "mask_logits: found 2 images, expected 4"),
        ({"class_logits": torch.rand(B, 3, 4)}, ValueError, r"class_logits: found shape \(4, 3, 4\)"),
    ],
)
def test_wrong_inputs_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        run({}, **changes)
