"""Odd and broken data sets are read with the right values, or rejected with a message on the fault."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.derived import natural_zoom
from sskd_fast.data.doctor import check_dataset
from sskd_fast.data.errors import DataError
from sskd_fast.data.inventory import count_objects
from sskd_fast.rle import encode_segmentation, pixels_of_runs, run_lengths
from tests.broken_sets import AREAS, BROKEN_SETS, Broken, sound_set, written
from tests.errors_page import PAGE, page


@pytest.mark.parametrize("broken", BROKEN_SETS, ids=lambda broken: broken.name)
def test_a_broken_set_is_taken_or_refused_as_the_table_says(broken: Broken, tmp_path: Path) -> None:
    coco = sound_set(tmp_path)
    file = written(coco, broken)
    if broken.refused:
        with pytest.raises(DataError, match=broken.refused) as caught:
            check_dataset(file, coco.images)
        assert all(problem.found and problem.expected and problem.cure for problem in caught.value.problems)
        return
    warnings = check_dataset(file, coco.images)
    assert len(warnings) <= 2 and (bool(warnings) or not broken.warned)
    assert broken.warned or not warnings
    assert re.search(broken.warned, "\n".join(warnings))
    source = CocoInstances(file, coco.images)
    annotations = source.ground_truth()["annotations"]
    areas = list(broken.areas or AREAS)
    assert [a["area"] for a in annotations] == areas
    assert sum(a["iscrowd"] for a in annotations) == broken.crowd
    layers = [source.mask_layers(index) for index in range(len(source))]
    assert sum(int(layer.crowd.sum()) for layer in layers) == broken.crowd
    assert source.pixels(0).shape[:2] in ((40, 60), (60, 60))
    assert natural_zoom(count_objects(source)) == pytest.approx(min(1.0, 24 / np.sqrt(np.median(areas))))


def test_names_of_the_corpus_are_different() -> None:
    names = [broken.name for broken in BROKEN_SETS]
    assert len(set(names)) == len(names) >= 60


def test_the_zoom_comes_from_masks_whatever_areas_are_stated(tmp_path: Path) -> None:
    coco = sound_set(tmp_path)
    for image in coco.content["images"]:
        image["id"] += 10
    coco.content["images"], coco.content["annotations"] = [], []
    image = coco.image((200, 200), image_id=20)
    coco.instance(image, [[10, 10, 90, 10, 90, 90, 10, 90]], area=1.0)
    assert natural_zoom(count_objects(CocoInstances(coco.write(), coco.images))) == pytest.approx(24 / 80)


def test_file_names_do_not_leave_the_folder_if_that_is_forbidden(tmp_path: Path) -> None:
    coco = sound_set(tmp_path)
    outside = tmp_path / "secret.png"
    outside.write_bytes((coco.images / "1.png").read_bytes())
    for name in ("../secret.png", str(outside), "link.png"):
        (coco.images / "link.png").unlink(missing_ok=True)
        (coco.images / "link.png").symlink_to(outside)
        coco.content["images"][0]["file_name"] = name
        file = coco.write()
        assert CocoInstances(file, coco.images).pixels(0).shape == (40, 60, 3)
        with pytest.raises(
            DataError, match=r"it leads out of the folder; expected files below .*images, as --confine .data.confine"
        ):
            CocoInstances(file, coco.images, confine=True)
        with pytest.raises(DataError, match="it leads out of the folder"):
            check_dataset(file, coco.images, confine=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("http://[::1/one.png", "http:/[::1/one.png: image 1: the image file does not exist"),
        ("1", "The most similar file there is 1.png: correct `file_name`"),
    ],
)
def test_names_without_a_file_are_missing_files(tmp_path: Path, name: str, words: str) -> None:
    coco = sound_set(tmp_path)
    coco.content["images"][0]["file_name"] = name
    with pytest.raises(DataError, match=re.escape(words)):
        check_dataset(coco.write(), coco.images)


def test_a_passed_check_is_remembered_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSKD_FAST_CACHE", str(tmp_path / "cache"))
    coco = sound_set(tmp_path / "set")
    coco.content["annotations"][0]["area"] = 1.0
    file = coco.write()
    first = check_dataset(file, coco.images)
    (kept,) = (tmp_path / "cache" / "checks").iterdir()
    kept.write_text('["remembered"]')
    assert len(first) == 1 and check_dataset(file, coco.images) == ["remembered"]
    whole = (coco.images / "2.png").read_bytes()
    (coco.images / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"2\.png: image 2: the image file cannot be read"):
        check_dataset(file, coco.images)
    (coco.images / "2.png").write_bytes(whole)
    coco.content["annotations"][0]["area"] = 400
    assert check_dataset(coco.write(), coco.images) == []
    monkeypatch.setenv("SSKD_FAST_MAX_PIXELS", "1000")
    with pytest.raises(DataError, match="2,400 in all; expected at most 1,000"):
        check_dataset(coco.write(), coco.images)


def test_a_damaged_image_of_the_same_size_and_time_is_checked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSKD_FAST_CACHE", str(tmp_path / "cache"))
    coco = sound_set(tmp_path / "set")
    file, image = coco.write(), coco.images / "2.png"
    assert check_dataset(file, coco.images) == []
    before, whole = image.stat(), image.read_bytes()
    image.write_bytes(whole[:200].ljust(len(whole), b"\0"))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (image.stat().st_size, image.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(DataError, match=r"2\.png: image 2: the image file cannot be read"):
        check_dataset(file, coco.images)


def test_a_misspelt_path_is_said_before_anything_is_read(tmp_path: Path) -> None:
    coco = sound_set(tmp_path)
    coco.file.write_text("{")
    words = r"instance\.json: the annotation file does not exist.*Correct the path \(perhaps .*instances\.json\)\."
    with pytest.raises(DataError, match=words):
        check_dataset(coco.file, coco.images, val=tmp_path / "instance.json")


def test_problems_of_one_cause_are_one_line(tmp_path: Path) -> None:
    coco = sound_set(tmp_path)
    for annotation in coco.content["annotations"]:
        annotation["iscrowd"] = "maybe"
    (coco.images / "2.png").unlink()
    with pytest.raises(DataError) as caught:
        check_dataset(coco.write(), coco.images)
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 problems found in the data:" and len(lines) == 3
    assert "2.png: image 2: the image file does not exist" in lines[1]
    assert lines[2].endswith(
        "5 more of this kind: annotation 2 of image 1, annotation 3 of image 2, "
        "annotation 4 of image 2, annotation 5 of image 3 and 1 more."
    )


@pytest.mark.parametrize(("key", "where"), [("name", "categories"), ("file_name", "images")])
def test_a_refused_record_is_no_problem_of_its_annotations(key: str, where: str, tmp_path: Path) -> None:
    coco = sound_set(tmp_path)
    coco.content[where][0][key] = None
    with pytest.raises(DataError) as caught:
        check_dataset(coco.write(), coco.images)
    assert [problem.found for problem in caught.value.problems] == [f"`{key}` is null"]


def test_a_file_in_place_of_a_folder_is_called_one(tmp_path: Path) -> None:
    coco = sound_set(tmp_path)
    image = coco.images / "1.png"
    words = rf"1\.png: it is a file; expected .*\. Give the folder of the images, such as {coco.images}\."
    for options in ({}, {"unlabeled": image}):
        with pytest.raises(DataError, match=words):
            check_dataset(coco.write(), coco.images if options else image, **options)


def test_more_objects_than_an_image_can_hold_are_a_problem_of_the_image(tmp_path: Path) -> None:
    coco = sound_set(tmp_path)
    coco.content["annotations"] += [coco.content["annotations"][3]] * 65_534
    file = coco.write()
    with pytest.raises(DataError) as caught:
        check_dataset(file, coco.images)
    words = f"{file}: image 2: 65536 instances on one image; expected at most 65535. Cut the image into tiles."
    assert [str(problem) for problem in caught.value.problems] == [words]
    for read in (CocoInstances.mask_layers, CocoInstances.annotations):
        with pytest.raises(DataError) as caught:
            read(CocoInstances(file, coco.images), 1)
        assert str(caught.value) == words


def test_a_vertex_beyond_the_image_leaves_its_pixels_alone() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        polygon = rng.uniform(-300, 340, 12).round(1).tolist()
        far = encode_segmentation([polygon], 40, 60)
        whole = coco_mask.merge(coco_mask.frPyObjects([polygon], 40, 60))
        mine, theirs = (set(pixels_of_runs(run_lengths(c["counts"])).tolist()) for c in (far, whole))
        assert len(mine ^ theirs) <= 0.03 * 40 * 60


def test_the_page_of_errors_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.errors_page"
