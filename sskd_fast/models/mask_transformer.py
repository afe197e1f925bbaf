"""The mask transformer: backbone, pixel decoder, queries, masked-attention decoder, projection.

Shape letters: B images, K queries, C classes, F feature channels, h x w cells.
"""

from __future__ import annotations

from torch import Tensor

from sskd_fast.models.decoder import MaskDecoder
from sskd_fast.models.padding import Content
from sskd_fast.models.pyramid import PyramidSegmenter
from sskd_fast.models.queries import LearnedQueries, PeakQueries
from sskd_fast.models.segmenter import Predictions
from sskd_fast.models.settings import ModelConfig


class MaskTransformer(PyramidSegmenter):
    """Backbone + pixel decoder + mask decoder. `forward` gives Predictions; `encode` stops at the pixel features."""

    class_tensors = ("decoder.head.classes.weight", "decoder.head.classes.bias")

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__(config)
        self.classes = classes
        seeded = config.queries == "peaks"
        self.queries = (PeakQueries if seeded else LearnedQueries)(config.num_queries, config.width)
        self.decoder = MaskDecoder(
            config.width, config.mask_width, classes,
            layers=config.layers, heads=config.heads, feedforward=config.feedforward,
            levels=len(self.strides), seeded=seeded, learned_queries=config.num_queries,
            reach=config.reach / self.stride,
        )  # fmt: skip

    def decode(self, encoded: list[Tensor], content: Content | None = None) -> Predictions:
        """Decoder maps of `encode` -> Predictions; see `PyramidSegmenter.decode`."""
        finest, memory = encoded[0], encoded[1:] or encoded
        with self.autocast():
            queries = self.queries(finest, content)
            features = self.decoder.mask_features(finest)
            *auxiliary, (masks, classes) = self.decoder(queries, features, memory)
        return Predictions(
            masks, classes, self.embedded(encoded), auxiliary, queries.heat, mask_features=features
        ).float()
