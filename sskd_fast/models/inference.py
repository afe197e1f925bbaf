"""Prediction of scored masks on images of any size, by tiles of the training crop that are merged where they overlap.

Shape letters: K queries, C classes, H x W pixels of an image, T tile side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sskd_fast.boxed_masks import Bools, Box, boxes_meet, mask_iou, on_tiles
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.models.settings import check_tile

# Number of an image's values to scale at a time.
_STRIP = 1 << 25


@dataclass(frozen=True)
class PredictConfig:
    """Settings of prediction by tiles.

    tile: height and width of the network's input, 0 = the training crop.  In larger tiles, objects look smaller than
    in training to models that resize tiles to an input size of their own.  Such models are SAM 2, SAM 3, EoMT and
    RF-DETR.  overlap: pixels that neighbouring tiles share.  fit: scale the whole image to fit into one tile, instead
    of by the zoom (for photographs of any size).  score_floor: detections with lower scores are dropped.  nms_iou: if
    two masks of a class overlap more than this, the better-scored one stays.  max_detections: number of best-scored
    detections to keep for an image, and that AP counts for each class; 0 = from the data, 100 or more.  batch: tiles
    per forward pass.  Raises ValueError for a setting out of range.
    """

    tile: tuple[int, int] = (0, 0)
    overlap: int = 32
    fit: bool = False
    score_floor: float = 0.02
    nms_iou: float = 0.6
    max_detections: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        check_tile(self.tile)
        expected = {
            "overlap": (self.overlap >= 0, "0 pixels or more"),
            "score_floor": (0 <= self.score_floor < 1, "a score of 0 or more, below 1"),
            "nms_iou": (0 <= self.nms_iou <= 1, "an IoU from 0 to 1"),
            "max_detections": (self.max_detections >= 0, "at least 1, or 0 to take it from the data"),
            "batch": (self.batch >= 1, "at least 1"),
        }
        for name, (fits, wanted) in expected.items():
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)}: expected {wanted}")

    def resolved(self, crop: tuple[int, int], zoom: float, max_detections: int = 100) -> InferenceConfig:
        """The inference settings of a model trained on crops (height, width) of images at `zoom`.

        max_detections: as needed for the data.
        """
        tile = self.tile if min(self.tile) else crop
        own = {field.name: getattr(self, field.name) for field in fields(PredictConfig)}
        own |= {"tile": tile, "overlap": min(self.overlap, min(tile) // 2)}
        return InferenceConfig(**own | {"max_detections": self.max_detections or max_detections}, zoom=zoom)


@dataclass(frozen=True)
class InferenceConfig(PredictConfig):
    """Resolved settings of prediction: `PredictConfig` with a definite tile, and the zoom.

    zoom: factor to scale images by first, unless `fit` is set; masks are returned at the images' own size.
    Raises ValueError for no detections, a tile without pixels, an overlap of a tile or more, or a zoom of 0 or less.
    """

    tile: tuple[int, int]
    max_detections: int = 100
    zoom: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_detections < 1:
            raise ValueError(f"max_detections={self.max_detections}: expected at least 1")
        if min(self.tile) < 1:
            raise ValueError(f"tile={self.tile}: expected height and width in pixels, at least 1 each")
        if not 0 <= self.overlap < min(self.tile):
            raise ValueError(f"overlap={self.overlap}: expected 0 to {min(self.tile) - 1} pixels for tile={self.tile}")
        if not self.zoom > 0:
            raise ValueError(f"zoom={self.zoom}: expected a factor above 0")

    def zoom_of(self, size: Sequence[int]) -> float:
        """The factor that an image of this height and width is scaled by."""
        if not self.fit:
            return self.zoom
        return min(side / own for side, own in zip(self.tile, size, strict=True))

    def seen_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of an image of this size as the model sees it."""
        return zoomed_size(size, self.zoom_of(size))


@dataclass
class Detection:
    """A mask cropped to its box: rows from `top`, columns from `left`; boxes and tiles are (top, left, bottom, right).

    tiles: the tiles that saw the mask; nothing is known about the object outside them.
    """

    mask: Bools
    top: int
    left: int
    label: int
    score: float
    tiles: tuple[Box, ...]

    @property
    def box(self) -> Box:
        """The box of the mask."""
        return self.top, self.left, self.top + self.mask.shape[0], self.left + self.mask.shape[1]


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of evenly spread tiles that cover `length` with at least `overlap` shared pixels."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


@torch.inference_mode()
def predict(model: Segmenter, images: Sequence[Tensor], config: InferenceConfig) -> list[list[Detection]]:
    """Scored instance masks of uint8 images (3, H, W) of any size: at most `max_detections` per image, best first.

    Coordinates are in the zoomed image (`seen_size`); `results.to_results` brings them to the image's own size.
    """
    model.eval()
    images = [zoomed(image, config.zoom_of(image.shape[1:])) for image in images]
    device = next(model.parameters()).device
    found: list[list[Detection]] = [[] for _ in images]
    pending: list[tuple[int, int, int]] = []
    tiles: list[Tensor] = []
    for index, top, left, tile in cut_tiles(images, config):
        pending.append((index, top, left))
        tiles.append(tile)
        if len(tiles) == config.batch:
            _read_tiles(model, tiles, pending, images, found, config, device)
            pending, tiles = [], []
    if tiles:
        _read_tiles(model, tiles, pending, images, found, config, device)
    return [merge(detections, config)[: config.max_detections] for detections in found]


def zoomed_size(size: Sequence[int], zoom: float) -> tuple[int, int]:
    """Height and width of a zoomed image, at least one pixel each."""
    return max(1, round(size[0] * zoom)), max(1, round(size[1] * zoom))


def zoomed(image: Tensor, zoom: float) -> Tensor:
    """A uint8 image (3, H, W) scaled by `zoom`."""
    if zoom == 1.0:
        return image
    size = zoomed_size(image.shape[1:], zoom)
    if image.numel() <= _STRIP:
        return _rounded(_resized(image, size))
    # The same bits with less memory: widths are resized strip by strip, then heights channel by channel.
    small = torch.empty((len(image), *size), dtype=torch.uint8, device=image.device)
    for channel, out in zip(image, small, strict=True):
        strips = channel.split(max(1, _STRIP // channel.shape[1]))
        narrow = torch.cat([_resized(rows[None], (len(rows), size[1]))[0] for rows in strips])
        out.copy_(_rounded(_resized(narrow[None], size))[0])
    return small


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(channels, H, W) -> (channels, *size) float32."""
    return F.interpolate(image.unsqueeze(0).float(), size=size, mode="bilinear", antialias=True)[0]


def _rounded(image: Tensor) -> Tensor:
    return image.round().clamp(0, 255).to(torch.uint8)


def cut_tiles(images: Sequence[Tensor], config: InferenceConfig) -> Iterator[tuple[int, int, int, Tensor]]:
    """(index of the image, top, left, tile) of uint8 images (3, H, W), padded with zeros at the lower right."""
    height, width = config.tile
    for index, image in enumerate(images):
        for top in tile_starts(image.shape[1], height, config.overlap):
            for left in tile_starts(image.shape[2], width, config.overlap):
                tile = image[:, top : top + height, left : left + width]
                yield index, top, left, F.pad(tile, (0, width - tile.shape[2], 0, height - tile.shape[1]))


def _read_tiles(
    model: Segmenter, tiles: list[Tensor], places: list[tuple[int, int, int]], images: Sequence[Tensor],
    found: list[list[Detection]], config: InferenceConfig, device: torch.device,
) -> None:  # fmt: skip
    batch = torch.stack(tiles).to(device, torch.float32) / 255
    predictions = model(batch)
    probs = model.class_probs(predictions)
    for row, (index, top, left) in enumerate(places):
        height = min(config.tile[0], images[index].shape[1] - top)
        width = min(config.tile[1], images[index].shape[2] - left)
        masks, labels, scores = read_queries(predictions.mask_logits[row], probs[row], config)
        bounds = (top, left, top + height, left + width)
        for mask, label, score in zip(masks[:, :height, :width], labels, scores, strict=True):
            detection = cut(mask, top, left, label, score, bounds)
            if detection is not None and owns(detection, images[index].shape[1:], config):
                found[index].append(detection)


def read_queries(mask_logits: Tensor, probs: Tensor, config: InferenceConfig) -> tuple[Bools, list[int], list[float]]:
    """One tile's queries as masks at full resolution, with class, and score = class probability x mask quality.

    mask_logits (K, h, w), probs (K, C).  Mask quality is the mean probability inside the mask.
    """
    rows, labels = torch.nonzero(probs > config.score_floor, as_tuple=True)
    if not len(rows):
        return np.zeros((0, *config.tile), dtype=np.bool_), [], []
    queries, inverse = rows.unique(return_inverse=True)
    full = F.interpolate(mask_logits[queries].unsqueeze(0), size=config.tile, mode="bilinear", align_corners=False)[0]
    inside = full > 0
    quality = (full.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    scores = probs[rows, labels] * quality[inverse]
    keep = torch.nonzero(scores > config.score_floor)[:, 0]
    masks: Bools = inside.cpu().numpy()[inverse[keep].cpu().numpy()]
    return masks, labels[keep].tolist(), scores[keep].tolist()


def cut(mask: Bools, top: int, left: int, label: int, score: float, tile: Box) -> Detection | None:
    """A tile's mask as a Detection in image coordinates; None if it is empty."""
    rows, columns = np.asarray(mask.any(1)), np.asarray(mask.any(0))
    if not rows.any():
        return None
    y, x = int(rows.argmax()), int(columns.argmax())
    small = mask[y : len(rows) - int(rows[::-1].argmax()), x : len(columns) - int(columns[::-1].argmax())]
    return Detection(small, top + y, left + x, label, score, (tile,))


def owns(detection: Detection, size: Sequence[int], config: InferenceConfig) -> bool:
    """True if a tile keeps a detection: the box's centre is in the tile without half the overlap at inner borders."""
    margin = config.overlap // 2
    top, left, bottom, right = detection.tiles[0]
    box = detection.box
    y, x = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return (
        (top == 0 or y >= top + margin)
        and (left == 0 or x >= left + margin)
        and (bottom >= size[0] or y < bottom - margin)
        and (right >= size[1] or x < right - margin)
    )


def merge(detections: list[Detection], config: InferenceConfig) -> list[Detection]:
    """Joins the parts of one object from several tiles and drops duplicates of a class; best score first."""
    kept: dict[int, Detection] = {}
    # Box and label of every kept detection, by its key; a union comes after its parts.
    boxes = np.zeros((4, 2 * len(detections)), dtype=np.int64)
    labels = np.full(2 * len(detections), -1)
    end = 0
    waiting = sorted(detections, key=lambda d: d.score)
    while waiting:
        candidate = waiting.pop()
        near = (labels[:end] == candidate.label) & boxes_meet(boxes[:, :end], candidate.box)
        for key in np.flatnonzero(near).tolist():
            other = kept[key]
            if mask_iou(other, candidate, on_common_tiles=True) > config.nms_iou:
                if candidate.score > other.score or not set(candidate.tiles) <= set(other.tiles):
                    waiting.append(union(kept.pop(key), candidate))  # may match further parts of the object
                    labels[key] = -1
                break
        else:
            kept[end], boxes[:, end], labels[end] = candidate, candidate.box, candidate.label
            end += 1
    return sorted(kept.values(), key=lambda d: -d.score)


def union(a: Detection, b: Detection) -> Detection:
    """The better-scored mask, extended by the other one outside its own tiles."""
    better, other = (a, b) if a.score >= b.score else (b, a)
    top, left = min(a.top, b.top), min(a.left, b.left)
    bottom, right = max(a.box[2], b.box[2]), max(a.box[3], b.box[3])
    mask = np.zeros((bottom - top, right - left), dtype=np.bool_)
    mask[other.top - top : other.box[2] - top, other.left - left : other.box[3] - left] = other.mask & ~on_tiles(
        better.tiles, other.box
    )
    mask[better.top - top : better.box[2] - top, better.left - left : better.box[3] - left] |= better.mask
    return Detection(mask, top, left, a.label, better.score, tuple(dict.fromkeys((*better.tiles, *other.tiles))))
