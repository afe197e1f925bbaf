"""J = L_sup + lam_semi L_semi + lam_pxl L_pxl, and what it hands on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sskd_fast.data.instances import Batch, Instances
from sskd_fast.losses.contrast import InstancePixelContrast
from sskd_fast.losses.contrast_settings import ContrastConfig, ContrastOutput
from sskd_fast.losses.gradient_share import GradientShare
from sskd_fast.losses.joint_batch import WHOLE, JointBatch
from sskd_fast.losses.objective import Objective, ObjectiveOutput
from sskd_fast.losses.set_loss import SetLoss, SetLossConfig, SetLossOutput
from sskd_fast.losses.training_step import instance_map
from sskd_fast.models.mask_transformer import MaskTransformer
from sskd_fast.models.segmenter import Predictions
from sskd_fast.models.settings import ModelConfig

TINY = ModelConfig(
    channels=(8, 12, 16), blocks=(1, 1, 1), width=16, mask_width=8, layers=1, heads=2, feedforward=24, num_queries=5,
    embedding=8,
)  # fmt: skip


def model() -> MaskTransformer:
    torch.manual_seed(0)
    return MaskTransformer(TINY, 3)


def batch(images: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for _ in range(images):
        masks = torch.zeros((2, 32, 32), dtype=torch.bool)
        masks[0, 2:14, 4:20], masks[1, 18:30, 10:22] = True, True
        targets.append(
            Instances(masks, torch.tensor([0, 2]), torch.tensor([1.0, 0.5]), torch.zeros(2, dtype=torch.bool))
        )
    weak = torch.rand((images, 3, 32, 32), generator=generator)
    strong = (weak + 0.1 * torch.rand(weak.shape, generator=generator)).clamp(0, 1)
    return Batch(weak, strong, torch.ones((images, 32, 32), dtype=torch.bool), targets, list(range(images)))


def contrast(**changes: object) -> InstancePixelContrast:
    return InstancePixelContrast(**{"num_negatives": 8, "max_anchors": 10, **changes})  # type: ignore[arg-type]


def evaluate(
    lam_semi: float,
    lam_pxl: float,
    unlabeled: Batch | None,
    *,
    net: MaskTransformer | None = None,
    progress: float = 0.5,
) -> ObjectiveOutput:
    objective = Objective(SetLoss(SetLossConfig()), contrast(), lam_semi, lam_pxl)
    return objective(net or model(), batch(2, 1), unlabeled, progress=progress, seed=5)


@pytest.mark.parametrize(
    ("fade", "weights"), [(0.0, [2.0, 2.0, 2.0, 2.0]), (0.4, [2.0, 2.0, 1.0, 0.1]), (1.0, [2.0, 1.0, 0.4, 0.04])]
)
def test_pseudo_labels_fade_out_at_the_end_of_a_stage(fade: float, weights: list[float]) -> None:
    objective = Objective(SetLoss(SetLossConfig()), None, 2.0, 0.0, semi_fade=fade)
    assert [objective.semi_weight(p) for p in (0.0, 0.5, 0.8, 0.98)] == pytest.approx(weights)
    net, labeled, unlabeled = model(), batch(2, 1), batch(1, 2)
    output = objective(net, labeled, unlabeled, progress=0.8, seed=5)
    expected = set_loss_value(output.parts, "sup") + weights[2] * set_loss_value(output.parts, "semi")
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_masks_of_pseudo_labels_may_count_for_less_than_those_of_labels() -> None:
    objective = Objective(SetLoss(SetLossConfig()), None, 0.5, 0.0, semi_masks=0.2)
    output = objective(model(), batch(2, 1), batch(1, 2), progress=0.0, seed=5)
    parts, c = output.parts, SetLossConfig()
    masks = c.mask_weight * parts["semi_mask"].item() + c.dice_weight * parts["semi_dice"].item()
    semi = set_loss_value(parts, "semi") - 0.8 * masks
    assert masks > 0.1
    assert output.loss.item() == pytest.approx(set_loss_value(parts, "sup") + 0.5 * semi, rel=1e-5)


def set_loss_value(parts: dict[str, Tensor], prefix: str) -> float:
    c = SetLossConfig()
    weights = {"class": c.class_weight, "mask": c.mask_weight, "dice": c.dice_weight, "heat": c.heat_weight}
    return sum(w * parts[f"{prefix}_{name}"].item() for name, w in weights.items())


def test_objective_is_the_weighted_sum_of_the_parts_it_reports() -> None:
    output = evaluate(0.7, 0.3, batch(3, 2))
    sup, semi = set_loss_value(output.parts, "sup"), set_loss_value(output.parts, "semi")
    pixel = output.parts["pxl"].item()
    assert min(sup, semi, pixel) > 0
    assert output.loss.item() == pytest.approx(sup + 0.7 * semi + 0.3 * pixel, rel=1e-5)


def test_each_set_loss_sees_its_own_images() -> None:
    labeled, unlabeled = batch(2, 1), batch(3, 2)
    output = evaluate(1.0, 0.0, unlabeled)
    loss, net = SetLoss(SetLossConfig()), model()
    sup, semi = (loss(net(b.weak), b.targets, b.valid).loss.item() for b in (labeled, unlabeled))
    assert set_loss_value(output.parts, "sup") == pytest.approx(sup, rel=1e-3)
    assert set_loss_value(output.parts, "semi") == pytest.approx(semi, rel=1e-3)


class CountingContrast(InstancePixelContrast):
    """Records what it is called with."""

    def __init__(self) -> None:
        super().__init__(num_negatives=8)
        self.calls: list[dict[str, object]] = []

    def forward(self, *args: object, **named: object) -> ContrastOutput:
        self.calls.append({"weak": args[2], "strong": args[3], **named})
        return super().forward(*args, **named)  # type: ignore[arg-type]


class CountingLoss(SetLoss):
    """Records the images and the pooling of its calls."""

    def __init__(self) -> None:
        super().__init__(SetLossConfig())
        self.calls: list[tuple[int, int]] = []

    def __call__(
        self,
        predictions: Predictions,
        instances: list[Instances],
        valid: Tensor,
        *,
        label_pool: int = 1,
        semi_masks: float = 1.0,
        joint: JointBatch = WHOLE,
        seed: int = 0,
        first: int = 0,
    ) -> SetLossOutput:
        self.calls.append((len(instances), label_pool))
        return super().__call__(
            predictions,
            instances,
            valid,
            label_pool=label_pool,
            semi_masks=semi_masks,
            joint=joint,
            seed=seed,
            first=first,
        )


@pytest.mark.parametrize(
    ("lam_semi", "lam_pxl", "unlabeled", "set_losses", "contrasts", "passes"),
    [(1.0, 0.1, True, 2, 1, 2), (0.0, 0.1, True, 1, 1, 2), (1.0, 0.0, True, 2, 0, 1), (0.0, 0.0, False, 1, 0, 1),
     (1.0, 0.1, False, 1, 1, 2)],
)  # fmt: skip
def test_terms_of_weight_zero_are_not_computed(
    lam_semi: float, lam_pxl: float, unlabeled: bool, set_losses: int, contrasts: int, passes: int
) -> None:
    net, loss, pixel = model(), CountingLoss(), CountingContrast()
    encodings: list[int] = []
    net.backbone.register_forward_hook(lambda *_: encodings.append(1))
    objective = Objective(loss, pixel, lam_semi, lam_pxl)
    output = objective(net, batch(2, 1), batch(3, 2) if unlabeled else None, progress=0.0, seed=1)
    assert (len(loss.calls), len(pixel.calls), len(encodings)) == (set_losses, contrasts, passes)
    assert any(name.startswith("semi_") for name in output.parts) == (set_losses == 2)
    assert ("pxl" in output.parts) == (contrasts == 1)


def test_only_pseudo_labels_are_compared_on_the_coarser_map_they_were_drawn_on() -> None:
    loss = CountingLoss()
    Objective(loss, None, 1.0, 0.0, label_pool=2)(model(), batch(2, 1), batch(3, 2), progress=0.0, seed=1)
    assert loss.calls == [(2, 1), (3, 2)]


def test_contrast_gets_both_sets_with_known_ids() -> None:
    net, pixel = model(), CountingContrast()
    labeled, unlabeled = batch(2, 1), batch(3, 2)
    labeled.valid[0, :, 16:] = False
    output = Objective(SetLoss(SetLossConfig()), pixel, 1.0, 0.1)(net, labeled, unlabeled, progress=0.25, seed=9)
    call = pixel.calls[0]
    assert (call["progress"], call["seed"]) == (0.25, 9)
    weak, strong, ids, valid = (call[n] for n in ("weak", "strong", "instance_ids", "valid"))
    assert (
        isinstance(weak, Tensor)
        and isinstance(strong, Tensor)
        and isinstance(ids, Tensor)
        and isinstance(valid, Tensor)
    )
    assert weak.shape == strong.shape == (5, 8, 8, 8)
    assert weak.requires_grad and not strong.requires_grad
    assert not torch.equal(weak, strong)
    assert ids.shape == (5, 8, 8) and set(ids[:2].unique().tolist()) == {0, 1, 2} and bool((ids[2:] == -1).all())
    assert not valid[0, :, 4:].any() and bool(valid[0, :, :4].all()) and bool(valid[1:].all())
    for name in ("margin", "fnr", "fnr_foreground", "fnr_background"):
        assert bool(torch.isfinite(output.parts[name])), name


def test_images_keep_their_numbers_in_the_joint_batch() -> None:
    """Two of four labelled images and one of three unlabelled ones, which follow them."""
    pixel = CountingContrast()
    objective = Objective(SetLoss(SetLossConfig()), pixel, 1.0, 0.1)
    objective(model(), batch(4, 1).part(slice(2, 4)), batch(3, 2).part(slice(1, 2)), progress=0.0, seed=1)
    objective(model(), batch(4, 1).part(slice(1, 3)), None, progress=0.0, seed=1)
    assert [call["numbers"] for call in pixel.calls] == [[2, 3, 5], [1, 2]]


def test_every_term_is_divided_by_sums_of_the_joint_batch_of_its_own_name() -> None:
    counted: dict[str, Tensor] = {}
    objective = Objective(SetLoss(SetLossConfig()), contrast(), 0.7, 0.3)

    def loss(joint: JointBatch) -> float:
        return objective(model(), batch(3, 1), batch(4, 2), progress=0.5, seed=5, joint=joint).loss.item()

    loss(JointBatch(counted=counted))
    assert {name.split()[0] for name in counted} == {"sup", "semi", "pxl"}
    doubled = JointBatch(known={name: 2 * value for name, value in counted.items()})
    assert loss(doubled) == pytest.approx(loss(WHOLE) / 2, rel=1e-5)


def test_pseudo_labels_keep_their_weight_if_no_fading_is_asked_for() -> None:
    objective = Objective.of(SetLossConfig(), ContrastConfig(), lam_semi=0.8, lam_pxl=0.0)
    assert [objective.semi_weight(progress) for progress in (0.0, 0.5, 1.0)] == [0.8, 0.8, 0.8]
    assert objective.contrast is None and (objective.label_pool, objective.semi_masks) == (1, 1.0)


def test_means_over_images_are_told_from_terms() -> None:
    diagnostics = {"margin", "fnr", "fnr_foreground", "fnr_background", "other_instance_share"}
    assert evaluate(1.0, 0.1, batch(2, 2)).means == {"sup_matched", "semi_matched"} | diagnostics
    assert evaluate(0.0, 0.0, batch(2, 2)).means == {"sup_matched"}
    share = Objective(SetLoss(SetLossConfig()), contrast(), 1.0, 0.1, gradient_share=GradientShare(0.1))
    output = share(model(), batch(2, 1), None, progress=0.0, seed=1)
    assert output.means == {"sup_matched", "pxl_weight", "pxl_gradient_share"} | diagnostics
    assert output.means < output.parts.keys()


def test_gradients_add_up() -> None:
    """The gradient of J is that of the terms, weighted; the strong view gives none."""

    def gradient(lam_semi: float, lam_pxl: float) -> Tensor:
        net = model()
        evaluate(lam_semi, lam_pxl, batch(3, 2), net=net).loss.backward()
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in net.parameters()]
        return torch.cat([g.flatten() for g in grads])

    sup, semi, pixel = gradient(0, 0), gradient(1, 0) - gradient(0, 0), gradient(0, 1) - gradient(0, 0)
    assert semi.abs().sum() > 0 and pixel.abs().sum() > 0
    torch.testing.assert_close(gradient(0.5, 2.0), sup + 0.5 * semi + 2.0 * pixel, rtol=1e-3, atol=1e-4)


def test_progress_sets_the_temperature_and_seed_the_draws() -> None:
    objective = Objective(SetLoss(SetLossConfig()), contrast(), 1.0, 0.1)
    values = set()
    for progress in (0.0, 1.0):
        for seed in (1, 2):
            output = objective(model(), batch(2, 1), None, progress=progress, seed=seed)
            values.add(output.parts["pxl"].item())
    assert len(values) == 4
    again = evaluate(1.0, 0.1, None, progress=0.3).parts["pxl"]
    assert torch.equal(again, evaluate(1.0, 0.1, None, progress=0.3).parts["pxl"])


def test_times_of_all_sections_are_reported() -> None:
    output = evaluate(1.0, 0.1, batch(2, 2))
    assert set(output.seconds) == {"forward", "matching", "losses", "contrast"}
    assert all(value > 0 for value in output.seconds.values())


def test_instance_map_names_the_instance_that_covers_a_cell() -> None:
    instances = batch(1, 0).targets[0]
    ids = instance_map(instances, (8, 8), torch.device("cpu"))
    assert ids.dtype == torch.int64
    assert ids[1, 2] == 1 and ids[6, 4] == 2 and ids[0, 7] == 0
    assert ids[0, 1] == 1  # half covered
    assert ids[3, 0] == 0
    empty = instance_map(Instances.empty(32, 32), (8, 8), torch.device("cpu"))
    torch.testing.assert_close(empty, torch.zeros_like(ids))


def test_without_labelled_images_the_objective_is_that_of_the_pseudo_labels() -> None:
    objective = Objective(SetLoss(SetLossConfig()), contrast(), 0.5, 0.1)
    output = objective(model(), Batch.empty(32, 32), batch(2, 2), progress=0.0, seed=5)
    parts = output.parts
    expected = 0.5 * set_loss_value(parts, "semi") + 0.1 * parts["pxl"].item()
    assert output.loss.item() == pytest.approx(expected, rel=1e-5) and "sup_class" not in parts
    assert all(value >= 0 for value in output.seconds.values())
