"""YOLO-seg: polygons, classes, splits and paths of data.yaml, and messages on faulty labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sskd_fast.check.__main__ import main
from sskd_fast.data.formats.yolo import read_yolo, yolo_splits
from sskd_fast.data.formats.yolo_files import label_path
from tests.format_files import (
    assert_masks,
    box,
    masks,
    picture,
    problems,
    turned,
)


def write_yolo_set(
    root: Path, labels: dict[str, str], yaml: str = "train: images\nval: images\nnames: [cat, dog]\n"
) -> Path:
    """A YOLO data set: image name -> text of its label file, with an image each."""
    (root / "data.yaml").parent.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(yaml, encoding="utf-8")
    for number, (name, text) in enumerate(labels.items()):
        image = picture(root / "images" / name, seed=number)
        label_path(image).parent.mkdir(parents=True, exist_ok=True)
        label_path(image).write_text(text, encoding="utf-8")
    return root


BOX = "0.25 0.25 0.5 0.25 0.5 0.5 0.25 0.5"  # rows 12 to 24, columns 16 to 32


def test_yolo_polygons_classes_and_images_without_objects(tmp_path: Path) -> None:
    text = f"1 {BOX}\n\n0 -0.005 0 0.25 0 0.25 1.009 0 1\n1.0 {BOX}\n"
    root = write_yolo_set(tmp_path, {"a/ünï.png": text, "b/ünï.png": "", "c.png": f"0 {BOX}"})
    picture(root / "images" / "d.png")
    content = read_yolo(root / "images", root)
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    names = ["images/a/ünï.png", "images/b/ünï.png", "images/c.png", "images/d.png"]
    assert [image["file_name"] for image in content["images"]] == names
    assert {(image["height"], image["width"]) for image in content["images"]} == {(48, 64)}
    square = box(12, 16, 24, 32)
    assert_masks(masks(content, names[0]), [("dog", square), ("cat", box(0, 0, 48, 16)), ("dog", square)])
    assert masks(content, names[1]) == masks(content, names[3]) == []
    assert_masks(masks(content, names[2]), [("cat", square)])
    assert content["annotations"][0]["area"] == 192 and content["annotations"][0]["bbox"] == [16, 12, 16, 12]
    (warning,) = content["warnings"]
    assert "1 of 4 images have no label file (d.png) and count as images without objects" in warning


def test_yolo_cuts_make_holes_and_parts_and_crossing_lines_cancel(tmp_path: Path) -> None:
    outer, hole = "0 0 .5 0 .5 .5 0 .5 0 0", ".125 .125 .25 .125 .25 .25 .125 .25 .125 .125"
    bridged = f"0 {outer} {hole} 0 0 0.75 0.75 1 .75 1 1 .75 1 .75 .75 0 0"
    bow_tie = "0 0 0 1 0 0 1 1 1"
    content = read_yolo(write_yolo_set(tmp_path, {"a.png": f"{bridged}\n{bow_tie}\n"}) / "images", tmp_path)
    (_, mask), (_, crossed) = masks(content)
    np.testing.assert_array_equal(mask, (box(0, 0, 24, 32) & ~box(6, 8, 12, 16)) | box(36, 48, 48, 64))
    assert crossed[4, 32] and crossed[44, 32] and not crossed[24, 5] and not crossed[24, 60]


def test_every_fault_of_yolo_labels_is_named_at_once(tmp_path: Path) -> None:
    lines = [
        f"2 {BOX}",
        f"cat {BOX}",
        f"0 {BOX} 0.9",
        "0 0.5 0.5 0.2 0.2",
        "0 0 0 1 1",
        "0 16 12 32 12 32 24",
        "0 0 0 a 0 1 1",
    ]
    root = write_yolo_set(tmp_path, {"a.png": "\n".join(lines), "b.png": "", "c.png": f"0 {BOX}"})
    (root / "labels" / "gone.txt").write_text(f"0 {BOX}")
    picture(root / "images" / "b.jpg")
    (root / "images" / "c.png").write_bytes(b"no image")
    (root / "labels" / "classes.txt").write_text("cat\ndog\n")
    said = problems(read_yolo, root / "images", root)
    label = root / "labels" / "a.txt"
    assert said == [
        f"{root / 'labels' / 'b.txt'}: the images b.jpg and b.png share it; expected one image a label file. "
        "Rename one of the images and its labels.",
        f"{root / 'labels' / 'gone.txt'}: it has no image; expected one of the same name below {root / 'images'}. "
        "Add the image, or remove the label file.",
        f"{label}: line 1: the class 2; expected one of the classes 0 to 1 of data.yaml. "
        "Correct it, or add the class to `names`.",
        f"{label}: line 2: the class cat; expected one of the classes 0 to 1 of data.yaml. "
        "Correct it, or add the class to `names`.",
        f"{label}: line 3: 9 values after the class; expected x and y of at least 3 points. "
        "Remove what is no coordinate, such as a confidence at the end, or annotate the object again.",
        f"{label}: line 4: a box (4 values); expected x and y of at least 3 points. "
        "Annotate masks: boxes alone cannot train instance segmentation.",
        f"{label}: line 5: a box (4 values); expected x and y of at least 3 points. "
        "Annotate masks: boxes alone cannot train instance segmentation.",
        f"{label}: line 6: the coordinates 16, 12, 32 and 3 more; expected numbers from 0 to 1. "
        "Divide x by the width and y by the height of the image.",
        f"{label}: line 7: the coordinates a; expected numbers from 0 to 1. "
        "Divide x by the width and y by the height of the image.",
        said[-1],
    ]
    assert "c.png: the image file cannot be read" in said[-1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("names: [yes, dog]", "names: the value [True, 'dog']; expected a list of names"),
        ("names: {0: cat, 2: dog}", "without gaps"),
        ("names: [cat, dog, cat]", "names: cat more than once; expected different names"),
        ("names: []", "names: the value []"),
        ("names: [{0: cat}, {1: dog}]", "names: the value [{0: 'cat'}, {1: 'dog'}]; expected a list of names"),
        ("nc: 2", "names: the value None"),
        ("names: [cat, dog]\nnc: 3", "nc: 3 classes; expected 2, as `names` has"),
        ("names: [cat", "it cannot be read"),
        ("- names", "a YAML list; expected the keys names, train and val"),
    ],
)
def test_yolo_class_names_that_do_not_fit_are_refused(tmp_path: Path, names: str, message: str) -> None:
    root = write_yolo_set(tmp_path, {"a.png": f"0 {BOX}"}, yaml=names)
    assert any(message in problem for problem in problems(read_yolo, root / "images", root))


def test_yolo_names_may_be_numbered(tmp_path: Path) -> None:
    root = write_yolo_set(tmp_path, {"a.png": f"1 {BOX}"}, yaml="names:\n  0: cat\n  1: dog\n")
    assert_masks(masks(read_yolo(root / "images", root)), [("dog", box(12, 16, 24, 32))])


@pytest.mark.parametrize("path", ["", "path: .", "path: sets/pets", "path: {absolute}", "path: beside"])
def test_yolo_path_is_beside_data_yaml_or_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "sets" / "pets"
    place = root / "beside" if "beside" in path else root
    yaml = f"{path.format(absolute=root)}\ntrain: images/train\nval: ../images/val\nnames: [cat, dog]\n"
    write_yolo_set(root, {}, yaml=yaml)
    for name in ("train/a.png", "val/b.png"):
        picture(place / "images" / name)
    train, val = yolo_splits(root)
    assert (train.resolve(), val.resolve()) == (place / "images" / "train", place / "images" / "val")


def test_yolo_splits_that_are_not_there_are_named_with_the_places_tried(tmp_path: Path) -> None:
    root = write_yolo_set(tmp_path, {}, yaml="path: /nowhere\ntrain: [a, b]\nval: images/val\nnames: [cat]\n")
    said = problems(yolo_splits, root)
    assert said[0].startswith(
        f"{root / 'data.yaml'}: train: the value ['a', 'b']; expected a folder of images or a text"
    )
    assert "val: 'images/val' is at none of /nowhere/images/val" in said[1]
    assert "no data.yaml; expected the data.yaml of a YOLO data set" in problems(yolo_splits, tmp_path / "images")[0]


def test_yolo_images_may_be_listed_in_a_text_file(tmp_path: Path) -> None:
    root = write_yolo_set(tmp_path, {"a.png": f"0 {BOX}", "b.png": f"1 {BOX}"})
    (root / "train.txt").write_text("images/b.png\n./images/gone.png\n")
    assert problems(read_yolo, root / "train.txt", root) == [
        f"{root / 'images' / 'gone.png'}: the image file does not exist; expected a readable image. "
        "Add the image, or take it out of the list."
    ]
    (root / "train.txt").write_bytes(b"\xff\xfe\x00")
    assert "it cannot be read" in problems(read_yolo, root / "train.txt", root)[0]
    (root / "train.txt").write_text("images/b.png\n")
    content = read_yolo(root / "train.txt", root)
    assert [image["file_name"] for image in content["images"]] == ["images/b.png"]


def test_yolo_needs_a_label_file(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    write_yolo_set(tmp_path, {})
    assert (
        "no label file of any image; expected a text file for each"
        in problems(read_yolo, tmp_path / "images", tmp_path)[0]
    )


def test_yolo_takes_the_size_of_an_image_as_it_is_shown(tmp_path: Path) -> None:
    root = write_yolo_set(tmp_path, {"a.jpg": f"0 {BOX}"})
    turned(root / "images" / "a.jpg")
    content = read_yolo(root / "images", root)
    assert_masks(masks(content), [("cat", box(12, 16, 24, 32))])


def test_yolo_lists_with_names_that_no_file_has_are_named_beside_other_findings(tmp_path: Path) -> None:
    root = write_yolo_set(tmp_path, {"a.png": "5 .1 .1 .5 .1 .5 .5"})
    (root / "train.txt").write_text(f"images/a.png\n\nimages/{'x' * 300}.png\n/\n")
    long, folder, wrong = problems(read_yolo, root / "train.txt", root)
    assert long.startswith(f"{root / 'train.txt'}: line 3: the image name 'images/xxx") and "304 bytes" in long
    assert "train.txt: line 4: the image name '/'; expected the name of a file, not of a folder" in folder
    assert "line 1: the class 5" in wrong
    (root / "data.yaml").write_text(f"train: {'x' * 300}\nval: images\nnames: [cat]\n")
    assert "train: 'xxx" in problems(yolo_splits, root)[0]


def test_yolo_label_files_may_have_a_suffix_in_upper_case(tmp_path: Path) -> None:
    root = write_yolo_set(tmp_path, {"a.png": f"1 {BOX}"})
    (root / "labels" / "a.txt").rename(root / "labels" / "a.TXT")
    content = read_yolo(root / "images", root)
    assert_masks(masks(content), [("dog", box(12, 16, 24, 32))])
    assert "warnings" not in content
    (root / "labels" / "b.TXT").write_text(f"0 {BOX}")
    assert "b.TXT: it has no image; expected one of the same name" in problems(read_yolo, root / "images", root)[0]


def test_yolo_images_that_are_not_read_are_counted(tmp_path: Path) -> None:
    root = write_yolo_set(tmp_path, {"a.png": f"1 {BOX}"})
    for name in ("b.heic", "c.heic", "notes.md", ".DS_Store", "train.cache"):
        (root / "images" / name).write_bytes(b"\0")
    (warning,) = read_yolo(root / "images", root)["warnings"]
    assert warning.startswith(f"{root / 'images'}: 2 passed over: not images: 2 (.heic 2). Convert what is an image")
    (root / "labels" / "c.txt").write_text(f"0 {BOX}")
    (said,) = problems(read_yolo, root / "images", root)
    assert "c.txt: it has no image that is read, but c.heic; expected" in said
    assert said.endswith("Convert the image to PNG.")


def test_yolo_counts_and_validation_folders_as_tools_write_them(tmp_path: Path) -> None:
    yaml = "train: images\nvalid: images/valid\nnames: [cat, dog]\nnc: '2'\n"
    root = write_yolo_set(tmp_path, {"valid/a.png": f"1 {BOX}"}, yaml=yaml)
    assert yolo_splits(root) == (root / "images", root / "images" / "valid")
    assert_masks(masks(read_yolo(root / "images", root)), [("dog", box(12, 16, 24, 32))])


def test_yolo_problems_of_data_yaml_come_once_and_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_yolo_set(tmp_path, {"a.png": f"1 {BOX}"}, yaml="train: images\nval: gone\nnames: [cat, dog]\nnc: x\n")
    assert main([str(root)]) == 1
    said = capsys.readouterr().out
    assert "2 problems:" in said and "nc: x classes; expected 2, as `names` has" in said and "val: 'gone'" in said


def test_yolo_decimal_commas_are_called_that(tmp_path: Path) -> None:
    root = write_yolo_set(tmp_path, {"a.png": "0 0,1 0,1 0,5 0,1 0,5 0,5\n"})
    (said,) = problems(read_yolo, root / "images", root)
    assert said.endswith(
        "line 1: the values 0,1, 0,1, 0,5 and 3 more with commas; expected numbers from 0 to 1 such as 0.25. "
        "Write a point in place of each decimal comma, and spaces between numbers."
    )
