"""CVAT for images: polygons, masks, groups, and messages on faulty files."""

from __future__ import annotations

from pathlib import Path

from sskd_fast.data.formats.cvat import read_cvat
from tests.format_files import (
    assert_masks,
    box,
    cvat_mask,
    masks,
    problems,
    ring,
    write_cvat_file,
)


def test_cvat_polygons_masks_and_groups(tmp_path: Path) -> None:
    def polygon(label: str, points: str, more: str = "") -> str:
        return f'<polygon label="{label}" source="manual" occluded="0" points="{points}" z_order="0"{more}></polygon>'

    elements = [
        cvat_mask("dog", ring()),
        polygon("cat", "0.00,0.00;8.00,0.00;8.00,8.00;0.00,8.00", ' group_id="2"'),
        cvat_mask("cat", box(40, 50, 48, 64), group=2),
        polygon("dog", "-3,-3;8,-3;8,8;-3,8"),
        '<tag label="cat"></tag>',
    ]
    images = {"sub/ü & b.png": elements, "empty.png": []}
    path = write_cvat_file(tmp_path / "annotations.xml", images, ["dog", "cat", "bird"])
    for place in (path, tmp_path):
        content = read_cvat(place, tmp_path / "images")
        assert [c["name"] for c in content["categories"]] == ["dog", "cat", "bird"]
        assert [image["file_name"] for image in content["images"]] == ["empty.png", "sub/ü & b.png"]
        corners = box(0, 0, 8, 8)
        expected = [("dog", ring()), ("cat", corners | box(40, 50, 48, 64)), ("dog", corners)]
        assert_masks(masks(content, "sub/ü & b.png"), expected)
    assert [c["name"] for c in read_cvat(path, tmp_path, ["bird"])["categories"]] == ["bird", "dog", "cat"]


def test_every_fault_of_cvat_files_is_named_at_once(tmp_path: Path) -> None:
    mask = cvat_mask("cat", box(0, 0, 8, 8))
    elements = [
        '<box label="cat" xtl="1" ytl="1" xbr="5" ybr="5"></box>',
        '<polygon label="cat" points="1,1;2"></polygon>',
        '<polygon label="cat" points="1,1;2,2"></polygon>',
        mask.replace('width="8"', 'width="7"'),
        mask.replace('left="0"', 'left="60"'),
        mask.replace('top="0"', ""),
        mask.replace('label="cat"', ""),
    ]
    write_cvat_file(tmp_path / "a.xml", {"a.png": elements}, ["cat"])
    (tmp_path / "b.xml").write_text("<annotations><track></track></annotations>")
    (tmp_path / "c.xml").write_text("{}")
    said = problems(read_cvat, tmp_path, tmp_path)
    expected = [
        "b.xml: tracks, as CVAT for video has them",
        "c.xml: the file is no valid XML",
        "a.xml: image 0 (a.png), box 0 (cat): a shape of type box; expected polygon or mask. Annotate masks",
        "polygon 1 (cat): the points '1,1;2'",
        "polygon 2 (cat): a polygon of 2 points",
        "mask 3 (cat): run lengths that cover 64 pixels; expected 8 x 7, the mask's own box",
        "mask 4 (cat): a mask of 8 x 8 pixels (height x width) at row 0 and column 60",
        "mask 5 (cat): a mask whose numbers cannot be read",
        "mask 6 (): a shape without a label",
    ]
    assert len(said) == len(expected) and all(text in found for text, found in zip(expected, said, strict=True)), said


def test_cvat_images_without_a_size_or_labelled_twice_are_named(tmp_path: Path) -> None:
    square = '<polygon label="cat" points="0,0;8,0;8,8;0,8"></polygon>'
    for name in ("a", "b"):
        write_cvat_file(tmp_path / f"{name}.xml", {"a.png": [square], f"{name}2.png": []}, ["cat"])
    text = (tmp_path / "b.xml").read_text()
    (tmp_path / "b.xml").write_text(text.replace('name="b2.png" width="64" height="48"', 'name="b2.png"'))
    assert problems(read_cvat, tmp_path, tmp_path) == [
        f"{tmp_path / 'b.xml'}: image 0 (a.png): it labels a.png, which {tmp_path / 'a.xml'}: image 0 (a.png) labels "
        "too; expected one set of labels for an image. Remove one of them.",
        f"{tmp_path / 'b.xml'}: image 1 (b2.png): a height of None and a width of None; expected pixels. "
        "Export the task again.",
    ]


def test_cvat_groups_are_numbered_from_one(tmp_path: Path) -> None:
    masks_of = [box(0, 0, 8, 8), box(12, 16, 24, 32), box(40, 50, 48, 64)]
    for group, expected in ((0, masks_of), (1, [masks_of[0] | masks_of[1] | masks_of[2]])):
        elements = [cvat_mask("cat", mask, group=group) for mask in masks_of]
        content = read_cvat(write_cvat_file(tmp_path / "a.xml", {"a.png": elements}, ["cat"]), tmp_path)
        assert_masks(masks(content), [("cat", mask) for mask in expected])
        said = "in 1 of 1 images with group_ids, all shapes of a label have the same one and are read as one object "
        said += f"({tmp_path / 'a.xml'}: image 0 (a.png): 3 shapes of cat, group_id 1)"
        assert [said in warning for warning in content.get("warnings", [])] == [True] * group
