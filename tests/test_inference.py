"""Prediction by tiles: tiles cover images, objects come out whole and once, at the size of the image."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from torch import Tensor, nn
from torch.nn import functional as F

from sskd_fast.boxed_masks import Bools
from sskd_fast.models.inference import (
    Detection,
    InferenceConfig,
    merge,
    owns,
    predict,
    read_queries,
    tile_starts,
    union,
    zoomed,
    zoomed_size,
)
from sskd_fast.models.mask_transformer import MaskTransformer
from sskd_fast.models.results import to_results
from sskd_fast.models.segmenter import Predictions, Segmenter
from sskd_fast.models.settings import ModelConfig

CLASSES = 2
GREY = 20  # of the background


class ColorNet(Segmenter):
    """Finds objects by colour: query k is what shows one of `colors[k]` (levels of red), of class `labels[k]`."""

    def __init__(self, colors: list[tuple[int, ...]], labels: list[int]) -> None:
        super().__init__()
        self.colors, self.labels = colors, labels
        self.sharpness = nn.Parameter(torch.tensor(8.0))
        self.tiles = 0

    def forward(self, images: Tensor) -> Predictions:
        self.tiles += len(images)
        palette = torch.tensor(sorted({0, GREY, *(c for group in self.colors for c in group)}))
        red = palette[((images[:, :1] * 255) - palette.view(1, -1, 1, 1)).abs().argmin(1)]
        shown = torch.stack([torch.isin(red, torch.tensor(group)) for group in self.colors], 1).float()
        small = F.avg_pool2d(shown, 2)
        masks = (2 * small - 1) * self.sharpness
        there = small.flatten(2).amax(-1) > 0.5
        classes = torch.zeros(len(images), len(self.colors), CLASSES + 1)
        for k, label in enumerate(self.labels):
            classes[:, k, label] = torch.where(there[:, k], 9.0, -9.0)
        classes[..., CLASSES] = torch.where(there, -9.0, 9.0)
        return Predictions(masks, classes, small, [], None)


def scene(size: tuple[int, int], objects: list[tuple[Bools, int]]) -> Tensor:
    image = torch.full((3, *size), GREY, dtype=torch.uint8)
    for mask, red in objects:
        image[0][torch.from_numpy(mask)] = red
    return image


def box(size: tuple[int, int], top: int, left: int, bottom: int, right: int) -> Bools:
    mask = np.zeros(size, dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def disc(size: tuple[int, int], y: float, x: float, radius: float) -> Bools:
    ys, xs = np.mgrid[: size[0], : size[1]]
    return np.asarray((ys - y) ** 2 + (xs - x) ** 2 <= radius**2)


def full(detection: Detection, size: tuple[int, int]) -> Bools:
    mask = np.zeros(size, dtype=np.bool_)
    mask[detection.top : detection.box[2], detection.left : detection.box[3]] = detection.mask
    return mask


def overlap(a: Bools, b: Bools) -> float:
    return float((a & b).sum() / (a | b).sum())


def run(net: nn.Module, images: list[Tensor], config: InferenceConfig) -> list[list[Detection]]:
    return predict(net, images, config)  # type: ignore[arg-type]


TILES = InferenceConfig(tile=(64, 64), overlap=32, score_floor=0.1)


# Tiles


@pytest.mark.parametrize(("tile", "shared"), [(64, 32), (64, 0), (32, 15), (96, 40)])
def test_tiles_cover_every_length_and_overlap(tile: int, shared: int) -> None:
    for length in range(1, 400):
        starts = tile_starts(length, tile, shared)
        assert starts[0] == 0
        if length <= tile:
            assert starts == [0]
            continue
        assert starts[-1] + tile == length
        assert all(0 < b - a <= tile - shared for a, b in itertools.pairwise(starts))
        assert len(starts) == -(-(length - shared) // (tile - shared))  # and no more than needed


def test_every_object_smaller_than_the_overlap_is_owned_by_a_tile_that_sees_it_whole() -> None:
    starts = tile_starts(150, 64, 32)
    for left in range(0, 150 - 16):
        owners = 0
        for start in starts:
            a, b = max(left, start), min(left + 16, start + 64)
            if a >= b:
                continue
            bounds = ((0, start, 64, start + 64),)
            detection = Detection(np.ones((4, b - a), dtype=np.bool_), 10, a, 0, 1.0, bounds)
            if owns(detection, (64, 150), TILES):
                assert b - a == 16, f"the tile from {start} keeps a cut piece of the object at {left}"
                owners += 1
        assert owners >= 1, f"no tile keeps the object at {left}"


def test_zoomed_size_is_at_least_a_pixel() -> None:
    assert zoomed_size((100, 51), 0.5) == (50, 26)
    assert zoomed_size((3, 1), 0.1) == (1, 1)


# Whole images


@pytest.mark.parametrize("radius", [5, 12, 20])
def test_objects_cut_by_tiles_come_out_whole_and_once(radius: int) -> None:
    size = (150, 170)
    for y, x in [(75, 85), (48, 48), (64, 96), (30, 120), (radius, radius)]:
        mask = disc(size, y, x, radius)
        net = ColorNet([(200,)], [1])
        found = run(net, [scene(size, [(mask, 200)])], TILES)[0]
        assert len(found) == 1, (y, x)
        assert found[0].label == 1
        assert overlap(full(found[0], size), mask) > (0.8 if radius == 5 else 0.9), (y, x)


def test_an_object_longer_than_a_tile_comes_out_whole_and_once() -> None:
    size = (70, 300)
    mask = box(size, 20, 10, 44, 290)
    found = run(ColorNet([(200,)], [0]), [scene(size, [(mask, 200)])], TILES)[0]
    assert len(found) == 1
    assert overlap(full(found[0], size), mask) > 0.98


def test_touching_objects_of_a_class_stay_apart() -> None:
    size = (64, 160)
    masks = [box(size, 20, 30, 40, 62), box(size, 20, 62, 40, 90), box(size, 40, 50, 60, 80)]
    reds = [120, 160, 200]
    net = ColorNet([(r,) for r in reds], [0, 0, 0])
    found = run(net, [scene(size, list(zip(masks, reds, strict=True)))], TILES)[0]
    assert len(found) == 3
    for mask in masks:
        assert max(overlap(full(d, size), mask) for d in found) > 0.9


def test_nested_objects_of_a_class_are_both_kept() -> None:
    size = (64, 130)
    outer, inner = disc(size, 32, 64, 26), disc(size, 32, 66, 12)
    image = scene(size, [(outer, 120), (inner, 200)])
    found = run(ColorNet([(120, 200), (200,)], [0, 0]), [image], TILES)[0]
    assert len(found) == 2
    assert max(overlap(full(d, size), outer) for d in found) > 0.9
    assert max(overlap(full(d, size), inner) for d in found) > 0.9


def test_duplicate_queries_of_a_class_are_dropped_and_of_two_classes_kept() -> None:
    size = (64, 64)
    image = scene(size, [(disc(size, 30, 30, 12), 200)])
    assert len(run(ColorNet([(200,), (200,)], [0, 0]), [image], TILES)[0]) == 1
    assert sorted(d.label for d in run(ColorNet([(200,), (200,)], [0, 1]), [image], TILES)[0]) == [0, 1]


@pytest.mark.parametrize("zoom", [0.4, 0.5, 1.0, 1.7])
def test_masks_come_back_at_the_size_of_the_image(zoom: float) -> None:
    size = (151, 203)
    mask = disc(size, 70, 110, 40)
    config = dataclasses.replace(TILES, zoom=zoom)
    found = run(ColorNet([(200,)], [1]), [scene(size, [(mask, 200)])], config)[0]
    results = to_results(found, 7, size, [3, 9], zoom)
    assert len(results) == 1
    result = results[0]
    assert (result["image_id"], result["category_id"]) == (7, 9)
    assert result["segmentation"]["size"] == [151, 203]
    assert isinstance(result["segmentation"]["counts"], str)
    assert overlap(rle.decode(result["segmentation"]).astype(bool), mask) > 0.9
    assert 0.9 < result["score"] <= 1


@pytest.mark.parametrize(("zoom", "size"), [(0.37, (151, 203)), (0.5, (64, 97)), (1.7, (33, 20))])
def test_masks_are_resized_as_pillow_resizes_the_whole_image(zoom: float, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    seen = zoomed_size(size, zoom)
    for top, left in ((0, 0), (3, 5), (seen[0] - 9, seen[1] - 6)):
        mask = rng.random((9, 6)) < 0.7
        whole = np.zeros(seen, dtype=np.uint8)
        whole[top : top + 9, left : left + 6] = mask
        expected = np.asarray(Image.fromarray(whole).resize(size[::-1], Image.Resampling.NEAREST))
        result = to_results([Detection(mask, top, left, 0, 0.5, ((0, 0, *seen),))], 1, size, [3], zoom)[0]
        assert result["segmentation"]["counts"].encode() == rle.encode(np.asfortranarray(expected))["counts"]


def test_images_smaller_than_the_tile() -> None:
    sizes = [(20, 30), (64, 10), (1, 1), (63, 64)]
    masks = [disc(size, size[0] / 2, size[1] / 2, min(size) / 3) for size in sizes]
    images = [scene(s, [(m, 200)]) for s, m in zip(sizes, masks, strict=True)]
    net = ColorNet([(200,)], [0])
    found = run(net, images, TILES)
    assert net.tiles == 4
    for size, mask, detections in zip(sizes, masks, found, strict=True):
        if size == (1, 1):
            continue
        assert len(detections) == 1
        bottom, right = detections[0].box[2:]
        assert bottom <= size[0] and right <= size[1]
        assert overlap(full(detections[0], size), mask) > 0.7
    assert rle.decode(to_results(found[0], 1, sizes[0], [1])[0]["segmentation"]).shape == sizes[0]


def test_images_of_many_sizes_in_batches_give_what_each_gives_alone() -> None:
    sizes = [(80, 64), (64, 64), (130, 70), (40, 90)]
    images = [scene(s, [(disc(s, 20, 30, 9), 200), (disc(s, s[0] - 12, s[1] - 20, 8), 120)]) for s in sizes]
    net = ColorNet([(200,), (120,)], [0, 1])
    together = run(net, images, dataclasses.replace(TILES, batch=3))
    for image, size, detections in zip(images, sizes, together, strict=True):
        alone = to_results(run(net, [image], TILES)[0], 1, size, [1, 2])
        assert to_results(detections, 1, size, [1, 2]) == alone
        assert len(alone) == 2


def test_an_image_without_objects_gives_nothing() -> None:
    net = ColorNet([(200,)], [0])
    assert run(net, [scene((70, 70), [])], TILES) == [[]]
    assert run(net, [], TILES) == []
    masks, labels, scores = read_queries(torch.randn(3, 8, 8), torch.zeros(3, CLASSES), TILES)
    assert masks.shape == (0, 64, 64) and labels == [] and scores == []


def test_best_detections_come_first_up_to_the_limit() -> None:
    size = (64, 64)
    reds = [100, 130, 160, 190]
    masks = [box(size, 2 + 15 * i, 4, 14 + 15 * i, 40) for i in range(4)]
    net = ColorNet([(r,) for r in reds], [0, 1, 0, 1])
    config = dataclasses.replace(TILES, max_detections=3)
    found = run(net, [scene(size, list(zip(masks, reds, strict=True)))], config)[0]
    assert len(found) == 3
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)


def test_the_network_is_put_into_evaluation_and_gets_values_up_to_one() -> None:
    torch.manual_seed(0)
    config = ModelConfig(channels=(8, 8), blocks=(1, 1), width=8, mask_width=4, layers=1, feedforward=8, num_queries=3)
    model = MaskTransformer(config, CLASSES).train()
    ranges: list[float] = []
    model.backbone.register_forward_pre_hook(lambda _, x: ranges.extend((float(x[0].min()), float(x[0].max()))))
    predict(model, [torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)], TILES)
    assert not model.training
    assert ranges == pytest.approx([-0.45 / 0.25, 0.55 / 0.25])


def test_score_is_class_probability_times_mask_quality() -> None:
    config = InferenceConfig(tile=(4, 4), overlap=2, score_floor=0.05)
    logits = torch.full((1, 4, 4), -5.0)
    logits[0, :, :2] = 2.0
    probs = torch.tensor([[0.6, 0.3]])
    masks, labels, scores = read_queries(logits, probs, config)
    quality = torch.tensor(2.0).sigmoid().item()
    assert labels == [0, 1]
    assert scores == pytest.approx([0.6 * quality, 0.3 * quality])
    assert masks.shape == (2, 4, 4) and bool((masks[:, :, :2]).all()) and not masks[:, :, 2:].any()
    assert read_queries(logits, torch.tensor([[0.6, 0.04]]), config)[1] == [0]


# Merging


def view(mask: Bools, tile: tuple[int, int, int, int], score: float, label: int = 0) -> Detection:
    """The part of a full-size mask that a perfect network predicts in a tile."""
    part = np.zeros_like(mask)
    part[tile[0] : tile[2], tile[1] : tile[3]] = mask[tile[0] : tile[2], tile[1] : tile[3]]
    rows, cols = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    small = part[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    return Detection(small, int(rows[0]), int(cols[0]), label, score, (tile,))


@pytest.mark.parametrize("scores", list(itertools.permutations([0.9, 0.7, 0.5])))
def test_three_pieces_join_whatever_the_order_of_their_scores(scores: tuple[float, float, float]) -> None:
    mask = box((64, 128), 10, 5, 50, 120)
    pieces = [view(mask, (0, left, 64, left + 64), score) for left, score in zip((0, 32, 64), scores, strict=True)]
    merged = merge(pieces, TILES)
    assert len(merged) == 1
    assert merged[0].score == 0.9
    assert np.array_equal(full(merged[0], mask.shape), mask)


def test_pieces_of_different_objects_do_not_join() -> None:
    size = (64, 96)
    left, right = box(size, 10, 5, 30, 60), box(size, 34, 36, 54, 90)
    pieces = [
        view(left, (0, 0, 64, 64), 0.9),
        view(left, (0, 32, 64, 96), 0.8),
        view(right, (0, 0, 64, 64), 0.7),
        view(right, (0, 32, 64, 96), 0.6),
    ]
    merged = merge(pieces, TILES)
    assert [np.array_equal(full(d, size), m) for d, m in zip(merged, (left, right), strict=True)] == [True, True]


def test_of_duplicates_the_better_scored_stays() -> None:
    size = (64, 64)
    tile = (0, 0, 64, 64)
    better, worse = view(box(size, 10, 10, 30, 30), tile, 0.8), view(box(size, 10, 10, 30, 28), tile, 0.6)
    merged = merge([worse, better], TILES)
    assert len(merged) == 1 and merged[0].score == 0.8 and merged[0].mask.shape == (20, 20)
    loose = dataclasses.replace(TILES, nms_iou=0.95)
    assert len(merge([worse, better], loose)) == 2


def test_an_object_across_many_tiles_in_both_directions_is_whole() -> None:
    size = (220, 220)
    mask = disc(size, 110, 110, 95)
    for shared in (8, 16, 32):
        config = dataclasses.replace(TILES, overlap=shared)
        found = run(ColorNet([(200,)], [0]), [scene(size, [(mask, 200)])], config)[0]
        assert len(found) == 1, shared
        assert overlap(full(found[0], size), mask) > 0.95


def test_an_edge_cut_off_by_the_better_scored_tile_is_put_back() -> None:
    mask = box((64, 96), 10, 28, 50, 68)
    merged = merge([view(mask, (0, 0, 64, 64), 0.9), view(mask, (0, 32, 64, 96), 0.8)], TILES)
    assert len(merged) == 1
    assert np.array_equal(full(merged[0], mask.shape), mask)


@pytest.mark.parametrize("scores", [(0.9, 0.6), (0.6, 0.9)])
def test_union_continues_the_better_mask_only_out_of_its_sight(scores: tuple[float, float]) -> None:
    size = (64, 96)
    left = view(box(size, 10, 20, 30, 80), (0, 0, 64, 64), scores[0])
    right = view(box(size, 8, 20, 34, 80), (0, 32, 64, 96), scores[1])
    better, other = (left, right) if scores[0] > scores[1] else (right, left)
    joined = union(left, right)
    assert np.array_equal(full(joined, size), full(better, size) | (full(other, size) & ~box(size, *better.tiles[0])))
    assert joined.score == 0.9 and set(joined.tiles) == {(0, 0, 64, 64), (0, 32, 64, 96)}


def test_a_large_image_is_zoomed_in_parts_to_the_same_bits() -> None:
    small = torch.randint(0, 256, (3, 341, 337), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    image = small.repeat(1, 10, 10)
    whole = F.interpolate(image[None].float(), size=(1023, 1011), mode="bilinear", antialias=True)[0]
    assert torch.equal(zoomed(image, 0.3), whole.round().clamp(0, 255).to(torch.uint8))
