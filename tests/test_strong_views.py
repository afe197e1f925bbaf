"""`contrast.strong_every`: strong views and anchors of a part of the images, in turns."""

from __future__ import annotations

from typing import Any

import joint_gradients
import pytest
import test_boundary_contrast
import test_contrast_module
import torch
from torch import Tensor

from sskd_fast.losses.boundary_contrast import BoundaryContrast
from sskd_fast.losses.contrast import InstancePixelContrast
from sskd_fast.losses.contrast_settings import ContrastConfig

EVERY = 4


def counted_step(every: int, seed: int) -> tuple[list[list[Tensor]], float]:
    """The images of each call of the model's encoder in a step of 6 labelled and 6 unlabelled images; L_pxl."""
    model, objective = joint_gradients.model_and_objective("mask_transformer", "paper", 0, strong_every=every)
    calls: list[list[Tensor]] = []
    encode = model.encode

    def counting(images: Tensor) -> Any:
        calls.append(list(images))
        return encode(images)

    model.encode = counting  # type: ignore[method-assign]
    output = objective(model, *joint_gradients.images_of_step(0), progress=0.4, seed=seed)
    return calls, float(output.parts["pxl"].detach())


@pytest.mark.parametrize("seed", range(EVERY))
def test_one_of_so_many_images_has_its_strong_view_encoded_in_turns(seed: int) -> None:
    strong = [image for batch in joint_gradients.images_of_step(0) for image in batch.strong]
    (weak, found), loss = counted_step(EVERY, seed)
    expected = [image for number, image in enumerate(strong) if (number + seed) % EVERY == 0]
    assert len(weak) == 12 and len(found) == len(expected) == 3 and loss > 0
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_with_every_image_all_are_encoded() -> None:
    (weak, strong), _ = counted_step(1, 3)
    assert len(weak) == len(strong) == 12


@pytest.mark.parametrize("form", ["sampled", "expected"])
def test_the_loss_is_that_of_the_images_with_a_strong_view(form: str) -> None:
    """Within an image, where the others are no candidates."""
    contrast = InstancePixelContrast(num_negatives=16, max_anchors=0, scope="same", form=form)
    inputs = test_contrast_module.scene()
    inputs["embeddings_strong"][[0, 2]] = torch.nan
    chosen = torch.tensor([False, True, False, True])
    found = contrast(**inputs, progress=0.5, seed=1, has_strong=chosen)
    alone = contrast(**{name: value[chosen] for name, value in inputs.items()}, progress=0.5, seed=1)
    assert found.loss.item() == pytest.approx(alone.loss.item(), rel=1e-5)
    valid = torch.ones(4, 16, 16, dtype=torch.bool)
    assert contrast(**inputs, progress=0.5, seed=1, has_strong=chosen, valid=valid).loss.item() == found.loss.item()


def test_the_other_images_still_give_negatives() -> None:
    """Of three images, one has anchors: the pixels of the other two are pushed away from them."""
    inputs = test_contrast_module.scene()
    weak = inputs["embeddings_weak"].requires_grad_()
    chosen = torch.tensor([True, False, False, False])
    contrast = InstancePixelContrast(num_negatives=16, max_anchors=0, scope="other")
    contrast(**inputs, progress=0.5, seed=1, has_strong=chosen).loss.backward()
    assert weak.grad is not None and all(bool(of_image.any()) for of_image in weak.grad)


@pytest.mark.parametrize("form", ["sampled", "expected", "boundary"])
def test_without_a_strong_view_the_loss_is_0(form: str) -> None:
    if form == "boundary":
        inputs: dict[str, Tensor] = test_boundary_contrast.scene()
        contrast: Any = BoundaryContrast(ContrastConfig(**test_boundary_contrast.BOUNDARY, num_negatives=9))
    else:
        inputs, contrast = test_contrast_module.scene(), InstancePixelContrast(max_anchors=0, form=form)
    weak = inputs["embeddings_weak"].requires_grad_()
    none = torch.zeros(len(weak), dtype=torch.bool)
    output = contrast(**inputs, progress=0.5, seed=1, has_strong=none)
    output.loss.backward()
    assert output.loss.item() == 0 and not weak.grad.any()  # type: ignore[union-attr]
    assert all(value.isnan() for value in output.diagnostics.values())


def test_boundary_anchors_lie_on_images_with_a_strong_view() -> None:
    inputs = test_boundary_contrast.scene()
    contrast = BoundaryContrast(ContrastConfig(**test_boundary_contrast.BOUNDARY, num_negatives=9))
    found = contrast(**inputs, progress=0.5, seed=1, has_strong=torch.tensor([True, False]))
    alone = contrast(**{name: value[:1] for name, value in inputs.items()}, progress=0.5, seed=1)
    assert found.loss.item() == pytest.approx(alone.loss.item(), rel=1e-12) and found.loss.item() > 0


def test_micro_batches_without_a_strong_view_have_the_gradients_of_the_whole() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        whole, parts = (
            joint_gradients.gradients("mask_transformer", "paper", micro_batch=size, strong_every=EVERY)
            for size in (0, 1)
        )
    finally:
        torch.set_default_dtype(before)
    assert set(parts) == set(whole) and float(whole["pxl"]) > 0
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strong_every": 0}, "strong_every: expected at least 1 image, found 0"),
        ({"strong_every": 2, "form": "prototypes"}, r"form='prototypes' has no strong views .*\(strong_every\)"),
        ({"strong_every": 2, "form": "ownership"}, r"form='ownership' has no strong views .*\(strong_every\)"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastConfig(**settings)
