"""Instance masks of an image packed into a few id maps, so that a window with hundreds of instances costs little more.

Shape letters: n instances, L layers, H x W pixels of the image, h x w of a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sskd_fast.rle import MaskError, pixels_of_runs, rle_of_runs, run_lengths


@dataclass(frozen=True)
class MaskLayers:
    """All instances of an image, packed into id maps in which they do not overlap.

    ids: (L, H, W) uint8 or uint16, 0 for no instance, else 1 + its index.  layer: (n,) int64, the id map of each
    instance. labels: (n,) int64.  scores: (n,) float32.  crowd: (n,) bool.
    """

    ids: NDArray[np.uint8] | NDArray[np.uint16]
    layer: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    crowd: NDArray[np.bool_]

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return int(self.ids.nbytes + 21 * len(self.labels))

    def window(
        self, rows: NDArray[np.int64] | slice, columns: NDArray[np.int64] | slice
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The instances sampled on a grid of pixels.

        rows, columns: the h rows and w columns of the grid, as indices or slices.  Returns the indices of the instances
        with a pixel on the grid, in order, (m,) int64, and their masks (m, h, w) bool.
        """
        grid = self.ids[:, rows][:, :, columns]
        count = np.bincount(grid.ravel(), minlength=len(self.labels) + 1)[1:]
        kept = np.flatnonzero(count)
        maps = grid if len(grid) == 1 else grid[self.layer[kept]]
        if not len(kept):
            return kept, np.zeros((0, *grid.shape[1:]), dtype=np.bool_)
        return kept, maps == (kept + 1).astype(grid.dtype)[:, None, None]

    def encoded(self) -> list[dict[str, Any]]:
        """All instances in order as compressed RLE with bytes counts."""
        height, width = self.ids.shape[1:]
        runs = [_runs(ids) for ids in self.ids]
        found = []
        for index, layer in enumerate(self.layer):
            starts, ends, values = runs[layer]
            of_instance = slice(*np.searchsorted(values, (index + 1, index + 2)))
            found.append(rle_of_runs(starts[of_instance], ends[of_instance], height, width))
        return found


def _runs(ids: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """Maximal runs of equal ids (H, W) in column-major order: (starts, ends, ids), sorted by id."""
    flat = ids.T.ravel()
    borders = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], borders])
    order = np.argsort(flat[starts], kind="stable")
    ends = np.concatenate([borders, [flat.size]])
    return starts[order], ends[order], flat[starts][order]


def check_count(count: int) -> None:
    """Raises MaskError if an image has more instances than id maps can number."""
    most = np.iinfo(np.uint16).max
    if count > most:
        raise MaskError(f"{count} instances on one image", f"at most {most}", "Cut the image into tiles.")


def pack_layers(
    encoded: Sequence[Mapping[str, Any]],
    labels: Sequence[int],
    scores: Sequence[float],
    crowd: Sequence[bool],
    height: int,
    width: int,
) -> MaskLayers:
    """Packs n compressed RLE masks into id maps, each on the first map on which it overlaps nothing.

    Masks without a pixel are dropped.  Raises MaskError for more instances than `check_count` allows.
    """
    check_count(len(encoded))
    kind = np.uint8 if len(encoded) <= np.iinfo(np.uint8).max else np.uint16
    # Painted in the column-major order of run-length codes and transposed at the end.
    maps: list[NDArray[Any]] = []
    layer: list[int] = []
    kept: list[int] = []
    for index, rle in enumerate(encoded):
        pixels = pixels_of_runs(run_lengths(rle["counts"]))
        if not len(pixels):
            continue
        kept.append(index)
        number = next((number for number, ids in enumerate(maps) if not ids[pixels].any()), len(maps))
        if number == len(maps):
            maps.append(np.zeros(height * width, dtype=kind))
        maps[number][pixels] = len(kept)
        layer.append(number)
    columns = np.stack(maps) if maps else np.zeros((1, height * width), dtype=kind)
    return MaskLayers(
        ids=np.ascontiguousarray(columns.reshape(-1, width, height).transpose(0, 2, 1)),
        layer=np.array(layer, dtype=np.int64),
        labels=np.array([labels[index] for index in kept], dtype=np.int64),
        scores=np.array([scores[index] for index in kept], dtype=np.float32),
        crowd=np.array([crowd[index] for index in kept], dtype=np.bool_),
    )
