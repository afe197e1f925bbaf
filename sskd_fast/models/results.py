"""Detections as COCO results at the images' own size.

This part needs pycocotools; `inference`, and with it the training loop, does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from sskd_fast.models.inference import Detection, zoomed_size
from sskd_fast.rle import rle_of_box


def to_results(
    detections: Sequence[Detection],
    image_id: int,
    size: tuple[int, int],
    category_ids: Sequence[int],
    zoom: float = 1.0,
) -> list[dict[str, Any]]:
    """Detections of one H x W image, seen at `zoom`, as COCO results with compressed run-length masks of H x W."""
    results = []
    seen = zoomed_size(size, zoom)
    for d in detections:
        code = rle_of_box(d.mask, d.top, d.left, *seen) if seen == size else _encode_resized(d, seen, size)
        if int(rle.area(code)) == 0:
            continue
        results.append(
            {
                "image_id": image_id,
                "category_id": category_ids[d.label],
                "segmentation": {"size": list(size), "counts": code["counts"].decode("ascii")},
                "score": round(d.score, 6),
            }
        )
    return results


def _encode_resized(detection: Detection, seen: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """A mask of the zoomed image, resized to the image's own size by nearest pixel, as compressed RLE."""
    top, left, bottom, right = detection.box
    rows, columns = _nearest(seen[0], size[0]), _nearest(seen[1], size[1])
    y0, y1 = np.searchsorted(rows, (top, bottom)).tolist()
    x0, x1 = np.searchsorted(columns, (left, right)).tolist()
    return rle_of_box(detection.mask[rows[y0:y1] - top][:, columns[x0:x1] - left], y0, x0, *size)


@lru_cache(maxsize=64)
def _nearest(length: int, wanted: int) -> NDArray[np.int64]:
    """The pixels of a row of `length` that Pillow's nearest-pixel resizing to `wanted` pixels chooses."""
    row = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return np.asarray(row.resize((wanted, 1), Image.Resampling.NEAREST))[0].astype(np.int64)
