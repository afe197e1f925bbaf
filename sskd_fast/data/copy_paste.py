"""Copy-paste augmentation: pastes instances of a labelled view, with their pixels, onto another view.

Source: "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation".
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sskd_fast.data.instances import Batch, Instances

# Largest shift of a pasted group as a share of the view's side.
_FARTHEST = 1 / 3


def paste_instances(batch: Batch, source: Batch, probability: float, min_pixels: int, seed: int) -> Batch:
    """The batch with instances of `source`, a batch of labelled views of the same size, pasted onto some of its views.

    Each view is chosen with `probability`.  It gets about half of the instances of one view of `source`.  They are
    shifted by up to a third of the side and mirrored half of the time, equally in the weak and the strong view.
    Instances left with fewer than `min_pixels` are removed, and the losses ignore their pixels.  A pure function of
    its arguments.
    """
    generator = torch.Generator().manual_seed(seed)
    weak, strong, valid, targets = batch.weak.clone(), batch.strong.clone(), batch.valid.clone(), []
    for index, own in enumerate(batch.targets):
        number = int(torch.randint(len(source.targets), (1,), generator=generator))
        chosen = _some(source.targets[number], generator)
        wanted = float(torch.rand(1, generator=generator)) < probability and len(chosen) > 0
        move = _Move.drawn(weak.shape[-2], weak.shape[-1], generator)
        if not wanted:
            targets.append(own)
            continue
        pasted = replace(chosen, masks=move.of(chosen.masks))
        cover = pasted.masks.any(0)
        weak[index] = torch.where(cover, move.of(source.weak[number]), weak[index])
        strong[index] = torch.where(cover, move.of(source.strong[number]), strong[index])
        below = replace(own, masks=own.masks & ~cover)
        joined = _joined(below, pasted)
        large = joined.masks.flatten(1).sum(1) >= min_pixels
        valid[index] = (valid[index] | cover) & ~joined.masks[~large].any(0)
        targets.append(joined.select(large))
    return replace(batch, weak=weak, strong=strong, valid=valid, targets=targets)


def _some(instances: Instances, generator: torch.Generator) -> Instances:
    """About half of the instances, and at least one if there are any."""
    keep = torch.rand(len(instances), generator=generator) < 0.5
    if len(instances) and not bool(keep.any()):
        keep[int(torch.randint(len(instances), (1,), generator=generator))] = True
    return instances.select(keep)


def _joined(first: Instances, second: Instances) -> Instances:
    return Instances(
        torch.cat([first.masks, second.masks]),
        torch.cat([first.labels, second.labels]),
        torch.cat([first.scores, second.scores]),
        torch.cat([first.crowd, second.crowd]),
    )


class _Move:
    """A shift by whole pixels with an optional mirroring before it; pixels from outside are 0."""

    def __init__(self, down: int, right: int, mirrored: bool) -> None:
        self.down, self.right, self.mirrored = down, right, mirrored

    @classmethod
    def drawn(cls, height: int, width: int, generator: torch.Generator) -> _Move:
        shares = torch.rand(3, generator=generator).tolist()
        return cls(
            round((2 * shares[0] - 1) * _FARTHEST * height),
            round((2 * shares[1] - 1) * _FARTHEST * width),
            shares[2] < 0.5,
        )

    def of(self, pixels: Tensor) -> Tensor:
        """Moves pixels (..., H, W); returns the same shape."""
        pixels = pixels.flip(-1) if self.mirrored else pixels
        height, width = pixels.shape[-2:]
        moved = torch.zeros_like(pixels)
        to_rows, from_rows = _overlap(self.down, height)
        to_columns, from_columns = _overlap(self.right, width)
        moved[..., to_rows, to_columns] = pixels[..., from_rows, from_columns]
        return moved


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """The target and source slices along one axis for a shift of its pixels."""
    return slice(max(0, shift), length + min(0, shift)), slice(max(0, -shift), length + min(0, -shift))
