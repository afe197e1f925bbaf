"""Labels of annotation tools with values of the wrong kind: `sskd check` names each, without a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sskd_fast.check.__main__ import main
from sskd_fast.data.errors import DataError
from sskd_fast.data.formats.table import READERS
from tests.format_files import labelme_mask, labelme_shape, picture, region, ring, task, write_tasks

POINTS = [[25, 25], [50, 25], [50, 50], [25, 50]]
DRAWN = region("polygonlabels", "cat", {"points": POINTS}, id="r1")
SQUARE = labelme_shape("cat", "polygon", POINTS)
POLYGON = '<polygon label="cat" points="1,1;9,1;9,9"></polygon>'
LONG = f"{'x' * 300}.png"


def said_of(labels: Path, format: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The output of a check of labels with one image, a.png, that finds problems."""
    images = labels.parent / "images"
    picture(images / "a.png")
    assert main([str(labels), "--images", str(images), "--format", format]) == 1
    return capsys.readouterr().out


def labelme_content(**fields: Any) -> dict[str, Any]:
    return {"shapes": [SQUARE], "imagePath": "a.png", "imageHeight": 48, "imageWidth": 64, **fields}


MASK = labelme_mask("cat", ring())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            labelme_content(shapes=[{**SQUARE, "group_id": []}]),
            "shapes[0] (cat): the group_id a list; expected a whole",
        ),
        (labelme_content(shapes=[{**SQUARE, "group_id": {}}]), "shapes[0] (cat): the group_id an object"),
        (labelme_content(shapes=[{**SQUARE, "shape_type": []}]), "shapes[0] (cat): the shape_type a list; expected"),
        (labelme_content(shapes=[{**SQUARE, "shape_type": ["a"]}]), "shapes[0] (cat): the shape_type a list; expected"),
        (
            labelme_content(shapes=[{**SQUARE, "shape_type": {"a": 1}}]),
            "the shape_type an object; expected one of poly",
        ),
        (labelme_content(shapes=None), "a JSON object in which 'shapes' is null; expected LabelMe's JSON object"),
        (labelme_content(imagePath=7), "a JSON object in which 'imagePath' is 7"),
        (labelme_content(imagePath=""), "imagePath: the image name is an empty text; expected a text"),
        (labelme_content(imagePath=LONG), "which has a part of 304 bytes; expected at most 255"),
        (labelme_content(shapes=[{**SQUARE, "points": [[10**400, 1], [2, 2], [3, 3]]}]), "the points [[1000"),
        (labelme_content(shapes=[{**MASK, "mask": None}]), "a mask with no picture (null); expected a PNG"),
        (labelme_content(shapes=[{**MASK, "mask": "AAAA"}]), "a mask that cannot be read (no picture)"),
        (labelme_content(shapes=[{**MASK, "points": [[5, 4], [9, 9]]}]), "(height x width) from (5.0, 4.0) to (9.0, 9"),
    ],
)
def test_labelme_values_of_the_wrong_kind_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, words: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    said = said_of(path, "labelme", capsys)
    assert f"{path}: " in said and words in said


def with_region(**fields: Any) -> dict[str, Any]:
    return task(1, "a.png", [{**DRAWN, **fields}])


def with_annotations(value: Any) -> dict[str, Any]:
    return task(1, "a.png", [], annotations=value)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (with_annotations(None), "task 1: `annotations` is null; expected a list of objects"),
        (with_annotations(3), "task 1: `annotations` is 3; expected a list of objects"),
        (with_annotations([101]), "task 1: `annotations` holds 101; expected a list of objects"),
        (with_annotations([{"id": 1, "result": None}]), "task 1: `result` is null; expected a list of objects"),
        (task(1, "a.png", [None]), "task 1: `result` holds null; expected a list of objects"),
        (task(1, "a.png", ["text"]), "task 1: `result` holds the text 'text'; expected a list of objects"),
        (with_region(value=None), "task 1, result[0]: `value` is null; expected an object with the points"),
        (with_region(value=[]), "task 1, result[0]: `value` is a list; expected an object with the points"),
        (with_region(id=["r"]), "task 1, result[0]: `id` is a list; expected a text"),
        (with_region(type=["polygonlabels"]), "task 1, result[0]: `type` is a list; expected the type of the region"),
        (with_region(value={"points": None, "polygonlabels": ["cat"]}), "region r1 (polygonlabels): the points None"),
        (with_region(value={"points": [[10**400, 1]] * 3, "polygonlabels": ["cat"]}), "the points [[1000"),
        (with_region(image_rotation="turned"), "`image_rotation` is the text 'turned'; expected 0 degrees"),
        (with_region(image_rotation="90"), "a region on an image turned by 90 degrees; expected 0 degrees"),
        (task(1, LONG, [DRAWN]), "task 1: the image name 'xxx"),
        ("text", "the JSON"),
        (
            with_region(value={"points": [[0.1, 0.1], [0.5, 0.1], [0.5, 1]], "polygonlabels": ["cat"]}),
            "all points lie between 0 and 1; expected percent of the width and the height",
        ),
    ],
)
def test_label_studio_values_of_the_wrong_kind_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], made: Any, words: str
) -> None:
    sound = task(2, "a.png", [DRAWN])
    path = write_tasks(tmp_path / "a.json", [made, sound] if made == "text" else [made])
    said = said_of(path, "label_studio", capsys)
    assert f"{path}: " in said and words in said


@pytest.mark.parametrize("text", ["//[note] see", "http://[internal]/x", "http://[internal]/x.png"])
def test_label_studio_text_that_is_no_address_is_no_file(tmp_path: Path, text: str) -> None:
    picture(tmp_path / "images" / "a.png")
    path = write_tasks(tmp_path / "a.json", [task(1, "", [DRAWN], data={"image": "a.png", "note": text})])
    assert main([str(path), "--images", str(tmp_path / "images"), "--format", "label_studio"]) == 0


@pytest.mark.parametrize(
    ("head", "image", "words"),
    [
        (
            'encoding="gb2312"',
            'name="a.png"',
            "an encoding that cannot be read (multi-byte encodings are not supported)",
        ),
        ('encoding="martian"', 'name="a.png"', "an encoding that cannot be read (unknown encoding: martian)"),
        ("", "", "image 0 (None): the image name is null; expected a text"),
        ("", 'name=""', "image 0 (): the image name is an empty text"),
        ("", f'name="{LONG}"', "which has a part of 304 bytes; expected at most 255"),
    ],
)
def test_cvat_files_that_cannot_be_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str, image: str, words: str
) -> None:
    path = tmp_path / "a.xml"
    opening = f'<?xml version="1.0" {head}?><annotations><image id="0" {image} width="64" height="48">'
    path.write_text(f"{opening}{POLYGON * 3}</image></annotations>")
    said = said_of(path, "cvat", capsys)
    assert f"1 problem:\n    1. {path}: " in said and words in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"annotations": None}, "a JSON object in which 'annotations' is null; expected"),
        ({"annotations": {}, "images": 1}, "a JSON object in which 'images' is 1 and"),
        ({f"photo {n}": {} for n in range(3000)}, "a JSON object with ['photo 0', 'photo 1', 'photo 10', "),
        ({}, "an empty JSON object; expected"),
        (None, "the JSON value null; expected"),
    ],
)
def test_json_of_no_format_is_described_in_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, words: str
) -> None:
    path = tmp_path / "a.json"
    sound: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    path.write_text(json.dumps(sound | content if content and len(content) < 3 else content))
    said = said_of(path, "coco", capsys)
    assert words in said and "Export the annotations in COCO's instance format" in said and len(said) < 800


@pytest.mark.parametrize(("format", "suffix"), [("labelme", ".json"), ("label_studio", ".json"), ("cvat", ".xml")])
def test_a_folder_without_label_files_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str, suffix: str
) -> None:
    labels = tmp_path / "labels"
    (labels / ".hidden").mkdir(parents=True)
    (labels / ".hidden" / f"a{suffix}").write_text("{}")
    said = said_of(labels, format, capsys)
    assert f"{labels}: no file {suffix} in the folder; expected label files that end in {suffix}. " in said
    with pytest.raises(DataError, match=f"none: the file or folder does not exist; expected label files .*{suffix}"):
        READERS[format](tmp_path / "none", tmp_path / "images", ())


def test_a_folder_for_a_file_is_called_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels").mkdir()
    said = said_of(tmp_path / "labels", "coco", capsys)
    assert "labels: it is a folder; expected a file: a JSON object with the lists" in said
