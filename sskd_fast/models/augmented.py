"""Prediction with test-time augmentation: flipped and rotated views of an image, predicted one by one and averaged.

Shape letters: H x W pixels of an image, n detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sskd_fast.boxed_masks import Bools, area, highest_iou, mask_iou
from sskd_fast.mask_matching import greedy_groups
from sskd_fast.models.inference import Detection, InferenceConfig, cut, predict
from sskd_fast.models.segmenter import Segmenter

# Detections of one object in several views overlap by more than this.
_SAME_OBJECT = 0.5


@dataclass(frozen=True)
class Augmentation:
    """A view: the image rotated counter-clockwise by `turns` quarter turns, then mirrored left to right if `mirrored`.

    The model sees it `zoom` times as large, mostly in tiles that are larger by the same factor.
    """

    turns: int = 0
    mirrored: bool = False
    zoom: float = 1.0

    def apply(self, image: Tensor) -> Tensor:
        """Rotate and mirror the image (3, H, W); `predict` applies the zoom, from the configuration of `seen`."""
        turned = torch.rot90(image, self.turns, (-2, -1))
        return (turned.flip(-1) if self.mirrored else turned).contiguous()

    def seen(self, config: InferenceConfig, model: Segmenter) -> InferenceConfig:
        """The configuration with the view's zoom and tiles; tiles are multiples of the model's `max_stride`.

        A model with an `input_size` would undo the zoom of larger tiles. It sees more tiles of the same size instead,
        unless images are to fit into one.
        """
        overlap = round(config.overlap * self.zoom)
        if model.input_size is not None and not config.fit:
            return replace(config, overlap=min(overlap, min(config.tile) // 2), zoom=config.zoom * self.zoom)
        stride = model.max_stride
        height, width = (max(stride, round(side * self.zoom / stride) * stride) for side in config.tile)
        return replace(config, tile=(height, width), overlap=overlap, zoom=config.zoom * self.zoom)

    def undo(self, detection: Detection, size: tuple[int, int], zoomed: tuple[int, int]) -> Detection | None:
        """Bring a detection of the view to the image's coordinates; None if nothing is left of it.

        size: height and width of the rotated image; zoomed: of the image that the detection was found in.
        """
        back = _resized(detection, zoomed, size) if zoomed != size else detection
        if back is None:
            return None
        mask, boxes, (height, width) = back.mask, [back.box, *back.tiles], size
        if self.mirrored:
            mask, boxes = mask[:, ::-1], [(t, width - r, b, width - left) for t, left, b, r in boxes]
        for _ in range(self.turns):
            boxes = [(left, height - b, r, height - t) for t, left, b, r in boxes]
            height, width = width, height
        turned: Bools = np.ascontiguousarray(np.rot90(mask, -self.turns))
        return replace(back, mask=turned, top=boxes[0][0], left=boxes[0][1], tiles=tuple(boxes[1:]))


IDENTITY = (Augmentation(),)


def augmentations(count: int, zooms: Sequence[float], *, hflip: bool, vflip: bool, rot90: bool) -> list[Augmentation]:
    """At most `count` views from flips and quarter turns: the image itself first, then those without odd turns.

    The views cycle through the zooms.  If there are fewer than `count`, they repeat at other zooms.
    Raises ValueError for a count below 1, without zooms, or for a zoom that is not above 0.
    """
    if count < 1:
        raise ValueError(f"count={count}: expected at least 1 view")
    if not zooms or min(zooms) <= 0:
        raise ValueError(f"zooms={list(zooms)}: expected at least one, each above 0")
    allowed = [
        ((0, False), True),
        ((2, False), rot90 or (hflip and vflip)),
        ((0, True), hflip or (rot90 and vflip)),
        ((2, True), vflip or (rot90 and hflip)),
        ((1, False), rot90),
        ((3, False), rot90),
        ((1, True), rot90 and (hflip or vflip)),
        ((3, True), rot90 and (hflip or vflip)),
    ]
    kept = [view for view, possible in allowed if possible][:count]
    count = min(count, len(kept) * len(zooms))
    return [Augmentation(*kept[i % len(kept)], zoom=zooms[(i + i // len(kept)) % len(zooms)]) for i in range(count)]


def predict_views(
    model: Segmenter, images: Sequence[Tensor], config: InferenceConfig, views: Sequence[Augmentation]
) -> list[list[Detection]]:
    """The detections of `predict`, averaged over views of every image (see `fuse`); best score first.

    Raises ValueError without a view.
    """
    if not views:
        raise ValueError("views: found none, expected at least one; IDENTITY is the image alone")
    if list(views) == list(IDENTITY):
        return predict(model, images, config)
    found: list[list[list[Detection]]] = [[] for _ in images]
    for view in views:
        turned, seen = [view.apply(image) for image in images], view.seen(config, model)
        for of_image, image, own, detections in zip(found, turned, images, predict(model, turned, seen), strict=True):
            # The image's own size as seen, turned; a tile that is not square fits a turned image at another zoom.
            height, width = config.seen_size(own.shape[1:])
            size = (width, height) if view.turns % 2 else (height, width)
            zoomed = seen.seen_size(image.shape[1:])
            back = [view.undo(detection, size, zoomed) for detection in detections]
            of_image.append([detection for detection in back if detection is not None])
    return [fuse(of_image, config) for of_image in found]


def fuse(views: Sequence[Sequence[Detection]], config: InferenceConfig) -> list[Detection]:
    """Fuse an image's detections from several views.

    Detections that overlap by more than half, of any class, are one object, gathered around the best-scored one.  Its
    mask is where the mean of their masks, weighted by score, reaches one half.  Its score for a class is the mean over
    views of the best score for that class.  That score is 0 if a view has none, so agreement of the views counts.  The
    object appears once for every class above the score floor.
    """
    found = [(number, detection) for number, of_view in enumerate(views) for detection in of_view]
    found.sort(key=lambda pair: -pair[1].score)
    boxes = np.array([detection.box for _, detection in found], dtype=np.int64).reshape(-1, 4).T
    areas = np.array([area(detection.mask) for _, detection in found], dtype=np.int64)

    def overlapping(first: int, later: NDArray[np.int64]) -> list[int]:
        best = found[first][1]
        near = later[highest_iou(boxes[:, later], areas[later], best.box, int(areas[first])) > _SAME_OBJECT]
        return [i for i in near.tolist() if mask_iou(best, found[i][1]) > _SAME_OBJECT]

    fused: list[Detection] = []
    for members in greedy_groups(len(found), overlapping):
        fused += _averaged([found[i] for i in members], len(views), config)
    return sorted(fused, key=lambda detection: -detection.score)[: config.max_detections]


def _resized(detection: Detection, size: tuple[int, int], new: tuple[int, int]) -> Detection | None:
    """A detection in an image of `size`, resized to an image of `new` size; None if it covers no pixel centre."""
    scale = [after / before for before, after in zip(size, new, strict=True)]
    rows, columns = (_sources(before, after) for before, after in zip(size, new, strict=True))
    top, left, bottom, right = detection.box
    y, x = int(rows.searchsorted(top)), int(columns.searchsorted(left))
    rows, columns = rows[y : rows.searchsorted(bottom)], columns[x : columns.searchsorted(right)]
    mask = detection.mask[rows - top][:, columns - left]
    small = cut(mask, y, x, detection.label, detection.score, (0, 0, *new))
    tiles = tuple(
        (round(t * scale[0]), round(left * scale[1]), round(b * scale[0]), round(r * scale[1]))
        for t, left, b, r in detection.tiles
    )
    return None if small is None else replace(small, tiles=tiles)


@cache
def _sources(before: int, after: int) -> NDArray[np.int64]:
    """The pixel of a side of `before` pixels that each of `after` pixels shows, never falling."""
    return ((np.arange(after) + 0.5) / (after / before)).astype(np.int64)


def _averaged(members: Sequence[tuple[int, Detection]], views: int, config: InferenceConfig) -> list[Detection]:
    """Merge the detections of one object, each with the number of its view, into one detection for each class."""
    best: dict[tuple[int, int], float] = {}
    for view, detection in members:
        best[detection.label, view] = max(detection.score, best.get((detection.label, view), 0.0))
    scores: dict[int, float] = {}
    for (label, _), score in best.items():
        scores[label] = scores.get(label, 0.0) + score / views
    kept = {label: score for label, score in scores.items() if score > config.score_floor}
    mask, top, left = _mean_mask([detection for _, detection in members])
    if not kept or not mask.any():
        return []
    tiles = tuple(dict.fromkeys(tile for _, detection in members for tile in detection.tiles))
    return [Detection(mask, top, left, label, score, tiles) for label, score in kept.items()]


def _mean_mask(members: Sequence[Detection]) -> tuple[Bools, int, int]:
    """The pixels at which the mean mask, weighted by score, reaches one half, cropped; the box's top and left."""
    boxes = np.array([detection.box for detection in members])
    (top, left), (bottom, right) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    mean = np.zeros((bottom - top, right - left))
    for d in members:
        mean[d.top - top : d.box[2] - top, d.left - left : d.box[3] - left] += d.score * d.mask
    mask: Bools = mean >= 0.5 * sum(d.score for d in members)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return mask, int(top), int(left)
    small = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return small, int(top + rows[0]), int(left + columns[0])
