"""Readers: a forward pass through a query-based segmenter of transformers, recognised by its modules.

Shape letters: B images, K queries, E class logits, F feature channels, h x w cells.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from sskd_fast.models.pretrained import FoundationError


class LayerOutput(NamedTuple):
    """Predictions after one layer: mask logits (B, K, h, w), the model's own class logits (B, K, E), and boxes.

    boxes (B, K, 4): centre x, y, width, height as shares of the image; None for a model without boxes.
    """

    masks: Tensor
    classes: Tensor
    boxes: Tensor | None = None


@dataclass
class Encoded:
    """Output of a reader. layers: predictions after each layer, in order.  features: (B, F, h', w') of the pixels."""

    layers: list[LayerOutput]
    features: Tensor


@dataclass(frozen=True)
class Reader:
    """The way to run a model and read its predictions.

    size: height and width that images are resized to, None = unchanged.  multiple: sides must be multiples of it.
    stride: side of a mask cell in pixels of the model's input.  channels: F, of the pixel features.  traceable: True if
    torch.export accepts the model.
    """

    traceable: ClassVar[bool] = False
    size: tuple[int, int] | None
    multiple: int
    stride: float
    channels: int

    @classmethod
    def of(cls, model: Any) -> Reader | None:
        """The reader of a model; None if the model lacks the modules that this class reads."""
        raise NotImplementedError

    def read(self, model: Any, images: Tensor) -> Encoded:
        """The model's output for normalised images (B, 3, H, W), resized to `size` if set."""
        raise NotImplementedError


class PixelDecoderReader(Reader):
    """Mask2Former, MaskFormer: a pixel decoder, whose finest map at half its resolution gives the pixel features."""

    @classmethod
    def of(cls, model: Any) -> Reader | None:
        """The reader of a model with a pixel decoder."""
        if not hasattr(getattr(model, "model", None), "pixel_level_module"):
            return None
        return cls(None, 32, 4.0, int(model.config.mask_feature_size))

    def read(self, model: Any, images: Tensor) -> Encoded:
        """The model's auxiliary logits and its last layer."""
        output = model(pixel_values=images, output_auxiliary_logits=True)
        named = [*(getattr(output, "auxiliary_logits", None) or ()), output]
        layers = [LayerOutput(layer["masks_queries_logits"], layer["class_queries_logits"]) for layer in named]
        return Encoded(layers, F.avg_pool2d(output.pixel_decoder_last_hidden_state, 2))


class PatchReader(Reader):
    """EoMT: one vision transformer for queries and patches, of one input size; its patches are the pixel features."""

    @classmethod
    def of(cls, model: Any) -> Reader | None:
        """The reader of a model that predicts from a grid of patches."""
        if not (hasattr(model, "grid_size") and callable(getattr(model, "predict", None))):
            return None
        config = model.config
        size, patch = _pair(config.image_size), _pair(config.patch_size)
        return cls(size, 1, patch[0] / 2**config.num_upscale_blocks, int(config.hidden_size))

    def read(self, model: Any, images: Tensor) -> Encoded:
        """Every layer with predictions: those before a masked layer, and the last."""
        with recorded(model, "predict") as calls:
            output = model(pixel_values=images)
        height, width = model.grid_size
        patches = output.last_hidden_state[:, -height * width :]
        return Encoded([LayerOutput(*made) for _, made in calls], patches.transpose(1, 2).unflatten(2, (height, width)))


class DetrReader(Reader):
    """RF-DETR: boxes in addition to masks, queries chosen by an encoder, and pixel features from the mask features.

    Images are resized to the training square. With other shapes, its windows mix up patches (transformers 5.24), and
    the choice of queries needs the same number of patches.
    """

    traceable = True

    @classmethod
    def of(cls, model: Any) -> Reader | None:
        """The reader of a model with masks in windows; from now on, the model returns the inputs of its loss."""
        backbone: Any = getattr(model.config, "backbone_config", None)
        if not (callable(getattr(model, "get_mask_logits", None)) and hasattr(backbone, "num_windows")):
            return None
        step = backbone.num_windows * _pair(backbone.patch_size)[0]
        side = step * math.ceil(max(_pair(backbone.image_size)) / step)
        model.config.auxiliary_loss = True
        model.loss_function = _hand_out
        return cls((side, side), 1, float(model.config.mask_downsample_ratio), int(model.config.d_model))

    def read(self, model: Any, images: Tensor) -> Encoded:
        """The encoder's choice and every layer in training, else only the last layer."""
        with recorded(model, "get_mask_logits") as calls:
            output = model(pixel_values=images, labels=[] if model.training else None)
        (_, pixels), _ = calls[-1]
        layers = [LayerOutput(output.pred_masks, output.logits, output.pred_boxes)]
        if model.training:
            given = output.loss_dict
            layers = [LayerOutput(*made) for made in zip(*(given[name] for name in LayerOutput._fields), strict=True)]
            layers.insert(0, LayerOutput(*(given[f"encoder_{name}"] for name in LayerOutput._fields)))
        return Encoded(layers, F.avg_pool2d(pixels, 2))


# Arguments of RF-DETR's loss.
_HANDED = (
    "logits", "labels", "device", "pred_boxes", "pred_masks", "config", "classes", "boxes", "masks", "encoder_classes",
    "encoder_boxes", "encoder_masks",
)  # fmt: skip


def _hand_out(*given: Any) -> tuple[None, dict[str, Any], None]:
    """Replaces a model's loss: returns its arguments as terms."""
    return None, dict(zip(_HANDED, given, strict=True)), None


READERS: tuple[type[Reader], ...] = (PixelDecoderReader, PatchReader, DetrReader)


def reader_of(model: Any, setting: str) -> Reader:
    """The reader of a model.  Raises FoundationError if the model needs more than images, or has no known modules."""
    kind = type(model).__name__
    arguments = inspect.signature(model.forward).parameters
    wanted = [n for n, a in arguments.items() if a.default is a.empty and a.kind is a.POSITIONAL_OR_KEYWORD]
    if "pixel_values" not in arguments or set(wanted) > {"pixel_values"}:
        raise FoundationError(
            f"{setting}: {kind} is called with {', '.join(wanted or list(arguments)[:1])}, expected pixel_values "
            "alone: take a Mask2Former, MaskFormer, EoMT or RF-DETR"
        )
    for reader in READERS:
        found = reader.of(model)
        if found is not None:
            return found
    raise FoundationError(
        f"{setting}: {kind} shows no pixel features: found {', '.join(n for n, _ in model.named_children())}; expected "
        "a pixel decoder (Mask2Former, MaskFormer), a grid of patches (EoMT), or masks in windows (RF-DETR)"
    )


def first_group(model: Any) -> Any:
    """The model with the first of its groups of queries, if it has several (Group DETR), else the model itself.

    Further groups are copies of decoder and loss for training only; inference uses the first.  Each of them would cost
    as much matching and mask memory as the first.
    """
    if getattr(model.config, "group_detr", 1) == 1:
        return model
    config = copy.deepcopy(model.config)
    config.group_detr = 1
    alone, whole = type(model)(config), model.state_dict()
    alone.load_state_dict({n: whole[n][: len(t)] if t.ndim else whole[n] for n, t in alone.state_dict().items()})
    return alone


@contextmanager
def recorded(model: Any, method: str) -> Iterator[list[tuple[tuple[Any, ...], Any]]]:
    """Records positional arguments and result of every call of a model's method."""
    own, calls = getattr(model, method), []

    def call(*arguments: Any) -> Any:
        result = own(*arguments)
        calls.append((arguments, result))
        return result

    setattr(model, method, call)
    try:
        yield calls
    finally:
        delattr(model, method)


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
