"""Predictions averaged over views: views come back exactly, agreement counts, masks and classes are means."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskd_fast.boxed_masks import Bools, mask_iou
from sskd_fast.models.augmented import IDENTITY, Augmentation, augmentations, fuse, predict_views
from sskd_fast.models.inference import Detection, InferenceConfig, predict
from sskd_fast.models.segmenter import Predictions, Segmenter

CONFIG = InferenceConfig(tile=(64, 64), overlap=32, score_floor=0.02)
SIZE = (40, 56)


class BrightNet(Segmenter):
    """Finds what is brighter than 0.5; one mask, class 0 where it lies in the tile's upper half, else class 1."""

    max_stride = 8

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(8.0))
        self.sizes: list[tuple[int, ...]] = []
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Predictions:
        self.sizes.append(tuple(images.shape[-2:]))
        self.batches.append(len(images))
        shown = F.avg_pool2d((images[:, :1] > 0.5).float(), 2)
        rows = torch.arange(shown.shape[-2]).view(1, 1, -1, 1) + 0.5
        middle = (shown * rows).sum((1, 2, 3)) / shown.sum((1, 2, 3)).clamp(min=1)
        upper = middle < shown.shape[-2] / 2
        classes = torch.full((len(images), 1, 3), -9.0)
        classes[:, 0, 0], classes[:, 0, 1] = torch.where(upper, 9.0, -9.0), torch.where(upper, -9.0, 9.0)
        return Predictions((2 * shown - 1) * self.sharpness, classes, shown, [], None)


def detection(box: tuple[int, int, int, int], score: float, label: int = 0, mask: Bools | None = None) -> Detection:
    top, left, bottom, right = box
    filled = np.ones((bottom - top, right - left), dtype=np.bool_) if mask is None else mask
    return Detection(filled, top, left, label, score, ((0, 0, *SIZE),))


def full(d: Detection, size: tuple[int, int] = SIZE) -> Bools:
    mask = np.zeros(size, dtype=np.bool_)
    mask[d.top : d.box[2], d.left : d.box[3]] = d.mask
    return mask


@pytest.mark.parametrize(("turns", "mirrored"), list(itertools.product(range(4), (False, True))))
def test_what_is_found_in_a_view_comes_back_to_its_place(turns: int, mirrored: bool) -> None:
    shape = np.zeros(SIZE, dtype=np.bool_)
    shape[5:9, 30:50], shape[9:20, 30:33] = True, True  # like no turn or reflection of itself
    view = Augmentation(turns, mirrored)
    seen = view.apply(torch.from_numpy(shape)[None])[0].numpy()
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    cut = seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    tile = (0, 0, seen.shape[0], seen.shape[1] // 2)
    found = Detection(cut, int(rows[0]), int(columns[0]), 1, 0.5, (tile,))
    back = view.undo(found, seen.shape, seen.shape)
    assert back is not None
    assert np.array_equal(full(back), shape)
    in_tile = np.zeros(seen.shape, dtype=np.bool_)
    in_tile[tile[0] : tile[2], tile[1] : tile[3]] = True
    top, left, bottom, right = back.tiles[0]
    of_tile = np.zeros(SIZE, dtype=np.bool_)
    of_tile[top:bottom, left:right] = True
    assert np.array_equal(view.apply(torch.from_numpy(of_tile)[None])[0].numpy(), in_tile)


@pytest.mark.parametrize(
    ("hflip", "vflip", "rot90", "count"),
    [(0, 0, 0, 1), (1, 0, 0, 2), (0, 1, 0, 2), (1, 1, 0, 4), (0, 0, 1, 4), (1, 0, 1, 8), (0, 1, 1, 8), (1, 1, 1, 8)],
)
def test_views_are_the_group_of_the_allowed_flips_and_turns(hflip: int, vflip: int, rot90: int, count: int) -> None:
    image = torch.arange(9).reshape(1, 3, 3)
    views = augmentations(99, [1.0], hflip=bool(hflip), vflip=bool(vflip), rot90=bool(rot90))
    seen = {tuple(view.apply(image).flatten().tolist()) for view in views}
    assert views[0] == IDENTITY[0] and len(views) == len(seen) == count
    steps = [image]
    reached = {tuple(image.flatten().tolist())}
    while steps:
        now = steps.pop()
        moves = [now.flip(-1)] * hflip + [now.flip(-2)] * vflip + [torch.rot90(now, 1, (-2, -1))] * rot90
        for move in moves:
            key = tuple(move.flatten().tolist())
            if key not in reached:
                reached.add(key)
                steps.append(move)
    assert seen == reached


def test_views_take_turns_at_the_zooms() -> None:
    views = augmentations(5, [1.0, 1.25], hflip=True, vflip=True, rot90=True)
    assert [view.zoom for view in views] == [1.0, 1.25, 1.0, 1.25, 1.0]


@pytest.mark.parametrize(
    ("count", "zooms", "message"), [(0, [1.0], "count=0"), (2, [], r"zooms=\[\]"), (2, [1.0, 0.0], "zooms=")]
)
def test_views_that_cannot_be_are_refused(count: int, zooms: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augmentations(count, zooms, hflip=True, vflip=True, rot90=True)


def test_score_is_the_mean_over_the_views_and_zero_where_one_is_silent() -> None:
    seen = [[detection((4, 4, 14, 14), 0.9)], [detection((4, 4, 14, 14), 0.5)], [], [detection((4, 4, 14, 14), 0.2)]]
    (found,) = fuse(seen, CONFIG)
    assert found.score == pytest.approx((0.9 + 0.5 + 0.0 + 0.2) / 4)
    assert np.array_equal(full(found), full(seen[0][0]))


def test_two_detections_of_a_view_on_one_object_count_once() -> None:
    seen = [[detection((4, 4, 14, 14), 0.8), detection((4, 4, 14, 13), 0.6)], [detection((4, 4, 14, 14), 0.4)]]
    (found,) = fuse(seen, CONFIG)
    assert found.score == pytest.approx((0.8 + 0.4) / 2)


def test_an_object_of_two_classes_comes_out_once_a_class_with_each_ones_share() -> None:
    seen = [[detection((4, 4, 14, 14), 0.9, 1)], [detection((4, 4, 14, 14), 0.6, 0)], [detection((4, 4, 14, 14), 0.6)]]
    first, second = fuse(seen, CONFIG)
    assert (first.label, second.label) == (0, 1)
    assert first.score == pytest.approx(1.2 / 3) and second.score == pytest.approx(0.9 / 3)


def test_mask_is_the_weighted_majority_and_is_cut_to_its_box() -> None:
    seen = [[detection((4, 4, 14, 14), 0.5)], [detection((4, 4, 14, 14), 0.4)], [detection((2, 4, 14, 14), 0.8)]]
    (found,) = fuse(seen, CONFIG)
    assert found.box == (4, 4, 14, 14)  # rows 2 and 3 have 0.8 of 1.7
    seen[2][0].score = 0.95
    assert fuse(seen, CONFIG)[0].box == (2, 4, 14, 14)  # 0.95 of 1.85


def test_objects_apart_stay_apart_and_the_best_comes_first() -> None:
    seen = [[detection((0, 0, 10, 10), 0.3), detection((0, 6, 10, 16), 0.7)], [detection((0, 6, 10, 16), 0.7)]]
    found = fuse(seen, CONFIG)
    assert [d.box for d in found] == [(0, 6, 10, 16), (0, 0, 10, 10)]
    assert mask_iou(*found) == pytest.approx(40 / 160)


def test_what_few_views_see_falls_under_the_floor() -> None:
    seen = [[detection((4, 4, 14, 14), 0.07)], [], [], []]
    assert fuse(seen, CONFIG) == []


@pytest.mark.parametrize("zoom", [1.0, 1.25, 0.75, 2.0])
def test_a_model_that_sees_the_same_in_every_view_gives_its_own_masks(zoom: float) -> None:
    image = torch.zeros((3, 48, 64), dtype=torch.uint8)
    image[:, 8:24, 8:20] = 255
    views = [Augmentation(turns, mirrored, zoom) for turns, mirrored in itertools.product(range(4), (False, True))]
    (found,) = predict_views(BrightNet(), [image], CONFIG, views)  # type: ignore[arg-type]
    truth = image[0].numpy() > 0
    seen = full(found[0], (48, 64))
    assert (seen & truth).sum() / (seen | truth).sum() > 0.9
    # BrightNet tells the classes by the half of the tile, so half of the views say one thing, half the other.
    assert {d.label for d in found} == {0, 1} and sum(d.score for d in found) == pytest.approx(0.995, abs=0.02)


@pytest.mark.parametrize("turns", range(4))
def test_turned_images_that_fit_another_tile_come_back_to_their_place(turns: int) -> None:
    """An image of 40 x 80 fits a tile of 32 x 64 at 0.8, turned at 0.4."""
    image = torch.zeros((3, 40, 80), dtype=torch.uint8)
    image[:, 10:30, 50:70] = 255
    config = replace(CONFIG, tile=(32, 64), overlap=0, fit=True)
    (found,) = predict_views(BrightNet(), [image], config, [Augmentation(turns)])
    truth = np.zeros((32, 64), dtype=np.bool_)
    truth[8:24, 40:56] = True
    assert mask_iou(found[0], Detection(np.ones((16, 16), dtype=np.bool_), 8, 40, 0, 1.0, ((0, 0, 32, 64),))) > 0.8
    seen = full(found[0], (32, 64))
    assert (seen & truth).sum() / (seen | truth).sum() > 0.8


def test_zoomed_views_are_seen_in_larger_tiles() -> None:
    net = BrightNet()
    image = torch.zeros((3, 64, 64), dtype=torch.uint8)
    predict_views(net, [image], CONFIG, [Augmentation(), Augmentation(2, zoom=1.25), Augmentation(0, True, 0.85)])  # type: ignore[arg-type]
    assert net.sizes == [(64, 64), (80, 80), (56, 56)]


def test_a_model_that_resizes_its_tiles_sees_a_zoomed_view_in_more_of_them() -> None:
    """In a larger tile, resized as every other, objects would be as large as without the zoom."""
    net, image = BrightNet(), torch.zeros((3, 64, 64), dtype=torch.uint8)
    net.input_size = (32, 32)
    predict_views(net, [image], CONFIG, [Augmentation(zoom=1.25)])
    assert net.batches == [4] and net.sizes == [(64, 64)]
    seen = Augmentation(zoom=1.25).seen(replace(CONFIG, overlap=16), net)
    assert (seen.tile, seen.overlap) == ((64, 64), 20), "objects are as much larger as the overlap"
    net.batches.clear()
    predict_views(net, [image], replace(CONFIG, fit=True), [Augmentation(zoom=1.25)])
    assert net.batches == [1], "what is to fit into a tile is not cut"


def test_the_image_alone_is_plain_prediction() -> None:
    image = torch.zeros((3, 64, 64), dtype=torch.uint8)
    image[:, 8:24, 8:20] = 255
    net = BrightNet()
    alone, plain = predict_views(net, [image], CONFIG, IDENTITY), predict(net, [image], CONFIG)  # type: ignore[arg-type]
    assert [[(d.box, d.label, d.score) for d in of_image] for of_image in alone] == [
        [(d.box, d.label, d.score) for d in of_image] for of_image in plain
    ]
    with pytest.raises(ValueError, match="views"):
        predict_views(net, [image], CONFIG, [])  # type: ignore[arg-type]
