"""Any universal-segmentation model of transformers (Mask2Former, MaskFormer, EoMT) behind this package's interface.

Shape letters: B images, K queries, C classes, F feature channels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskd_fast.models import pretrained
from sskd_fast.models.pixel_decoder import Projection
from sskd_fast.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, ModelConfig, Predictions, Segmenter


@dataclass
class Encoded:
    """The model's own output, and its pixel features (B, F, h', w')."""

    output: Any
    features: Tensor


class UniversalSegmenter(Segmenter):
    """A mask classification model of transformers.

    The class head is made anew for the run's classes; a class that the loaded model knows by name keeps its row, any
    other starts as the mean of all: an object of unknown kind.  Models with a fixed input size (EoMT) see the crop
    resized to it.
    """

    class_tensors = ("model.class_predictor.weight", "model.class_predictor.bias")
    backbone_parts = ("model.model.pixel_level_module.encoder.", "model.embeddings.", "model.layers.")
    reusable_parts = ()
    mean: Tensor
    std: Tensor
    stride = 4.0

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
        name, setting = config.foundation.universal, "foundation.universal"
        self.model: Any = pretrained.load(
            "AutoModelForUniversalSegmentation",
            name,
            setting,
            weights=weights and config.foundation.pretrained,
            architectures=architecture,
        )
        if not isinstance(getattr(self.model, "class_predictor", None), nn.Linear):
            raise pretrained.FoundationError(
                f"{setting}: {name!r} is a {type(self.model).__name__}, which has no class_predictor; expected a "
                "Mask2Former, MaskFormer or EoMT"
            )
        known = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
        head = head_for(self.model.class_predictor, known, class_names)
        self.model.class_predictor = nn.Identity()  # new for these classes, so neither frozen nor given adapters
        pretrained.adapt(self.model, config, setting)
        self.model.class_predictor = head
        fixed = hasattr(self.model, "grid_size")
        self.size = _pair(self.model.config.image_size) if fixed else None
        self.max_stride = 1 if fixed else 32
        self.projection = Projection(self._feature_channels(), 128, config.embedding)
        self.register_buffer("mean", torch.tensor(config.mean or IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std or IMAGENET_STD).view(3, 1, 1), persistent=False)

    def architecture(self) -> dict[str, Any]:
        """The configuration of the model of transformers."""
        return {"foundation.universal": pretrained.architecture(self.model)}

    def _feature_channels(self) -> int:
        config = self.model.config
        return int(getattr(config, "mask_feature_size", 0) or config.hidden_size)

    def encode(self, images: Tensor) -> Encoded:
        """images (B, 3, H, W) in [0, 1] -> the model's output; its queries are not kept apart from its pixels."""
        images = (images - self.mean) / self.std
        if self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", antialias=True)
        more = {} if self.size else {"output_auxiliary_logits": True}
        with self.autocast():
            output = self.model(pixel_values=images, **more)
        return Encoded(output, self._features(output).float())

    def _features(self, output: Any) -> Tensor:
        """Pixel features: the pixel decoder's finest map at half its resolution, or a transformer's patches."""
        if self.size:
            patches: Tensor = output.last_hidden_state[:, -self.model.grid_size[0] * self.model.grid_size[1] :]
            return patches.transpose(1, 2).unflatten(2, tuple(self.model.grid_size))
        return F.avg_pool2d(output.pixel_decoder_last_hidden_state, 2)

    def embed(self, encoded: Encoded) -> Tensor:
        """Embeddings (B, D, h', w') of the pixel features."""
        with self.autocast():
            embeddings: Tensor = self.projection(encoded.features)
        return embeddings.float()

    def decode(self, encoded: Encoded) -> Predictions:
        """The model's last and, where it gives them, earlier predictions."""
        output = encoded.output
        earlier = [
            (layer["masks_queries_logits"], layer["class_queries_logits"])
            for layer in getattr(output, "auxiliary_logits", None) or ()
        ]
        return Predictions(output.masks_queries_logits, output.class_queries_logits, encoded.features, earlier).float()


def head_for(head: nn.Linear, known: Sequence[str], class_names: Sequence[str]) -> nn.Linear:
    """A linear class head with a row for each of `class_names`, taken from `head` by name, and one for no object."""
    index = {name.lower(): i for i, name in enumerate(known)}
    new = nn.Linear(head.in_features, len(class_names) + 1, device=head.weight.device)
    with torch.no_grad():
        for mine, theirs in ((new.weight, head.weight), (new.bias, head.bias)):
            rows = [theirs[index[n.lower()]] if n.lower() in index else theirs[:-1].mean(0) for n in class_names]
            mine.copy_(torch.stack([*rows, theirs[-1]]))
    return new


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
