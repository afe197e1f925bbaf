"""Weak and strong views: the same geometry, aligned masks, padding, crowds, and the photometry against torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.photometry import color_twist, gaussian_blur, to_grey
from sskd_fast.data.views import Views, draw_views

PLAIN = {"scale": (1.0, 1.0), "hflip": False, "strong_color": (0.0, 0.0, 0.0, 0.0), "grayscale": 0.0, "blur_p": 0.0}


def drawn_as(size, **settings):
    """Views without vertical flips, turns and weak colours, if a test sets nothing else."""
    quiet = {"vflip": False, "rot90": False, "weak_color": 0.0, "min_pixels": 8}
    return Views(size, **{**quiet, **settings})


@pytest.fixture
def blob(make_coco):
    """One image whose white pixels are its only instance: not symmetric under any flip or quarter turn."""
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:50, 15:30] = True
    mask[35:50, 30:65] = True
    coco = make_coco()
    coco.instance(coco.image(np.where(mask, 255, 0).astype(np.uint8)), mask)
    return CocoInstances(coco.write(), coco.images)


@pytest.fixture
def scene(make_coco, box_mask):
    """One image of random colours with two instances and a crowd region."""
    coco = make_coco(classes={1: "a", 2: "b"})
    image = coco.image((32, 32))
    coco.instance(image, box_mask(32, 32, 2, 2, 12, 12))
    coco.instance(image, box_mask(32, 32, 20, 20, 23, 22), category_id=2)
    coco.instance(image, box_mask(32, 32, 0, 16, 10, 32), iscrowd=1)
    return CocoInstances(coco.write(), coco.images)


def test_a_view_without_any_change_is_the_image(scene):
    weak, strong, valid, instances = draw_views(scene, 0, drawn_as((32, 32), **PLAIN, min_pixels=1), 0)
    sample = scene[0]
    assert torch.equal(weak, sample.image.float() / 255) and weak.dtype == torch.float32
    torch.testing.assert_close(strong, weak)
    assert torch.equal(instances.masks, sample.instances.masks[:2]) and instances.labels.tolist() == [0, 1]
    assert torch.equal(valid, ~sample.instances.masks[2])


def test_crowd_regions_are_no_instances_and_not_valid(scene):
    _, _, valid, instances = draw_views(scene, 0, drawn_as((32, 32), **PLAIN, min_pixels=1), 0)
    assert len(instances) == 2 and not instances.crowd.any()
    assert int((~valid).sum()) == 160


def test_small_remainders_are_neither_object_nor_background(scene):
    found = [draw_views(scene, 0, drawn_as((32, 32), **PLAIN, min_pixels=n), 0)[2:] for n in (6, 7, 100, 101)]
    assert [len(instances) for _, instances in found] == [2, 1, 1, 0]
    # 160 pixels of the crowd; then the 6 of the small instance too, then the 100 of the large one.
    assert [int((~valid).sum()) for valid, _ in found] == [160, 166, 166, 266]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size", [(48, 48), (96, 96), (64, 64)])
def test_image_and_masks_stay_aligned_under_every_geometry(blob, seed, size):
    views = drawn_as(size, scale=(0.6, 1.6), vflip=True, rot90=True, min_pixels=1)
    weak, strong, valid, instances = draw_views(blob, 0, views, seed)
    assert weak.shape == strong.shape == (3, *size) and valid.shape == size
    shown = instances.masks.any(dim=0) if len(instances) else torch.zeros(size, dtype=torch.bool)
    # A pixel on an edge is half covered at the least, one on a corner a quarter: beyond that the mask decides.
    assert shown[weak[0] > 0.76].all() and not shown[weak[0] < 0.24].any()
    assert not shown[~valid].any() and not weak[:, ~valid].any() and not strong[:, ~valid].any()


def test_both_views_share_their_geometry(blob):
    views = drawn_as((64, 64), scale=(0.6, 1.6), rot90=True, strong_color=(0, 0, 0, 0), grayscale=0, blur_p=0)
    for seed in range(10):
        weak, strong, _, _ = draw_views(blob, 0, views, seed)
        torch.testing.assert_close(strong, weak)


def test_every_orientation_occurs(blob):
    views = drawn_as((60, 60), **{**PLAIN, "hflip": True}, vflip=True, rot90=True)
    seen = set()
    for seed in range(80):
        mask = draw_views(blob.subset([1]), 0, views, seed)[3].masks[0]
        quarter = [bool(mask[10:20].float().mean() > mask[40:50].float().mean())]
        quarter.append(bool(mask[:, 10:20].float().mean() > mask[:, 40:50].float().mean()))
        seen.add(tuple(quarter))
    assert len(seen) == 4


def test_image_smaller_than_the_view_is_padded_with_invalid_zeros(scene):
    weak, strong, valid, instances = draw_views(scene, 0, drawn_as((40, 50), **PLAIN, min_pixels=1), 3)
    rows, columns = valid.any(1).nonzero().flatten(), valid.any(0).nonzero().flatten()
    assert int(valid.sum()) == 32 * 32 - 160
    assert (rows[-1] - rows[0], columns[-1] - columns[0]) == (31, 31)
    padding = torch.ones_like(valid)
    padding[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = False
    assert not weak[:, padding].any() and not valid[padding].any()
    assert instances.masks.shape == (2, 40, 50) and int(instances.masks[0].sum()) == 100
    torch.testing.assert_close(strong, weak)


def test_views_are_a_pure_function_of_their_seed(scene):
    views = drawn_as((24, 24), rot90=True, weak_color=0.2, noise=0.1)
    first, second, other = (draw_views(scene, 0, views, seed) for seed in (7, 7, 8))
    for a, b in zip(first[:3], second[:3], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(first[3].masks, second[3].masks)
    assert not torch.equal(first[0], other[0])


def test_values_stay_in_range_and_the_weak_view_changes_mildly(scene):
    for seed in range(20):
        weak, strong, _, _ = draw_views(scene, 0, drawn_as((32, 32), weak_color=0.1, noise=0.3), seed)
        for view in (weak, strong):
            assert float(view.min()) >= 0 and float(view.max()) <= 1 and view.is_contiguous()
    views = drawn_as((32, 32), **PLAIN, weak_color=0.1)
    changed = draw_views(scene, 0, views, 1)[0]
    difference = (changed - scene[0].image / 255).abs().max()
    assert 0 < float(difference) < 0.2


def test_shares_of_grey_and_flipped_views_are_as_asked(scene):
    views = drawn_as((32, 32), **{**PLAIN, "hflip": True, "grayscale": 0.3})
    grey = flipped = 0
    for seed in range(300):
        weak, strong, _, _ = draw_views(scene, 0, views, seed)
        grey += bool(torch.allclose(strong[0], strong[1]))
        flipped += bool(torch.equal(weak.flip(-1), scene[0].image / 255))
    assert 60 <= grey <= 120 and 120 <= flipped <= 180


def test_unlabelled_images_give_views_without_instances(blob):
    weak, _, valid, instances = draw_views(ImageFolder(blob.images_dir), 0, drawn_as((40, 40), scale=(1, 1)), 0)
    assert weak.shape == (3, 40, 40) and bool(valid.all())
    assert instances.masks.shape == (0, 40, 40) and len(instances) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (2, 8)}, "at least 3 x 3"),
        ({"size": (8, 8), "scale": (1.2, 0.8)}, "smallest <= largest zoom"),
        ({"size": (8, 9), "rot90": True}, "quarter turns need square views"),
        ({"size": (8, 8), "blur": (0.0, 2.0)}, "standard deviation"),
        ({"size": (8, 8), "strong_color": (1.4, 0.4, 0.4, 0.1)}, "expected changes in"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        drawn_as(**settings)


def midrange(seed=0):
    """Colours far enough from black and white that no step of the reference clamps."""
    return 0.35 + 0.2 * torch.rand(3, 17, 23, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
def test_color_steps_agree_with_torchvision(factor):
    image = midrange()
    for name in ("brightness", "contrast", "saturation"):
        expected = getattr(reference, f"adjust_{name}")(image, factor)
        torch.testing.assert_close(color_twist(image, **{name: factor}), expected, atol=2e-4, rtol=0)
    chained = reference.adjust_saturation(
        reference.adjust_contrast(reference.adjust_brightness(image, 1.1), factor), 0.7
    )
    combined = color_twist(image, brightness=1.1, contrast=factor, saturation=0.7)
    torch.testing.assert_close(combined, chained, atol=2e-4, rtol=0)


def test_hue_permutes_the_channels_at_thirds_and_leaves_grey_alone():
    image = midrange()
    torch.testing.assert_close(color_twist(image, hue=1 / 3), image[[2, 0, 1]], atol=1e-5, rtol=0)
    torch.testing.assert_close(color_twist(image, hue=1 / 3), reference.adjust_hue(image, 1 / 3), atol=1e-4, rtol=0)
    grey = image[:1].expand(3, -1, -1)
    torch.testing.assert_close(color_twist(grey, hue=0.17), grey)
    back = color_twist(color_twist(image, hue=0.1), hue=-0.1)
    torch.testing.assert_close(back, image)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_and_grey_agree_with_torchvision(sigma):
    image = torch.rand(3, 17, 23, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(gaussian_blur(image, sigma), reference.gaussian_blur(image, [5, 5], [sigma, sigma]))
    torch.testing.assert_close(to_grey(image), reference.rgb_to_grayscale(image, 3), atol=3e-4, rtol=0)


def test_real_nuclei_crops_hold_whole_and_cut_nuclei(real_data):
    folder = real_data("nuclei_dsb2018")
    source = CocoInstances(folder / "annotations" / "instances_val.json", folder / "images", stretch=True)
    crowded = max(range(len(source)), key=lambda index: len(source.mask_layers(index).labels))
    for seed in range(4):
        weak, _, valid, instances = draw_views(source, crowded, drawn_as((96, 96), vflip=True, rot90=True), seed)
        assert weak.shape == (3, 96, 96) and len(instances) > 3
        assert int(instances.masks.sum(0).max()) == 1
        assert int(instances.masks.flatten(1).sum(1).min()) >= 8
        assert not instances.masks[:, ~valid].any()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [(32, 96), (70, 42)])
def test_crops_of_any_height_and_width_stay_aligned_at_any_scale(blob, seed, size):
    views = drawn_as(size, scale=(0.1, 2.0), fit=True, vflip=True, min_pixels=1)
    weak, strong, valid, instances = draw_views(blob, 0, views, seed)
    assert weak.shape == strong.shape == (3, *size) and instances.masks.shape[1:] == valid.shape == size
    shown = instances.masks.any(dim=0) if len(instances) else torch.zeros(size, dtype=torch.bool)
    assert not shown[~valid].any() and not weak[:, ~valid].any()
    # Where many pixels fall into one, the mask of its centre and the mean of all agree to half a pixel around edges.
    assert (shown.float() - weak[0]).abs().mean() < 0.12


@pytest.mark.parametrize(("scale", "expected"), [(1.0, (60, 80)), (0.5, (30, 40)), (2.0, (90, 80))])
def test_large_scale_jitter_is_relative_to_the_fitted_image(blob, scale, expected):
    """An image of 60 x 80 just fits into 90 x 80 at its own size; twice that size fills the crop."""
    views = drawn_as((90, 80), **{**PLAIN, "scale": (scale, scale)}, fit=True)
    _, _, valid, _ = draw_views(blob, 0, views, 0)
    rows, columns = valid.any(dim=1), valid.any(dim=0)
    assert (int(rows.sum()), int(columns.sum())) == expected and bool(valid[rows][:, columns].all())
