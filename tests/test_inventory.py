"""The summary that a run prints of its data before training, and the limits derived from them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.copies import copies
from sskd_fast.data.derived import Limits, crop_counts, natural_detections, natural_queries, natural_zoom, resolve_views
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.inventory import Objects, count_objects, inventory
from sskd_fast.data.views import ViewsConfig
from sskd_fast.models.inference import InferenceConfig, PredictConfig
from sskd_fast.report.html import page
from sskd_fast.report.run_folder import RunFolder
from sskd_fast.run.sources import target_sources
from sskd_fast.settings import derived_settings
from sskd_fast.yaml_settings import load_config


@pytest.fixture
def coco(make_coco: Callable[..., Any], box_mask: Callable[..., Any]) -> CocoInstances:
    """Four images with 3, 1, 0 and 2 objects; of the last, one is drawn twice, and a mask and a crowd do not count."""
    builder = make_coco()
    for number, count in enumerate((3, 1, 0, 1)):
        image = builder.image((20 + number, 30))
        for place in range(count):
            builder.instance(image, box_mask(20 + number, 30, 4 * place, 0, 4 * place + 3, 5))
    builder.instance(4, box_mask(23, 30, 0, 0, 3, 5))
    builder.instance(4, box_mask(23, 30, 0, 0, 0, 0))
    builder.instance(4, box_mask(23, 30, 9, 9, 12, 12), iscrowd=1)
    return CocoInstances(builder.write(), builder.images)


def test_objects_are_counted_without_crowds_and_empty_masks(coco: CocoInstances) -> None:
    objects = count_objects(coco)
    assert (objects.counts, objects.empty_masks, objects.repeated) == ((3, 1, 0, 2), 1, 1)
    assert (objects.median, objects.most, objects.areas) == (1.5, 3, (15.0,) * 6)


def test_the_inventory_says_what_is_there_in_ten_lines(coco: CocoInstances, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    shutil.copy(coco.records[0].path, plain / "copy.png")
    (plain / "notes.txt").touch()
    first, second = (Image.new("L", (90, 80), value) for value in (0, 9))
    first.save(plain / "stack.tif", save_all=True, append_images=[second])
    sets = {"labelled": coco, "validation": coco.subset([1, 3]), "unlabelled": ImageFolder(plain)}
    objects = {name: count_objects(coco if name == "labelled" else coco.subset([1, 3])) for name in list(sets)[:2]}
    assert inventory(sets, objects, detections=100, queries=16) == [
        "labelled images: 4, 1 without an object; 6 objects of 1 class",
        "objects on a labelled image: 1.5 in the median, 3 at most; the model finds up to 100 (--max-detections) and "
        "looks for 16 in each crop (--num-queries)",
        "validation images: 2, 1 without an object; 3 objects, 3 at most on one",
        "unlabelled images: 2",
        "sizes (height x width): 20 x 30 the smallest, 22 x 30 in the median, 80 x 90 the largest",
        f"{plain}: 1 passed over: not images: 1 (.txt 1)",
        "pages: 1 file holds several pages or frames (stack.tif 2): only the first is taken",
        "masks dropped: 1 mask without a pixel",
        "duplicates: 1 image file with the content of another one, 1 object drawn twice",
    ]


def test_files_are_duplicates_only_if_all_their_bytes_are_the_same(tmp_path: Path) -> None:
    start = bytes(5000)
    contents = {"a": start + b"1", "b": start + b"2", "c": start + b"1", "d": start, "e": start + b"1"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert len(copies(tmp_path / name for name in "abcde")) == 2
    assert not copies([tmp_path / "a", tmp_path / "a", tmp_path / "gone"])


@pytest.mark.parametrize(("most", "expected"), [(0, 100), (66, 100), (67, 150), (395, 600), (9000, 2000)])
def test_detections_leave_room_above_the_fullest_image(most: int, expected: int) -> None:
    assert natural_detections([1, most]) == expected


@pytest.mark.parametrize(
    ("in_crop", "expected"),
    [([], 16), ([2.0], 16), ([20.2] * 3, 41), ([1.0] * 19 + [140.0] * 2, 280), ([1.0] * 58 + [380.0] * 2, 16),
     ([500.0], 300)],
)  # fmt: skip
def test_queries_are_twice_the_objects_of_a_crowded_crop(in_crop: list[float], expected: int) -> None:
    assert natural_queries(in_crop) == expected


def test_a_limit_that_objects_exceed_is_named_with_its_flag() -> None:
    limits = Limits(100, 100, 300)
    assert limits.warnings({"labelled": Objects((5, 7, 100))}, {"labelled": [5.0, 7.0, 100.0]}) == []
    labeled, val = "labelled images show 380 objects in the median and 395", "validation images show 200 objects in the"
    kept = "and 100 detections of an image are kept: the other objects count as missed. Add --max-detections 1050."
    objects = {"labelled": Objects((100, 380, 395)), "validation": Objects((0, 200, 700))}
    assert limits.warnings(objects, {"labelled": [100.0, 180.4, 90.0], "validation": [101.0, 210.0]}) == [
        f"{labeled} at most, {kept}",
        f"{val} median and 700 at most, {kept}",
        f"{labeled} at most, and 300 become pseudo-labels: the others are taught as background. Add "
        "pseudo_labels.max_per_image=600.",
        "1 of 3 labelled images show more objects in a crop than its 100 queries can find, about 180 in the fullest. "
        "Add --num-queries 410, or take a smaller --crop.",
        "2 of 3 validation images show more objects in a crop than its 100 queries can find, about 210 in the fullest. "
        "Add --num-queries 410, or take a smaller --crop.",
    ]


def test_the_cure_of_a_limit_goes_beyond_what_a_run_takes_by_itself() -> None:
    crowded = {"labelled": Objects((3000,))}
    first, second = Limits(16, natural_detections([3000]), 2000).warnings(crowded, {"labelled": [10.0]})
    assert (
        "2000 detections of an image are kept: the other objects count as missed. Add --max-detections 4500, or cut the"
        in first
    )
    assert second.endswith("Add pseudo_labels.max_per_image=4500.")


@pytest.mark.parametrize(
    ("dense", "of", "queries", "words"),
    [(0, 4, 16, ""), (4, 40, 80, ""),
     (1, 40, 16, "1 of 40 labelled images show more objects in a crop than its 16 queries can find, about 40 in the")],
)  # fmt: skip
def test_a_dense_image_counts_wherever_it_stands(
    dense: int, of: int, queries: int, words: str, make_coco: Callable[..., Any]
) -> None:
    builder = make_coco()
    for number in range(of):
        image = builder.image((64, 64))
        for place in range(1 if number < of - dense else 40):
            builder.instance(image, {"size": [64, 64], "counts": [place, 1, 4095 - place]})
    for _ in range(2):
        found = derived_settings(load_config([]), CocoInstances(builder.write(), builder.images), None)
        assert (found.limits.queries, found.limits.detections) == (queries, 100)
        assert len(found.warnings) == bool(words) and words in "".join(found.warnings)
        builder.content["images"].reverse()


def test_zoom_crop_and_queries_do_not_depend_on_the_order_of_the_images(
    make_coco: Callable[..., Any], box_mask: Callable[..., Any]
) -> None:
    builder = make_coco()
    for number in range(210):
        side = 64 if number < 205 else 128
        image = builder.image((side, side))
        if number >= 205:
            builder.instance(image, box_mask(128, 128, 4, 4, 100, 100))
    first, last = (
        CocoInstances(builder.write(), builder.images).subset(ids) for ids in (range(1, 211), range(210, 0, -1))
    )
    for source in (first, last):
        objects = count_objects(source)
        assert natural_zoom(objects) == pytest.approx(0.25)
        assert resolve_views(ViewsConfig(), source, 1.0).size == (64, 64)
        assert resolve_views(ViewsConfig(), source.subset(range(200, 211)), 1.0).size == (64, 64)
    views = resolve_views(ViewsConfig(), first, 1.0)
    assert (
        crop_counts(first, count_objects(first), views, 1.0)
        == crop_counts(last, count_objects(last), views, 1.0)
        == [0.25] * 5
    )


def test_detections_come_from_the_data_unless_they_are_set() -> None:
    assert PredictConfig().resolved((64, 64), 1.0).max_detections == 100
    assert PredictConfig().resolved((64, 64), 1.0, 600).max_detections == 600
    assert PredictConfig(max_detections=50).resolved((64, 64), 1.0, 600).max_detections == 50
    with pytest.raises(ValueError, match="max_detections=0: expected at least 1"):
        InferenceConfig((64, 64), max_detections=0)


def test_a_run_takes_its_limits_from_crowded_images_and_warns_of_lower_ones(
    make_coco: Callable[..., Any], box_mask: Callable[..., Any], tmp_path: Path
) -> None:
    places = [(y, x) for y in range(0, 64, 4) for x in range(0, 64, 4)]
    settings = []
    for name, images in (("labeled", 3), ("val", 1), ("plain", 1)):
        builder = make_coco(name)
        for _ in range(images):
            image = builder.image((64, 64), image_id=len(settings) * 10 + len(builder.content["images"]) + 1)
            for y, x in places[: 256 if name == "val" else 128]:
                builder.instance(image, box_mask(64, 64, y, x, y + 3, x + 3))
        key = "images" if name == "labeled" else f"{name}_images"
        settings += [f"data.{name}={builder.write()}", f"data.{key}={builder.images}"]
    settings = [*settings[:4], settings[5].replace("plain_images", "unlabeled")]
    taken = target_sources(load_config([], settings), tmp_path / "taken")
    assert (taken.num_queries, taken.detections) == (256, 400) and "256 queries, 400 detections" in taken.summary("x")
    assert not any("--max-detections" in warning for warning in taken.warnings)
    limited = ["predict.max_detections=100", "num_queries=50", "pseudo_labels.max_per_image=120"]
    given = target_sources(load_config([], [*settings, *limited]), tmp_path / "given")
    assert (given.num_queries, given.detections) == (50, 100)
    flags = ("Add --max-detections 400.", "Add pseudo_labels.max_per_image=200.", "Add --num-queries 512, or take")
    assert [any(flag in warning for warning in given.warnings) for flag in flags] == [True] * 3
    kept = "256 at most, and 100 detections of an image are kept"
    assert any(warning.startswith("validation images") and kept in warning for warning in given.warnings)
    assert (
        "128 in the median, 128 at most, 256 on a validation image; the model finds up to 100 (--max-detections)"
        in given.inventory[1]
    )


def test_the_report_shows_the_inventory_of_the_last_start(tmp_path: Path) -> None:
    log = [{"event": "inventory", "lines": lines} for lines in (["an earlier start"], ["sizes: 1 < 2", "more"])]
    text = page(RunFolder(tmp_path, {"rows": []}, log, None, {}))
    assert (
        "<section><h2>Data</h2><ul><li>sizes: 1 &lt; 2</li><li>more</li></ul></section>" in text
        and "earlier" not in text
    )
    assert "<h2>Data</h2>" not in page(RunFolder(tmp_path, {"rows": []}, [], None, {}))
