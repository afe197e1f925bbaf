"""LabelMe: shapes, groups, masks, and messages on faulty files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sskd_fast.data.formats.labelme import read_labelme
from tests.format_files import (
    assert_masks,
    box,
    labelme_mask,
    labelme_shape,
    masks,
    picture,
    problems,
    ring,
    turned,
    write_labelme_file,
)


def test_labelme_shapes_and_groups(tmp_path: Path) -> None:
    corner = labelme_shape("cat", "polygon", [[0, 0], [8, 0], [8, 8], [0, 8]], group_id=3)
    shapes = [
        labelme_mask("dog", ring()),
        corner,
        labelme_shape("cat", "rectangle", [[64, 48], [50, 40]], group_id=3),
        labelme_shape("bird", "polygon", corner["points"], group_id=3),
        labelme_shape("cat", "circle", [[20, 20], [23, 24]]),
        labelme_shape("cat", "polygon", [[0, 0], [4, 0], [0, 4], [4, 4]], iscrowd=1, score=0.5),
    ]
    write_labelme_file(tmp_path / "labels" / "sub" / "ä.json", "..\\..\\images\\sub\\ä.png", shapes)
    write_labelme_file(tmp_path / "labels" / "b.json", "b.png", [])
    picture(tmp_path / "images" / "sub" / "ä.png")
    picture(tmp_path / "images" / "b.png")
    content = read_labelme(tmp_path / "labels", tmp_path / "images", ["dog"])
    assert [c["name"] for c in content["categories"]] == ["dog", "bird", "cat"]
    assert [image["file_name"] for image in content["images"]] == ["b.png", "sub/ä.png"]
    assert masks(content, "b.png") == []
    rows, columns = np.mgrid[:48, :64] + 0.5
    found = masks(content, "sub/ä.png")
    corners = box(0, 0, 8, 8)
    expected = [("dog", ring()), ("cat", corners | box(40, 50, 48, 64)), ("bird", corners)]
    assert_masks(found[:4], [*expected, ("cat", (rows - 20) ** 2 + (columns - 20) ** 2 <= 25)])
    assert (content["annotations"][4]["iscrowd"], content["annotations"][4]["score"]) == (1, 0.5)


def test_labelme_masks_may_have_a_pixel_more_or_end_at_the_border(tmp_path: Path) -> None:
    """LabelMe's own masks reach one pixel past the object, unless the image ends there."""
    shape = labelme_mask("cat", box(40, 50, 48, 64))
    shape["points"] = [[50, 40], [64, 48]]
    picture(tmp_path / "a.png")
    write_labelme_file(tmp_path / "a.json", "a.png", [shape])
    assert_masks(masks(read_labelme(tmp_path / "a.json", tmp_path)), [("cat", box(40, 50, 48, 64))])


def test_labelme_size_comes_from_the_image_if_the_file_does_not_state_it(tmp_path: Path) -> None:
    turned(tmp_path / "a.jpg")
    path = write_labelme_file(tmp_path / "a.json", "a.jpg", [labelme_shape("cat", "rectangle", [[0, 0], [64, 9]])])
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "imageHeight": None, "imageWidth": None}))
    assert_masks(masks(read_labelme(tmp_path, tmp_path)), [("cat", box(0, 0, 9, 64))])


def test_a_missing_labelme_image_is_expected_beside_its_file(tmp_path: Path) -> None:
    square = labelme_shape("cat", "rectangle", [[0, 0], [8, 8]])
    write_labelme_file(tmp_path / "labels" / "sub" / "a.json", "..\\images\\a.png", [square])
    content = read_labelme(tmp_path / "labels", tmp_path / "images")
    assert [image["file_name"] for image in content["images"]] == ["sub/a.png"]


def test_every_fault_of_labelme_files_is_named_at_once(tmp_path: Path) -> None:
    wrong_mask = labelme_mask("cat", ring())
    shapes = [
        labelme_shape("cat", "point", [[3, 3]]),
        labelme_shape("cat", "polygon", [[0, 0], [8, 8]]),
        labelme_shape("cat", "rectangle", [[0, 0], [8, 8], [9, 9]]),
        labelme_shape("cat", "polygon", [[0, 0], [8, 8], [9, float("nan")]]),
        labelme_shape("cat", "polygon", [[0, 0], [8, 8], [1e9, 0]]),
        {**wrong_mask, "mask": "AAAA"},
        {**wrong_mask, "points": [[60, 0], [64, 9]]},
        {"points": []},
        {**wrong_mask, "points": [[5, 4], [49, 4], [49, 39]]},
        labelme_shape("cat", "circle", [[20, 20], [23, 24], [30, 30]]),
    ]
    write_labelme_file(tmp_path / "a.json", "a.png", shapes)
    write_labelme_file(tmp_path / "again.json", "a.png", [])
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "coco.json").write_text('{"images": [], "annotations": [], "categories": []}')
    picture(tmp_path / "a.png")
    said = problems(read_labelme, tmp_path, tmp_path)
    expected = [
        "shapes[0] (cat): a shape of type point, which has no area",
        "shapes[1] (cat): a polygon of 2 points",
        "shapes[2] (cat): a rectangle of 3 points",
        "shapes[3] (cat): the points [[0, 0], [8, 8], [9, nan]]",
        "shapes[4] (cat): the point (1e+09, 0); expected points in an image of 48 x 64 pixels",
        "shapes[5] (cat): a mask that cannot be read",
        "shapes[6] (cat): a mask of 36 x 45 pixels (height x width) at row 0 and column 60",
        "shapes[7]: the value {'points': []}",
        "shapes[8] (cat): a mask with 3 points; expected the corners of its box. Save it with LabelMe again.",
        "shapes[9] (cat): a circle of 3 points; expected its centre and a point on it. Annotate the object again.",
        f"again.json: it labels a.png, which {tmp_path / 'a.json'} labels too",
        "broken.json: the file is no valid JSON",
        "coco.json: a JSON object with ['annotations', 'categories', 'images']",
    ]
    assert len(said) == len(expected) and all(text in found for text, found in zip(expected, said, strict=True)), said
    assert said[-1].endswith("This looks like another format: --format coco.")


CORNER, SQUARE = [[0, 0], [8, 0], [8, 8], [0, 8]], [[16, 12], [32, 12], [32, 24], [16, 24]]
CORNER_MASK, SQUARE_MASK = box(0, 0, 8, 8), box(12, 16, 24, 32)


def read_shapes(folder: Path, shapes: list[dict[str, Any]]) -> dict[str, Any]:
    picture(folder / "a.png")
    write_labelme_file(folder / "a.json", "a.png", shapes)
    return read_labelme(folder, folder)


@pytest.mark.parametrize("group", [None, "", " ", False, "null", "None", -1, "-1"])
def test_labelme_group_ids_that_mean_no_group_join_nothing(tmp_path: Path, group: object) -> None:
    shapes = [labelme_shape("cat", "polygon", points, group_id=group) for points in (CORNER, SQUARE)]
    content = read_shapes(tmp_path, shapes)
    assert_masks(masks(content), [("cat", CORNER_MASK), ("cat", SQUARE_MASK)])
    assert "warnings" not in content


@pytest.mark.parametrize("group", [0, "0", 7, "left"])
def test_labelme_group_ids_that_join_everything_are_asked_about(tmp_path: Path, group: object) -> None:
    two = [labelme_shape("cat", "polygon", points, group_id=group) for points in (CORNER, SQUARE)]
    content = read_shapes(tmp_path, two)
    assert_masks(masks(content), [("cat", CORNER_MASK | SQUARE_MASK)])
    assert "warnings" not in content  # one object may well have two parts
    shapes = [*two, labelme_shape("cat", "polygon", [[40, 40], [44, 40], [44, 44]], group_id=group)]
    named = 0 if group == "0" else group
    (warning,) = read_shapes(tmp_path, shapes)["warnings"]
    assert warning == (
        f"{tmp_path}: in 1 of 1 images with group_ids, all shapes of a label have the same one and are read as one "
        f"object ({tmp_path / 'a.json'}: 3 shapes of cat, group_id {named}). If the shapes are separate objects, "
        "remove group_id."
    )
    assert "warnings" not in read_shapes(tmp_path, [*shapes, labelme_shape("cat", "polygon", CORNER)])


def test_labelme_asks_about_groups_only_if_most_images_have_such(tmp_path: Path) -> None:
    whole = [labelme_shape("cat", "polygon", SQUARE, group_id=1)] * 3
    for name, shapes in (("b", whole[:2]), ("c", [])):
        picture(tmp_path / f"{name}.png")
        write_labelme_file(tmp_path / f"{name}.json", f"{name}.png", shapes)
    assert "warnings" not in read_shapes(tmp_path, whole)


@pytest.mark.parametrize("kind", ["Polygon", "RECTANGLE", "rectangle", "rotation", "oriented_rectangle", "", None])
def test_labelme_types_of_other_versions_are_drawn(tmp_path: Path, kind: Any) -> None:
    assert_masks(masks(read_shapes(tmp_path, [labelme_shape("cat", kind, SQUARE)])), [("cat", SQUARE_MASK)])
