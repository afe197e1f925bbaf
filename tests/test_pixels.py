"""Image files: every mode and depth becomes 8-bit RGB, rotation, damage, intensity stretch, and the cache."""

from __future__ import annotations

import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from sskd_fast._env import allow_pixels
from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.errors import DataError
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.intensity import stretch_intensity, to_eight_bits
from sskd_fast.data.pixels import ByteBudgetCache, array_pixels, image_size, in_threads, page_count, read_pixels
from sskd_fast.data.pseudo_labeled import unlabeled


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("L", (90, 90, 90)), ("RGB", (10, 200, 30)), ("RGBA", (10, 200, 30)), ("P", (10, 200, 30)), ("LA", (90, 90, 90))],
)
def test_every_mode_becomes_rgb(tmp_path, mode, expected):
    colors = {"L": 90, "LA": (90, 7), "RGB": (10, 200, 30), "RGBA": (10, 200, 30, 5), "P": (10, 200, 30)}
    image = Image.new("RGB" if mode == "P" else mode, (6, 4), colors[mode])
    (image.convert("P", palette=Image.Palette.ADAPTIVE) if mode == "P" else image).save(tmp_path / "a.png")
    sample = ImageFolder(tmp_path)[0]
    assert sample.image.shape == (3, 4, 6) and sample.image.dtype == torch.uint8
    assert sample.image[:, 0, 0].tolist() == list(expected)


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (6, 4), (255, 0, 0, 0)).save(tmp_path / "a.tif")
    assert ImageFolder(tmp_path)[0].image[:, 0, 0].tolist() == [0, 255, 255]


def test_sixteen_bit_images_are_scaled_by_their_bit_depth(tmp_path):
    full = np.array([[0, 65535], [32768, 257]], dtype=np.uint16)
    Image.fromarray(full).save(tmp_path / "full.png")
    Image.fromarray(full // 16).save(tmp_path / "twelve.tif")
    assert read_pixels(tmp_path / "full.png").tolist() == [[0, 255], [128, 1]]
    assert read_pixels(tmp_path / "twelve.tif").tolist() == [[0, 255], [128, 1]]
    assert to_eight_bits(np.array([0.0, 0.5, 1.0, np.nan])).tolist() == [0, 128, 255, 0]
    for dtype in (np.float32, np.int32, np.uint32):
        assert to_eight_bits(np.array([0, 1 << 17, 1 << 18], dtype=dtype)).tolist() == [0, 128, 255]
        assert to_eight_bits(np.array([0, 65535], dtype=dtype)).tolist() == [0, 255]
    assert to_eight_bits(np.array([1, 65536], dtype=np.float64)).tolist() == [0, 255]


def test_arrays_of_one_and_four_channels_are_grey_and_rgb():
    pixels = np.arange(4 * 6 * 4, dtype=np.uint8).reshape(4, 6, 4)
    assert np.array_equal(array_pixels(pixels[..., :1]), pixels[..., 0])
    rgb = array_pixels(pixels)
    assert np.array_equal(rgb, pixels[..., :3]) and rgb.flags.c_contiguous
    deep = pixels.astype(np.uint16) * 256
    assert array_pixels(deep).shape == (4, 6, 3) and array_pixels(deep[..., :1], stretch=True).shape == (4, 6)
    for channels in (2, 5):
        with pytest.raises(ValueError, match=rf"found an array of shape \(4, 6, {channels}\), expected \(H, W\) or"):
            array_pixels(np.zeros((4, 6, channels), dtype=np.uint8))


def test_rotation_of_the_camera_is_applied_unless_the_annotations_were_made_without(tmp_path):
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    turned = read_pixels(path)
    assert image_size(path) == (6, 4) and turned.shape == (6, 4, 3) and turned[0, 3].tolist() == [255] * 3
    assert np.array_equal(read_pixels(path, (4, 6)), pixels) and image_size(path, (4, 6)) == (4, 6)


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_every_format_has_one_size_and_one_content(tmp_path, suffix, orientation):
    """In a picture that is shown upright, the corner at the top left is bright, the one at the top right grey."""
    upright = np.zeros((48, 72), dtype=np.uint8)
    upright[:16, :16], upright[:16, -16:] = 240, 120
    back = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose, 6: np.rot90,
            7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}  # fmt: skip
    stored = np.ascontiguousarray(back.get(orientation, np.array)(upright))
    exif, path = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[0x0112] = orientation
    Image.fromarray(stored).save(path, exif=exif)
    for size in (None, (48, 72)):
        assert image_size(path, size) == (48, 72)
        assert np.abs(read_pixels(path, size).astype(int) - upright).max() < 10
    if stored.shape != upright.shape:
        assert image_size(path, stored.shape) == stored.shape
        assert np.abs(read_pixels(path, stored.shape).astype(int) - stored).max() < 10


def test_floats_that_are_no_numbers_do_not_make_an_image_black(tmp_path):
    values = np.array([[0.0, 0.5], [1.0, np.inf]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "inf.tif")
    assert read_pixels(tmp_path / "inf.tif").tolist() == [[0, 128], [255, 255]]
    assert stretch_intensity(np.array([[np.nan, 0.0, -np.inf], [0.0, 8.0, np.inf]])).tolist() == [
        [0, 0, 0],
        [0, 255, 255],
    ]
    for name, array, words in (
        ("nan", np.full((2, 2), np.nan), "no value is a finite number; expected intensities of 0 and above"),
        ("low", np.array([[-3.0, 0.0]]), "values from -3 to 0; expected intensities of 0 and above: shift them"),
    ):
        Image.fromarray(array.astype(np.float32)).save(tmp_path / f"{name}.tif")
        with pytest.raises(DataError, match=rf"{name}\.tif: the image file cannot be read \({words}"):
            read_pixels(tmp_path / f"{name}.tif")


def test_damage_that_pillow_answers_with_other_errors_is_that_of_a_file(tmp_path):
    two = Image.new("RGB", (60, 40))
    two.save(tmp_path / "pages.tif", save_all=True, append_images=[two])
    content = bytearray((tmp_path / "pages.tif").read_bytes())
    (first,) = struct.unpack("<I", content[4:8])
    after = first + 2 + 12 * struct.unpack("<H", content[first : first + 2])[0]
    content[after : after + 4] = struct.pack("<I", len(content) + 100)  # where the second page begins
    (tmp_path / "pages.tif").write_bytes(content)
    assert page_count(tmp_path / "pages.tif") == 1 and read_pixels(tmp_path / "pages.tif").shape == (40, 60, 3)
    two.save(tmp_path / "a.dds")
    content = bytearray((tmp_path / "a.dds").read_bytes())
    content[76:92] = bytes(16)  # its pixel format
    (tmp_path / "a.dds").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.dds: the image file cannot be read \("):
        read_pixels(tmp_path / "a.dds")


def test_missing_damaged_and_wrong_sized_images_are_named(make_coco):
    coco = make_coco()
    for _ in range(3):
        coco.image((40, 40))
    (coco.images / "1.png").unlink()
    whole = (coco.images / "2.png").read_bytes()
    (coco.images / "2.png").write_bytes(whole[: len(whole) // 2])
    coco.content["images"][2]["width"] = 41
    source = CocoInstances(coco.write(), coco.images)
    for index, message in enumerate(
        [r"1.png: the image file does not exist", r"2.png: the image file cannot be read", r"3.png: .*40 x 40.*40 x 41"]
    ):
        with pytest.raises(DataError, match=message):
            source[index]


def test_images_of_any_size_are_read_and_pillows_limit_stays(tmp_path, monkeypatch):
    pixels = np.arange(600, dtype=np.uint16).astype(np.uint8).reshape(20, 30)
    for name in "abcdefgh":
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png")
    assert in_threads(image_size, [tmp_path / f"{name}.png" for name in "abcdefgh" * 20]) == [(20, 30)] * 160
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), pixels)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_an_image_above_the_limit_is_refused_with_the_setting_that_raises_it(tmp_path, monkeypatch):
    Image.new("1", (13400, 13400)).save(tmp_path / "large.png")
    assert image_size(tmp_path / "large.png") == (13400, 13400)
    Image.new("1", (16385, 16384)).save(tmp_path / "huge.png")
    with pytest.raises(
        DataError,
        match=r"huge\.png: the image has 16384 x 16385 pixels \(height x width\), 268,451,840 in all; expected at most "
        r"268,435,456\. Raise the limit, data\.max_pixels=268451840 of a run, --max-pixels of predict or SSKD_FAST_",
    ):
        read_pixels(tmp_path / "huge.png")
    monkeypatch.setenv("SSKD_FAST_MAX_PIXELS", "268451840")
    assert image_size(tmp_path / "huge.png") == (16384, 16385)
    allow_pixels(1000)
    with pytest.raises(DataError, match=r"large\.png: .* expected at most 1,000\."):
        read_pixels(tmp_path / "large.png")
    monkeypatch.setenv("SSKD_FAST_MAX_PIXELS", "many")
    with pytest.raises(DataError, match="SSKD_FAST_MAX_PIXELS: 'many'; expected a number of pixels"):
        image_size(tmp_path / "large.png")


def test_an_image_of_more_pixels_than_masks_have_is_to_be_cut(tmp_path):
    file = tmp_path / "a.bmp"
    Image.new("L", (8, 8)).save(file)
    content = bytearray(file.read_bytes())
    content[18:26] = struct.pack("<ii", 60_000, 60_000)
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        image_size(file)
    assert caught.value.problems[0].cure == (
        "Cut the image into tiles: masks of more than 2,147,483,647 pixels cannot be written."
    )


@pytest.mark.parametrize(
    ("content", "found", "cure"),
    [
        (b"", "it is empty", "Replace the file"),
        (b"\n<!DOCTYPE html><html>404</html>", "it is an HTML page", "Download the image again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "it is a pointer of Git LFS",
            "Fetch the images with `git lfs pull`.",
        ),
        (b"no image", "its content is of no known image format", "Replace the file"),
    ],
)
def test_files_that_are_no_images_are_told_apart(tmp_path, content, found, cure):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_pixels(tmp_path / "a.png")
    (problem,) = caught.value.problems
    assert problem.found == f"the image file cannot be read ({found})" and problem.cure.startswith(cure)


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_a_large_image_is_converted_in_strips_as_it_is_whole(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 311), dtype=np.uint8)
    tiled = np.tile(pixels, (17, 13))  # 5100 x 4043: more than a strip, and no whole number of them
    if mode == "I;16":
        Image.fromarray(tiled.astype(np.uint16) * 257).save(tmp_path / "a.tif")
        np.testing.assert_array_equal(read_pixels(tmp_path / "a.tif"), tiled)
        return
    image = Image.fromarray(tiled).convert(mode)
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(
        read_pixels(tmp_path / "a.tif"), np.asarray(image.convert("L" if mode == "L" else "RGB"))
    )


def test_an_unreadable_image_need_not_have_a_record(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"expected a readable image\. Replace the file, or leave the image out\.$"):
        read_pixels(tmp_path / "a.png")


def test_stretch_uses_the_whole_range_and_makes_objects_bright():
    rng = np.random.default_rng(3)
    image = rng.normal(100, 3, (50, 50))
    image[10:20, 10:20] += 50
    dark = stretch_intensity(image.astype(np.uint8))
    bright = stretch_intensity((255 - image).astype(np.uint8))
    for stretched in (dark, bright):
        assert stretched.dtype == np.uint8 and np.median(stretched) < 128
        assert stretched[10:20, 10:20].mean() > 200 and stretched.min() == 0 and stretched.max() == 255
    assert np.array_equal(stretch_intensity(np.full((4, 4), 9, dtype=np.uint8)), np.zeros((4, 4)))


def test_stretch_of_a_source_reaches_samples_and_keeps_the_depth_of_the_file(tmp_path):
    ramp = (1000 + np.arange(256)).reshape(16, 16).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    image = ImageFolder(tmp_path, stretch=True)[0].image
    assert len(image.unique()) > 200 and int(image.max()) == 255


def test_cache_stays_in_its_budget_and_forgets_the_oldest():
    cache = ByteBudgetCache(100)
    made = []

    def value(key, size):
        return cache.get(key, lambda: made.append(key) or np.zeros(size, dtype=np.uint8))

    for key in "abab":
        value(key, 40)
    assert made == ["a", "b"]
    value("c", 40)
    value("b", 40)
    assert made == ["a", "b", "c"] and cache.nbytes == 80
    value("a", 40)
    assert made == ["a", "b", "c", "a"]
    value("large", 101)
    assert cache.nbytes == 80 and len(cache) == 2
    assert len(pickle.loads(pickle.dumps(cache))) == 0


def test_a_decoded_image_is_kept_and_made_anew_when_its_file_changes(make_coco, tmp_path):
    coco = make_coco()
    coco.image((12, 16))
    path = coco.images / "1.png"
    plain = read_pixels(path)
    source = CocoInstances(coco.write(), coco.images, cache_bytes=0)
    source.decoded = tmp_path / "decoded"
    first = source.subset([1]).window(0, 2, 3, 4, 5).image
    np.testing.assert_array_equal(first.permute(1, 2, 0).numpy(), plain[2:6, 3:8])
    kept = list(source.decoded.rglob("*.npy"))
    assert len(kept) == 1 and not list(source.decoded.rglob("*.partial"))
    np.testing.assert_array_equal(np.load(kept[0]), plain)
    np.save(kept[0], plain[::-1])
    np.testing.assert_array_equal(unlabeled(source).pixels(0), plain[::-1])
    Image.fromarray(255 - plain).save(path)
    np.testing.assert_array_equal(source.pixels(0), 255 - plain)
    assert len(list(source.decoded.rglob("*.npy"))) == 2
