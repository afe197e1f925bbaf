"""The weight of L_pxl by its share of the gradient: measured, smoothed, saved, and the forms within the objective."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sskd_fast.losses.contrast_settings import ContrastConfig
from sskd_fast.losses.gradient_share import MEASURE_EVERY, GradientShare
from sskd_fast.losses.joint_batch import JointBatch
from sskd_fast.losses.mask_ownership import MaskOwnership, ownership_sums
from sskd_fast.losses.mask_prototypes import MaskPrototypes, prototype_sums
from sskd_fast.losses.matching import pad_targets
from sskd_fast.losses.objective import Objective, ObjectiveOutput
from sskd_fast.losses.pooling import pooled
from sskd_fast.losses.set_loss import SetLossConfig
from sskd_fast.losses.training_step import Part, TrainingStep
from sskd_fast.models.mask_transformer import MaskTransformer
from sskd_fast.models.segmenter import Predictions
from sskd_fast.train.schedule import TrainConfig
from tests.test_objective import TINY, batch, model

SETTINGS: dict[str, dict[str, Any]] = {
    "sampled": {},
    "boundary": {"scope": "same"},
    "prototypes": {},
    "ownership": {},
}


def terms(shared: Tensor, own: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """A rest with gradient (3, 4), and a term whose gradient is `scale` in the shared parameter."""
    return (shared * torch.tensor([3.0, 4.0])).sum(), scale * shared[0] + 100 * own.sum()


def test_the_term_gets_its_share_of_the_gradient_of_the_shared_parameters() -> None:
    shared, own = torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    share = GradientShare(0.2)
    frozen = torch.zeros(1)
    parts = share(*terms(shared, own, 2.0), [shared, own, frozen])
    assert share.weight == pytest.approx(0.2 * 5 / 2)
    assert float(parts["pxl_weight"]) == pytest.approx(0.5)
    assert float(parts["pxl_gradient_share"]) == pytest.approx(0.2)


def test_norms_are_measured_now_and_then_and_smoothed() -> None:
    shared, own = torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    share, parts = GradientShare(0.2), {}
    for step in range(MEASURE_EVERY + 1):
        parts = share(*terms(shared, own, 2.0 if step == 0 else 4.0), [shared, own])
        if 0 < step < MEASURE_EVERY:
            assert float(parts["pxl_weight"]) == pytest.approx(0.5)
            assert math.isnan(float(parts["pxl_gradient_share"]))
    weight = 0.2 * 5 / (0.7 * 2 + 0.3 * 4)
    assert share.weight == pytest.approx(weight)
    assert float(parts["pxl_gradient_share"]) == pytest.approx(weight * 4 / 5)


def test_a_term_without_gradient_has_no_weight() -> None:
    shared = torch.zeros(2, requires_grad=True)
    share = GradientShare(0.2)
    assert float(share(shared.sum(), shared.sum() * 0, [shared])["pxl_weight"]) == 0
    assert float(share.rest_norm) == pytest.approx(math.sqrt(2))
    apart = torch.zeros(2, requires_grad=True)
    assert float(share(shared.sum(), apart.sum(), [shared, apart])["pxl_weight"]) == 0


def test_zeros_of_a_compiled_graph_do_not_count_as_reached() -> None:
    shared, own = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    rest, term = terms(shared, own, 2.0)
    share = GradientShare(0.2)
    share(rest + 0 * own.sum(), term, [shared, own])
    assert share.weight == pytest.approx(0.2 * 5 / 2)


def test_a_gradient_that_is_nan_is_not_passed_over() -> None:
    shared, own = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    rest, term = terms(shared, own, 2.0)
    parts = GradientShare(0.2)(rest + own.sum(), term + math.nan * own.sum(), [shared, own])
    assert math.isnan(float(parts["pxl_gradient_share"]))


def test_the_state_dict_resumes_the_weight() -> None:
    shared, own = torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    whole, first = GradientShare(0.3), GradientShare(0.3)
    scales = [1.0 + step for step in range(2 * MEASURE_EVERY + 3)]
    weights = [float(whole(*terms(shared, own, s), [shared, own])["pxl_weight"]) for s in scales]
    cut = MEASURE_EVERY - 3
    halves = [float(first(*terms(shared, own, s), [shared, own])["pxl_weight"]) for s in scales[:cut]]
    second = GradientShare(0.3)
    second.load_state_dict(first.state_dict())
    halves += [float(second(*terms(shared, own, s), [shared, own])["pxl_weight"]) for s in scales[cut:]]
    assert halves == weights and len(set(weights)) == 3


@pytest.mark.parametrize("share", [0.0, -0.1, math.nan])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share: expected a share above 0"):
        GradientShare(share)
    if share != 0:
        with pytest.raises(ValueError, match="pxl_gradient_share: expected a share of the rest's gradient"):
            TrainConfig(pxl_gradient_share=share)
    with pytest.raises(ValueError, match=r"L_pxl is left out at lam_pxl=0; set lam_pxl=0\.1 as well"):
        TrainConfig(pxl_gradient_share=0.15)


def evaluate(form: str, share: float, *, seed: int = 3, net: MaskTransformer | None = None) -> ObjectiveOutput:
    contrast = ContrastConfig(form=form, num_negatives=8, max_anchors=10, **SETTINGS[form])  # type: ignore[arg-type]
    objective = Objective.of(SetLossConfig(), contrast, lam_semi=1.0, lam_pxl=0.1, pxl_gradient_share=share)
    assert (objective.gradient_share is None) == (share == 0)
    return objective(net or model(), touching(2, 1), touching(3, 2), progress=0.2, seed=seed)


def touching(images: int, seed: int) -> Any:
    """The batch of tests/test_objective.py with its two instances side by side."""
    made = batch(images, seed)
    for record in made.targets:
        record.masks[1] = False
        record.masks[1, 14:26, 4:20] = True
    return made


@pytest.mark.parametrize("form", list(SETTINGS))
def test_every_form_gets_its_share_and_trains_the_backbone(form: str) -> None:
    net = model()
    named = dict(net.named_parameters())

    def gradient(loss: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        return {name: g.flatten() for name, g in zip(named, found, strict=True) if g is not None}

    output, plain = evaluate(form, 0.15, net=net), evaluate(form, 0.0, net=net)
    weight = float(output.parts["pxl_weight"])
    assert float(output.parts["pxl_gradient_share"]) == pytest.approx(0.15, rel=1e-4)
    rest = plain.loss - 0.1 * plain.parts["pxl"]
    assert output.loss.item() == pytest.approx((rest + weight * plain.parts["pxl"]).item(), rel=1e-5)
    assert "pxl_weight" not in plain.parts
    ours, others = gradient(output.parts["pxl"]), gradient(rest)
    # The rest is J less the term, in which the projection's gradients cancel: the term alone reaches it.
    shared = {name for name in ours.keys() & others.keys() if not name.startswith("projection.")}
    norms = [torch.cat([part[name] for name in sorted(shared)]).norm() for part in (ours, others)]
    assert (weight * norms[0] / norms[1]).item() == pytest.approx(0.15, rel=1e-3)
    assert all(float(ours[name].norm()) > 0 for name in shared if name.startswith("backbone.stem"))


def step_of(net: MaskTransformer, label_pool: int = 1, weight: float = 1.0) -> TrainingStep:
    objective = Objective.of(SetLossConfig(), ContrastConfig(), lam_semi=1.0, lam_pxl=0.0)
    labeled, unlabeled = batch(2, 1), batch(3, 2)
    encoded = net.encode(torch.cat([labeled.weak, unlabeled.weak]))
    predictions = net.decode(encoded)
    parts = []
    for rows, data, true in ((slice(0, 2), labeled, True), (slice(2, None), unlabeled, False)):
        part = predictions.part(rows)
        pool = 1 if true else label_pool
        loss = objective.set_loss(part, data.targets, data.valid, label_pool=pool)
        parts.append(Part(data, part, true, loss, 1.0 if true else weight, pool))
    return TrainingStep(net, encoded, predictions, parts, 0.5, 3)


def test_pseudo_labels_count_by_their_weight_and_at_their_resolution() -> None:
    step, config = step_of(model(), label_pool=2, weight=0.25), ContrastConfig(form="ownership")
    first, second = step.parts
    sums = []
    for part, size in ((first, (16, 16)), (second, (8, 8))):
        assert part.set_loss is not None and part.set_loss.assigned is not None
        logits = pooled(part.predictions.mask_logits, part.label_pool)
        sums.append(
            ownership_sums(logits, pad_targets(part.batch.targets, part.batch.valid, size), part.set_loss.assigned)
        )
    expected = (sums[0][0] + 0.25 * sums[1][0]) / (sums[0][1] + 0.25 * sums[1][1])
    torch.testing.assert_close(MaskOwnership(config).of_step(step).loss, expected)

    features = [part.predictions.mask_features for part in step.parts]
    assert features[0] is not None and features[1] is not None
    coarse = nn.functional.avg_pool2d(features[1], 2)
    targets = [pad_targets(p.batch.targets, p.batch.valid, s) for p, s in ((first, (16, 16)), (second, (8, 8)))]
    sums = [prototype_sums(f, t, 0.3) for f, t in zip((features[0], coarse), targets, strict=True)]
    expected = (sums[0][0] + 0.25 * sums[1][0]) / (sums[0][1] + 0.25 * sums[1][1])
    torch.testing.assert_close(MaskPrototypes(ContrastConfig(form="prototypes")).of_step(step).loss, expected)


@pytest.mark.parametrize("form", list(SETTINGS))
def test_every_form_divides_by_the_sums_of_the_joint_batch(form: str) -> None:
    """Embeddings of another width than the map's, so that the two cannot be confused."""
    torch.manual_seed(0)
    step = step_of(MaskTransformer(dataclasses.replace(TINY, embedding=6), 3))
    for part in step.parts:
        for record in part.batch.targets:
            record.masks[1] = record.masks[0].roll(16, 1)
    config = ContrastConfig(form=form, num_negatives=8, max_anchors=10, **SETTINGS[form])  # type: ignore[arg-type]
    pixel = Objective.of(SetLossConfig(), config, lam_semi=1.0, lam_pxl=0.1).contrast
    assert pixel is not None
    counted: dict[str, Tensor] = {}
    pixel.of_step(dataclasses.replace(step, joint=JointBatch(counted=counted)))
    known = {name: 2 * value for name, value in counted.items()}
    alone, half = (pixel.of_step(s).loss for s in (step, dataclasses.replace(step, joint=JointBatch(known=known))))
    assert len(counted) == 1 and alone > 0
    torch.testing.assert_close(half, alone / 2)


def test_means_over_parts_are_weighted_and_may_be_of_little() -> None:
    step = step_of(model(), weight=0.5)
    mean = step.weighted_mean(lambda part: (torch.tensor(0.1 if part.true else 0.4), torch.tensor(0.2)))
    assert mean.item() == pytest.approx((0.1 + 0.5 * 0.4) / (0.2 + 0.5 * 0.2))


def test_cells_are_valid_if_more_than_half_of_them_is() -> None:
    step = step_of(model())
    step.parts[1].batch.valid[2, :, :2], step.parts[1].batch.valid[2, :, 4:5] = False, False
    valid = step.valid((8, 8))
    assert valid[:4].all() and not valid[4, :, 0].any() and valid[4, :, 1:].all()


def test_labels_become_cells_with_weights() -> None:
    step = step_of(model(), weight=0.5)
    ids, weights = step.instances((8, 8))
    assert ids.shape == weights.shape == (5, 8, 8) and set(ids.unique().tolist()) == {0, 1, 2}
    for images, part in ((slice(0, 2), 1.0), (slice(2, 5), 0.5)):
        for instance, score in ((0, 1.0), (1, 1.0), (2, 0.5)):
            assert set(weights[images][ids[images] == instance].tolist()) == {part * score}
    truth = step.true_instances((8, 8))
    assert torch.equal(truth[:2], ids[:2]) and (truth[2:] == -1).all()


def test_models_that_do_not_support_a_form_are_named() -> None:
    step = step_of(model())
    bare = [
        dataclasses.replace(p, predictions=dataclasses.replace(p.predictions, mask_features=None)) for p in step.parts
    ]
    with pytest.raises(
        ValueError, match="form='prototypes': a model of kind 'mask_transformer' shows no mask features"
    ):
        MaskPrototypes(ContrastConfig(form="prototypes")).of_step(dataclasses.replace(step, parts=bare))
    losses = [dataclasses.replace(p.set_loss, assigned=None) for p in step.parts if p.set_loss is not None]
    loose = [dataclasses.replace(p, set_loss=loss) for p, loss in zip(step.parts, losses, strict=True)]
    with pytest.raises(ValueError, match="form='ownership': a model of kind 'mask_transformer' matches no queries"):
        MaskOwnership(ContrastConfig(form="ownership")).of_step(dataclasses.replace(step, parts=loose))


def test_mask_features_make_the_mask_logits_and_travel_with_the_predictions() -> None:
    net = model()
    predictions: Predictions = net(batch(3, 1).weak)
    assert predictions.mask_features is not None and predictions.mask_features.shape == (3, 8, 16, 16)
    part = predictions.part(slice(1, 2)).mask_features
    assert part is not None and torch.equal(part, predictions.mask_features[1:2])


def test_assigned_queries_are_those_of_the_last_layer() -> None:
    step = step_of(model())
    loss = step.parts[0].set_loss
    assert loss is not None and loss.assigned is not None
    assert loss.assigned.shape == (2, 2) and ((loss.assigned >= 0) & (loss.assigned < 5)).all()
    assert (loss.assigned[:, 0] != loss.assigned[:, 1]).all()
