"""Pixels of a batch as rows, and which of them are anchors.

Shape letters: B images, N pixels an image, A anchors, n rows, D embedding width, E width of a score vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sskd_fast import rng


class Pixels(NamedTuple):
    """Pixels as rows: unit embedding (n, D), scores (n, E) or None, weight (n,) or None, image (n,), label (n,).

    label: int64, equal for two pixels exactly if they lie on one instance; 0 background, -1 unknown.
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

    def widths(self) -> tuple[int, int, bool]:
        """Width of the embeddings and of the scores, and whether there are weights."""
        return self.embedding.shape[1], 0 if self.scores is None else self.scores.shape[1], self.weight is not None


def draw_anchors(
    shape: tuple[int, int], valid: Tensor | None, max_anchors: int, seed: int, device: torch.device
) -> Tensor:
    """Indices into B * N pixels of at most `max_anchors` valid pixels an image, drawn without replacement; (A,) int64.

    shape: (B, N). valid: (B, h, w) bool or None. max_anchors: 0 takes every valid pixel. A pure function of the
    arguments.
    """
    images, pixels = shape
    every = torch.arange(images * pixels, device=device)
    if not 0 < max_anchors < pixels:
        return every if valid is None else every[valid.flatten()]
    column = torch.arange(pixels, device=device)
    words = rng.random_words(rng.seed_key(seed, device), every[:images, None], column, rng.STREAM_ANCHORS)[0]
    if valid is not None:
        words = words.masked_fill(~valid.flatten(1), 1 << 32)
    order = words.argsort(dim=1, stable=True)[:, :max_anchors]
    index = (order + every[:images, None] * pixels).flatten()
    return index if valid is None else index[valid.flatten()[index]]
