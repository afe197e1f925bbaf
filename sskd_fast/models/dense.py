"""A segmenter with dense queries: one head over a feature pyramid, whose best cells are the queries.

All cells are trained, many for each instance, so it converges in few epochs, unlike queries that are matched
one-to-one.  Source: conditional convolutions for instance segmentation (CondInst).

Shape letters: B images, C classes, K queries, F width, P numbers of a mask network, n cells, h x w cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskd_fast.models.class_scores import with_no_object
from sskd_fast.models.dense_maps import DenseMaps, kernel_size
from sskd_fast.models.padding import Content
from sskd_fast.models.pixel_decoder import separable
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.models.pyramid import PyramidSegmenter
from sskd_fast.models.segmenter import Predictions, at_least_float32
from sskd_fast.models.settings import ModelConfig

# Initial class logits: a probability of 1 %.
PRIOR_LOGIT = -4.6


class DenseSegmenter(PyramidSegmenter):
    """Backbone + feature pyramid + dense head.  Its K queries are the best-scored local maxima of all cells' scores.

    A cell's class scores are independent of one another.  Raises FoundationError for levels without cells coarser than
    the masks, or whose strides do not double.
    """

    class_tensors = ("head.classes.weight", "head.classes.bias")
    independent_classes = True

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__(config)
        self.classes = classes
        used = self.strides[config.mask_level :]
        if len(used) < 2:
            raise FoundationError(
                f"model.mask_level: found {config.mask_level} with {len(self.strides)} levels of the backbone; dense "
                "queries need a level coarser than the masks: raise backbone_levels or lower mask_level"
            )
        if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(used)):
            strides = ", ".join(f"{stride:g}" for stride in used)
            raise FoundationError(
                f"model.pixel_decoder: found maps with strides of {strides} pixels; dense queries need each to be "
                "twice the one before: set pixel_decoder to dpt, or choose another backbone"
            )
        self.head = DenseHead(config.width, config.mask_width, classes, config.layers)

    def decode(self, encoded: list[Tensor], content: Content | None = None) -> Predictions:
        """Decoder maps of `encode` -> Predictions with `dense`; see `PyramidSegmenter.decode`."""
        with self.autocast():
            maps = self.head(encoded)
        maps = maps.map(at_least_float32)
        if content is not None:
            maps = replace(maps, classes=[content.only(level) for level in maps.classes])
        cells, classes = best_cells(maps, self.config.num_queries)
        image = torch.arange(cells.shape[0], device=cells.device).repeat_interleave(cells.shape[1])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):  # training reads `dense` instead
            masks = maps.masks(image, cells.flatten()).unflatten(0, cells.shape)
        return Predictions(masks, with_no_object(classes), at_least_float32(self.embedded(encoded)), dense=maps)


class DenseHead(nn.Module):
    """Mask features from the finest level; class logits and mask networks from every cell of the coarser ones."""

    def __init__(self, width: int, mask_width: int, classes: int, layers: int) -> None:
        super().__init__()
        self.class_layers = nn.Sequential(*(separable(width) for _ in range(layers)))
        self.kernel_layers = nn.Sequential(*(separable(width) for _ in range(layers)))
        self.classes = nn.Conv2d(width, classes, 3, 1, 1)
        self.kernels = nn.Conv2d(width, kernel_size(mask_width), 3, 1, 1)
        self.features = nn.Sequential(separable(width), separable(width), nn.Conv2d(width, mask_width, 1))
        for layer, bias in ((self.classes, PRIOR_LOGIT), (self.kernels, 0.0)):
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, bias)

    def forward(self, levels: Sequence[Tensor]) -> DenseMaps:
        """The predictions of all cells of the pixel decoder's maps (B, F, h_i, w_i), finest first."""
        finest, coarser = levels[0], levels[1:]
        classes = [self.classes(self.class_layers(level)) for level in coarser]
        kernels = [self.kernels(self.kernel_layers(level)) for level in coarser]
        return DenseMaps(classes, kernels, self.features(finest), tuple(2 ** (i + 1) for i in range(len(coarser))))


def best_cells(maps: DenseMaps, count: int) -> tuple[Tensor, Tensor]:
    """The best-scored 3 x 3 local maxima of all levels: cell indices (B, count), class logits (B, count, C)."""
    scores = []
    for level in maps.classes:
        score = level.amax(1, keepdim=True).sigmoid()
        peak = score == F.max_pool2d(score, 3, 1, 1)
        scores.append(torch.where(peak, score, score * 1e-3).flatten(1))
    best = torch.cat(scores, 1)
    cells = best.shape[1]
    kept = count if cells >= count else cells  # not min(), which torch.export keeps open if the size is
    chosen = best.topk(kept, dim=1).indices
    logits = torch.cat([level.flatten(2) for level in maps.classes], 2).transpose(1, 2)
    return chosen, logits.gather(1, chosen.unsqueeze(2).expand(-1, -1, logits.shape[2]))
