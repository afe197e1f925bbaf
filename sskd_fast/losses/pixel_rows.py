"""Pixels of a batch as rows, which of them are anchors, and the memory of earlier ones.

Shape letters: B images, N pixels an image, A anchors, n rows, D embedding width, E width of a score vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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


class MemoryBank(nn.Module):
    """The last `size` pixels handed over, as candidates of later steps; part of the state dict.

    A step adds at most a quarter of the size, drawn from its anchors, so that the bank spans several steps.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.pixels: Pixels | None = None

    def extend(self, candidates: Pixels) -> Pixels:
        """The candidates, then the pixels kept; without them where the predictions have changed their width."""
        if self.pixels is None or self.pixels.widths() != candidates.widths():
            return candidates
        return candidates.join(self.pixels.map(lambda rows: rows.to(candidates.image.device)))

    def add(self, candidates: Pixels, anchors: Tensor, seed: int) -> None:
        """Keep some of the candidates at `anchors`; the oldest pixels leave."""
        key = rng.seed_key(seed, anchors.device)
        index = torch.arange(len(anchors), device=anchors.device)
        order = rng.random_words(key, torch.zeros_like(index), index, rng.STREAM_BANK)[0].argsort()
        new = candidates.select(anchors[order[: max(1, self.size // 4)]])
        # No image of a later step has this number, and no instance of a later step is one of these.
        new = new._replace(embedding=new.embedding.detach(), image=torch.full_like(new.image, -1))
        new = new._replace(label=torch.where(new.label > 0, new.label | (1 << 62), new.label))
        self.pixels = self.extend(new).map(lambda rows: rows[: self.size])

    def get_extra_state(self) -> dict[str, Tensor | None]:
        """The pixels kept, by name; empty where there are none."""
        return {} if self.pixels is None else self.pixels._asdict()

    def set_extra_state(self, state: Any) -> None:
        """Take back what `get_extra_state` gave."""
        self.pixels = Pixels(**state) if state else None


def draw_anchors(
    shape: tuple[int, int], valid: Tensor | None, max_anchors: int | None, seed: int, device: torch.device
) -> Tensor:
    """Indices into B * N pixels of at most `max_anchors` valid pixels an image, drawn without replacement; (A,) int64.

    shape: (B, N). valid: (B, h, w) bool or None. A pure function of the arguments.
    """
    images, pixels = shape
    every = torch.arange(images * pixels, device=device)
    if max_anchors is None or max_anchors >= pixels:
        return every if valid is None else every[valid.flatten()]
    column = torch.arange(pixels, device=device)
    words = rng.random_words(rng.seed_key(seed, device), every[:images, None], column, rng.STREAM_ANCHORS)[0]
    if valid is not None:
        words = words.masked_fill(~valid.flatten(1), 1 << 32)
    order = words.argsort(dim=1, stable=True)[:, :max_anchors]
    index = (order + every[:images, None] * pixels).flatten()
    return index if valid is None else index[valid.flatten()[index]]
