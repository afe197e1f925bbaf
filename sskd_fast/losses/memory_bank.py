"""A bank of pixels from earlier steps, used as candidates in later ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sskd_fast import rng
from sskd_fast.losses.anchors import Pixels


class MemoryBank(nn.Module):
    """The last `size` added pixels, as candidates for later steps; part of the state dict.

    A step adds at most a quarter of the size, drawn from its anchors, so the bank spans several steps.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.pixels: Pixels | None = None

    def extend(self, candidates: Pixels) -> Pixels:
        """The candidates, followed by the kept pixels, unless the width of the predictions has changed."""
        if self.pixels is None or self.pixels.widths() != candidates.widths():
            return candidates
        return candidates.join(self.pixels.map(lambda rows: rows.to(candidates.image.device)))

    def add(self, candidates: Pixels, anchors: Tensor, seed: int, parts: int = 1) -> None:
        """Keep some of the candidates at `anchors`; drops the oldest pixels.  parts: number of calls per step."""
        key = rng.seed_key(seed, anchors.device)
        index = torch.arange(len(anchors), device=anchors.device)
        order = rng.random_words(key, torch.zeros_like(index), index, rng.STREAM_BANK)[0].argsort()
        new = candidates.select(anchors[order[: max(1, self.size // (4 * parts))]]).elsewhere()
        self.pixels = self.extend(new).map(lambda rows: rows[: self.size])

    def get_extra_state(self) -> dict[str, Tensor | None]:
        """The kept pixels by field name; empty if there are none."""
        return {} if self.pixels is None else self.pixels.map(Tensor.cpu)._asdict()

    def set_extra_state(self, state: Any) -> None:
        """Restore the state from `get_extra_state`."""
        self.pixels = Pixels(**state) if state else None
