"""Masks at a coarser stride, to measure the AP lost to it and to compare models at equal resolution.

Shape letters: H x W pixels of an image, h x w of a mask's box. M x N cells of the map that the box touches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sskd_fast.evaluation.coco_ap import evaluate_masks
from sskd_fast.models.inference import zoomed_size
from sskd_fast.rle import box_of_rle, encode_segmentation, rle_of_box

# The scale factor of the images that a network sees, or a function that gives it for an image of (height, width).
Zoom = float | Callable[[tuple[int, int]], float]


def at_stride(results: Sequence[dict[str, Any]], stride: float, zoom: Zoom = 1.0) -> list[dict[str, Any]]:
    """COCO results with masks resampled to cells of `stride` pixels; masks that vanish are dropped.

    A cell belongs to a mask that covers at least half of it, and a pixel to the cell that holds its centre.
    The stride is in pixels of the scaled image.
    """
    drawn = ((result, _drawn(result["segmentation"], stride, _zoom_of(result, zoom))) for result in results)
    return [{**result, "segmentation": code} for result, code in drawn if code is not None]


def stride_ceiling(ground_truth: dict[str, Any], stride: float, zoom: Zoom = 1.0, max_detections: int = 100) -> float:
    """The mask AP in percent of the ground truth itself, resampled to a stride; see `at_stride`."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    perfect = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "score": 1.0,
            "segmentation": encode_segmentation(a["segmentation"], *sizes[a["image_id"]]),
        }
        for a in ground_truth["annotations"]
        if not a.get("iscrowd", 0)
    ]
    return evaluate_masks(ground_truth, at_stride(perfect, stride, zoom), max_detections=max_detections).ap


def _zoom_of(result: dict[str, Any], zoom: Zoom) -> float:
    height, width = result["segmentation"]["size"]
    return zoom((height, width)) if callable(zoom) else zoom


def _drawn(code: dict[str, Any], stride: float, zoom: float) -> dict[str, Any] | None:
    """The mask resampled to cells and back, as compressed RLE with text counts; None if no cell is left."""
    mask, top, left = box_of_rle(code)
    if not mask.size:
        return None
    height, width = code["size"]
    rows, first_row = _cell_edges(top, mask.shape[0], height, stride, zoom)
    columns, first_column = _cell_edges(left, mask.shape[1], width, stride, zoom)
    covered = _sums(_sums(mask.astype(np.float64), rows - top).T, columns - left).T  # (M, N), pixels
    cells = covered >= 0.5 * np.outer(np.diff(rows), np.diff(columns))
    if not cells.any():
        return None
    of_row, y = _pixels(first_row, rows, height, stride, zoom)
    of_column, x = _pixels(first_column, columns, width, stride, zoom)
    back = rle_of_box(cells[of_row][:, of_column], y, x, height, width)
    return {"size": [height, width], "counts": back["counts"].decode("ascii")}


def _cell_edges(start: int, length: int, side: int, stride: float, zoom: float) -> tuple[NDArray[np.float64], int]:
    """Edges, (M + 1,) in image pixels, of the cells that pixels start .. start + length touch; and the first cell."""
    seen = zoomed_size((side, side), zoom)[0]
    scale = side / seen
    first = int(start / scale / stride)
    last = int(np.ceil((start + length) / scale / stride))
    return np.minimum(np.arange(first, last + 1) * stride, seen) * scale, first


def _sums(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M, w) sums of the rows (h, w) between edges (M + 1,); a row that an edge cuts is split in proportion."""
    total = np.vstack([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    edges = edges.clip(0, len(values))
    whole = np.minimum(edges.astype(np.int64), len(values) - 1)
    sums: NDArray[np.float64] = np.diff(total[whole] + (edges - whole)[:, None] * values[whole], axis=0)
    return sums


def _pixels(
    first: int, edges: NDArray[np.float64], side: int, stride: float, zoom: float
) -> tuple[NDArray[np.int64], int]:
    """The cell, relative to `first`, of each pixel whose centre lies between the outer edges, and the first pixel."""
    scale = side / zoomed_size((side, side), zoom)[0]
    start, end = (int(np.ceil(edge - 0.5)) for edge in (edges[0], edges[-1]))
    centres = np.arange(start, min(end, side)) + 0.5
    cells = (centres / scale / stride).astype(np.int64) - first
    return cells.clip(0, len(edges) - 2), start
