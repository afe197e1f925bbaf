"""Query-based segmenters of transformers (Mask2Former, MaskFormer, EoMT, RF-DETR) behind this package's interface.

Shape letters: B images, C classes, D embedding width, h x w cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskd_fast.models import pretrained
from sskd_fast.models.class_heads import ClassHeads
from sskd_fast.models.class_scores import with_no_object
from sskd_fast.models.pixel_decoder import Projection
from sskd_fast.models.query_readers import Encoded, first_group, reader_of
from sskd_fast.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, Predictions, Segmenter
from sskd_fast.models.settings import ModelConfig

_SETTING = "foundation.universal"


class UniversalSegmenter(Segmenter):
    """A mask classification model of transformers.

    Its class heads are replaced for the run's classes.  A class that the loaded model knows by name keeps its rows.
    Any other starts as the mean of all rows, an object of unknown kind.  Sigmoid scores, without no-object, become
    log-probabilities with no-object.  For models with one input size (EoMT, RF-DETR), crops are resized to it.
    """

    reusable_parts = ()
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: ModelConfig,
        class_names: Sequence[str],
        *,
        weights: bool = True,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        name, weights = config.foundation.universal, weights and config.foundation.pretrained
        kind = pretrained.segmentation_class(name, _SETTING, architecture)
        loaded = pretrained.load(kind, name, _SETTING, weights=weights, architectures=architecture)
        self.model: Any = first_group(loaded)
        self.reader = reader_of(self.model, _SETTING)
        self._renew_heads(class_names)
        self.input_size, self.stride, self.max_stride = self.reader.size, self.reader.stride, self.reader.multiple
        self.backbone_parts = backbone_parts(self.model)
        self.projection = Projection(self.reader.channels, 128, config.embedding)
        own = pretrained.input_statistics(name, _SETTING) if weights and not config.mean else None
        mean, std = own or (config.mean or IMAGENET_MEAN, config.std or IMAGENET_STD)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def _renew_heads(self, class_names: Sequence[str]) -> None:
        """Puts in new class heads, which neither adapters nor freezing affect."""
        heads = ClassHeads.of(self.model, _SETTING)
        known = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
        heads.take_out(self.model)
        pretrained.adapt(self.model, self.config, _SETTING)
        heads = heads.remade(known, class_names)
        heads.put_in(self.model)
        self.class_tensors = tuple(f"model.{name}" for name in heads.tensors)
        self.no_object = heads.no_object
        self.independent_classes = not heads.no_object
        self.class_logits = len(class_names) + heads.no_object

    def architecture(self) -> dict[str, Any]:
        """The configuration of the model of transformers."""
        return {_SETTING: pretrained.architecture(self.model)}

    def encode(self, images: Tensor) -> Encoded:
        """The model's output for images (B, 3, H, W) in [0, 1], queries included."""
        images = (images - self.mean) / self.std
        if self.input_size:
            # In float32, since antialiasing has no float16 form on CPUs.
            whole = F.interpolate(images.float(), size=self.input_size, mode="bilinear", antialias=True)
            images = whole.to(images.dtype)
        with self.autocast():
            encoded = self.reader.read(self.model, images)
        return Encoded(encoded.layers, encoded.features.float())

    def embed(self, encoded: Encoded) -> Tensor:
        """Embeddings (B, D, h', w') of the pixel features."""
        with self.autocast():
            embeddings: Tensor = self.projection(encoded.features)
        return embeddings.float()

    def decode(self, encoded: Encoded) -> Predictions:
        """The model's last and, if it gives them, earlier predictions and boxes."""
        classes = [self._with_no_object(layer.classes.float()) for layer in encoded.layers]
        masks = [layer.masks for layer in encoded.layers]
        boxes = [layer.boxes for layer in encoded.layers if layer.boxes is not None]
        earlier = list(zip(masks[:-1], classes[:-1], strict=True))
        return Predictions(masks[-1], classes[-1], encoded.features, earlier, boxes=boxes).float()

    def _with_no_object(self, logits: Tensor) -> Tensor:
        """Convert the model's class logits to (B, K, C+1).  Raises FoundationError if they do not fit the new heads."""
        if logits.shape[-1] != self.class_logits:
            raise pretrained.FoundationError(
                f"{_SETTING}: {type(self.model).__name__} gives {logits.shape[-1]} class logits, expected the "
                f"{self.class_logits} of its new heads {', '.join(self.class_tensors)}: take another model"
            )
        return logits if self.no_object else with_no_object(logits)


def backbone_parts(model: nn.Module) -> tuple[str, ...]:
    """Prefixes, below `model.`, of a model's backbones; for a plain vision transformer, its embeddings and layers."""
    kind = pretrained.transformers().backbone_utils.BackboneMixin
    found = [name for name, module in model.named_modules() if isinstance(module, kind)]
    return tuple(f"model.{name}." for name in found or ("embeddings", "layers") if found or hasattr(model, name))
