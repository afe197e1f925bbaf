"""Pixels of a batch as rows, and the choice of anchors among them.

Shape letters: B images, N pixels an image, A anchors, n rows, D embedding width, E width of a score vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sskd_fast import ops, rng
from sskd_fast.losses.contrast_settings import ContrastCues

# Candidates on objects are drawn up to 1 / _LEAST_OBJECTNESS times as often as surely empty background.
_LEAST_OBJECTNESS = 0.03


class Pixels(NamedTuple):
    """Pixels as rows: unit embedding (n, D), scores (n, E) or None, weight (n,) or None, image (n,), label (n,).

    label: int64, equal for two pixels if and only if they lie on the same instance; 0 background, -1 unknown.
    """

    embedding: Tensor
    scores: Tensor | None
    weight: Tensor | None
    image: Tensor
    label: Tensor

    def select(self, index: Tensor) -> Pixels:
        """The pixels at `index`."""
        return self.map(lambda rows: rows.index_select(0, index))

    def join(self, other: Pixels) -> Pixels:
        """These pixels, then the others."""
        return Pixels(
            torch.cat([self.embedding, other.embedding]),
            None if self.scores is None or other.scores is None else torch.cat([self.scores, other.scores]),
            None if self.weight is None or other.weight is None else torch.cat([self.weight, other.weight]),
            torch.cat([self.image, other.image]),
            torch.cat([self.label, other.label]),
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> Pixels:
        """`change` applied to every tensor."""
        scores = None if self.scores is None else change(self.scores)
        weight = None if self.weight is None else change(self.weight)
        return Pixels(change(self.embedding), scores, weight, change(self.image), change(self.label))

    def elsewhere(self) -> Pixels:
        """The pixels as candidates for another step or rank: detached, and on none of its images or instances."""
        return self._replace(
            embedding=self.embedding.detach(),
            image=torch.full_like(self.image, -1),
            label=torch.where(self.label > 0, self.label | (1 << 62), self.label),
        )

    def widths(self) -> tuple[int, int, bool]:
        """Width of the embeddings, width of the scores, and True if there are weights."""
        return self.embedding.shape[1], 0 if self.scores is None else self.scores.shape[1], self.weight is not None


def draw_anchors(
    shape: tuple[int, int],
    valid: Tensor | None,
    max_anchors: int,
    seed: int,
    device: torch.device,
    numbers: Sequence[int] | None = None,
) -> Tensor:
    """Draw at most `max_anchors` valid pixels per image, without replacement; returns (A,) int64 indices into B * N.

    shape: (B, N). valid: (B, h, w) bool or None. max_anchors: 0 takes every valid pixel. numbers: of the images in the
    joint batch, which seed their draws; 0, 1, ... by default. A pure function of the arguments.
    """
    images, pixels = shape
    every = torch.arange(images * pixels, device=device)
    if not 0 < max_anchors < pixels:
        return every if valid is None else every[valid.flatten()]
    column = torch.arange(pixels, device=device)
    image = every[:images] if numbers is None else torch.tensor(numbers, device=device)
    words = rng.random_words(rng.seed_key(seed, device), image[:, None], column, rng.STREAM_ANCHORS)[0]
    if valid is not None:
        words = words.masked_fill(~valid.flatten(1), 1 << 32)
    order = words.argsort(dim=1, stable=True)[:, :max_anchors]
    index = (order + every[:images, None] * pixels).flatten()
    return index if valid is None else index[valid.flatten()[index]]


def pixel_rows(
    mask_logits: Tensor, class_logits: Tensor, embeddings: Tensor, instance_ids: Tensor | None, *, cues: ContrastCues,
    weighted: bool, backend: str,
) -> Pixels:  # fmt: skip
    """Every pixel of a view, image by image.

    mask_logits (B, K, H, W) and class_logits (B, K, C+1), without gradient, give the scores by `cues` (none for
    "uniform").  If weighted, they also give the weights: objectness, at least 0.03.  embeddings (B, D, h, w);
    instance_ids (B, h, w) int64: 0 background, -1 unknown, None if all are unknown.
    """
    images, _, height, width = embeddings.shape
    size = (height, width)
    masks, classes = mask_logits.detach(), class_logits.detach()
    scores = weight = None
    if cues != "uniform":
        scores = ops.fuse_scores(masks, classes, size, cues=cues, backend=backend).flatten(0, 1)
    if weighted:
        weight = ops.objectness(masks, classes, size, backend=backend).flatten()
        weight = weight.mul_(1 - _LEAST_OBJECTNESS).add_(_LEAST_OBJECTNESS)
    image = torch.arange(images, device=embeddings.device).repeat_interleave(height * width)
    if instance_ids is None:
        label = torch.full_like(image, -1)
    else:
        label = instance_ids.flatten().long()
        label = torch.where(label > 0, label + ((image + 1) << 32), label)
    return Pixels(F.normalize(rows_of(embeddings), dim=-1), scores, weight, image, label)


def rows_of(embeddings: Tensor) -> Tensor:
    """Reshape (B, D, h, w) to (B * h * w, D), float32 or wider."""
    rows = embeddings.flatten(2).transpose(1, 2).flatten(0, 1)
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
