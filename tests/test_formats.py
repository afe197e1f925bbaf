"""Label formats: recognised, opened as the same image sets, and written without overwriting foreign labels."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sskd_fast.data.classes import spelling_variants
from sskd_fast.data.formats.contours import is_hole, joined, outlines
from sskd_fast.data.formats.labelme import read_labelme, write_labelme
from sskd_fast.data.formats.own_files import MARKER
from sskd_fast.data.formats.table import READERS, WRITERS
from sskd_fast.data.formats.yolo import read_yolo, write_yolo
from sskd_fast.data.layouts import FORMATS, LabeledSets, LabelFiles, open_sets, training_images
from sskd_fast.rle import encode_segmentation
from tests.coco_builder import encoded
from tests.format_files import assert_masks, box, masks, problems, task, write_cvat_file, write_labelme_file
from tests.format_files import write_tasks as write_tasks_file
from tests.label_sets import FILES, instances, write_images, write_yolo_root


def opened(folder: Path, format: str) -> LabeledSets:
    if format == "yolo":
        return open_sets(write_yolo_root(folder), format)
    return open_sets(label_files(folder, format), format)


def label_files(folder: Path, format: str) -> LabelFiles:
    images = write_images(folder / "images")
    train, val = (FILES[format](folder, split) for split in ("train", "val"))
    return LabelFiles(train, images, val, images)


def contents(sets: LabeledSets) -> list[Any]:
    """All that training sees: names, pixels, classes and masks."""
    found = []
    for source in (sets.train, sets.val):
        for index, name in enumerate(source.file_names):
            sample = source[index]
            assert sample.instances is not None
            drawn = sample.instances
            found.append((Path(name).name, sample.image.tolist(), drawn.labels.tolist(), drawn.masks.int().tolist()))
    return found


@pytest.mark.parametrize("format", READERS)
def test_every_format_opens_as_the_same_checked_sets(tmp_path: Path, format: str) -> None:
    sets = opened(tmp_path / "own", format)
    assert (len(sets.train), len(sets.val)) == (4, 2) and sets.warnings == []
    assert sets.train.class_names == sets.val.class_names == ["cell", "zebra"]
    assert sets.train.category_ids == sets.val.category_ids == [1, 2]
    assert contents(sets) == contents(opened(tmp_path / "coco", "coco"))
    files = tmp_path / "own" if format == "yolo" else label_files(tmp_path / "own", format)
    assert training_images(files, format).file_names == sets.train.file_names
    truth = sets.val.ground_truth()
    assert [a["category_id"] for a in truth["annotations"]] == [1, 2, 1]


@pytest.mark.parametrize("format", ["labelme", "label_studio"])
def test_validation_labels_without_a_class_keep_the_ids_of_training(tmp_path: Path, format: str) -> None:
    """These formats list no classes: those of the training set count."""
    images = write_images(tmp_path / "images")
    train, val = (FILES[format](tmp_path, split) for split in ("train", "val"))
    for path in [val] if val.is_file() else sorted(val.rglob("*.json")):
        content = json.loads(path.read_text())
        if format == "labelme":
            content["shapes"] = [shape for shape in content["shapes"] if shape["label"] == "zebra"]
        else:
            regions = content[0]["annotations"][0]["result"]
            content[0]["annotations"][0]["result"] = [r for r in regions if r["value"][r["type"]] == ["zebra"]]
        path.write_text(json.dumps(content))
    sets = open_sets(LabelFiles(train, images, val, images), format)
    assert sets.val.class_names == ["cell", "zebra"]
    assert [a["category_id"] for a in sets.val.ground_truth()["annotations"]] == [2]
    assert any("1 classes have no instance: cell." in warning for warning in sets.warnings)


def test_problems_of_labels_and_of_images_come_together(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    train, val = (FILES["cvat"](tmp_path, split) for split in ("train", "val"))
    text = train.read_text(encoding="utf-8").replace("<mask", "<box").replace("</mask", "</box")
    train.write_text(text, encoding="utf-8")
    (images / "val" / "empty.png").unlink()
    said = problems(open_sets, LabelFiles(train, images, val, images), "cvat")
    assert len(said) == 10 and sum("a shape of type box" in problem for problem in said) == 9
    assert "empty.png: image 2: the image file does not exist" in said[0]


def test_polygons_without_a_pixel_are_dropped_with_a_warning_that_says_where(tmp_path: Path) -> None:
    root = write_yolo_root(tmp_path)
    label = root / "labels" / "val" / "empty.txt"
    label.write_text("0 .1 .1 .5 .5 .9 .9\n")
    (warning,) = open_sets(root, "yolo").warnings
    assert f"1 masks have no pixel and are dropped (annotations {label}: line 1)" in warning


def test_a_file_of_another_format_is_named_with_the_option_to_give(tmp_path: Path) -> None:
    xml = write_cvat_file(tmp_path / "a.xml", {}, [])
    labelme = write_labelme_file(tmp_path / "b.json", "a.png", [])
    studio = write_tasks_file(tmp_path / "c.json", [task(1, "a.png", [])])
    for path, name in ((xml, "cvat"), (labelme, "labelme"), (studio, "label_studio")):
        (said,) = problems(READERS["coco"], path, tmp_path, ())
        assert said.endswith(f"This looks like another format: --format {name}.") and "\n" not in said
    (said,) = problems(READERS["cvat"], labelme, tmp_path, ())
    assert said.endswith('Export the task as "CVAT for images 1.1", or name another format with --format.')
    listed = tmp_path / "listed.json"
    listed.write_text('[{"images": [], "annotations": [], "categories": []}]')
    (said,) = problems(READERS["coco"], listed, tmp_path, ())
    assert said.endswith("This looks like a COCO object in a list: take the object out of the list.")
    listed.write_text('{"a.png7": {"filename": "a.png", "size": 7, "regions": []}}')
    (said,) = problems(READERS["labelme"], listed, tmp_path, ())
    assert said.endswith("This looks like a project of VIA: export its annotations from VIA in COCO's format.")
    (tmp_path / "data.yaml").write_text("names: [cat]")
    (said,) = problems(READERS["coco"], tmp_path / "data.yaml", tmp_path, ())
    assert "--format yolo --root DIR" in said
    assert set(READERS) < set(FORMATS) and {"cityscapes", "ade20k"} < set(FORMATS)


def test_outlines_are_one_a_part_and_one_a_hole_and_give_the_pixels_back() -> None:
    from scipy import ndimage

    generator = np.random.default_rng(0)
    for _ in range(200):
        height, width = (int(side) for side in generator.integers(1, 24, 2))
        mask = generator.random((height, width)) < generator.random()
        mask[generator.integers(height), generator.integers(width)] = True
        loops = outlines(mask)
        holes = sum(is_hole(loop, mask) for loop in loops)
        background = np.pad(~mask, 1, constant_values=True)
        assert len(loops) - holes == ndimage.label(mask)[1]
        assert holes == ndimage.label(background, np.ones((3, 3)))[1] - 1
        polygon = joined(loops).ravel().tolist()
        np.testing.assert_array_equal(decoded(polygon, height, width), mask)


def decoded(polygon: list[int], height: int, width: int) -> Any:
    import pycocotools.mask as coco_mask

    return coco_mask.decode(encode_segmentation([polygon], height, width)).astype(bool)


def scored() -> dict[str, Any]:
    content = instances("train")
    for number, annotation in enumerate(content["annotations"]):
        annotation["score"] = 0.5 + number / 100
    return content


def test_labelme_gives_back_masks_scores_and_crowds(tmp_path: Path) -> None:
    content = scored()
    content["annotations"][0]["iscrowd"] = 1
    written = write_labelme(content, tmp_path)
    names = ["train/a.json", "train/deep/ß.json", "train/empty.json", "train/ß.json"]
    assert [path.relative_to(tmp_path).as_posix() for path in written] == names
    write_images(tmp_path)
    back = read_labelme(tmp_path / "train", tmp_path / "train")
    assert_masks(masks(back), masks(content))
    assert [a["score"] for a in back["annotations"]] == [a["score"] for a in content["annotations"]]
    assert [a["iscrowd"] for a in back["annotations"]] == [1] + [0] * 8
    file = json.loads(written[0].read_text(encoding="utf-8"))
    assert (file["imagePath"], file["imageHeight"], file["imageWidth"], file["imageData"]) == ("a.jpg", 48, 64, None)
    assert file["flags"] == {"sskd_fast": True} and file["version"]
    assert [shape["shape_type"] for shape in file["shapes"]] == ["mask", "mask", "polygon"]


def test_labelme_parts_without_holes_are_polygons_of_a_group(tmp_path: Path) -> None:
    content = instances("val")
    mask = box(2, 2, 10, 12) | box(20, 30, 40, 50)
    content["annotations"] = [{**content["annotations"][0], "segmentation": encoded(mask)}]
    (file, _) = write_labelme(content, tmp_path)
    shapes = json.loads(file.read_text(encoding="utf-8"))["shapes"]
    assert [(shape["shape_type"], shape["group_id"]) for shape in shapes] == [("polygon", 1)] * 2
    assert sorted(shapes[0]["points"]) == [[2, 2], [2, 10], [12, 2], [12, 10]]
    write_images(tmp_path)
    assert_masks(masks(read_labelme(tmp_path, tmp_path)), [("cell", mask)])


def test_yolo_gives_back_masks(tmp_path: Path) -> None:
    content = scored()
    content["categories"].append({"id": 9, "name": "no: such"})
    written = write_yolo(content, tmp_path)
    names = ["data.yaml", *(f"labels/train/{name}.txt" for name in ("a", "deep/ß", "empty", "ß"))]
    assert [path.relative_to(tmp_path).as_posix() for path in written] == names
    write_images(tmp_path / "images")
    back = read_yolo(tmp_path / "images" / "train", tmp_path)
    assert_masks(masks(back), masks(content))
    assert [category["name"] for category in back["categories"]] == ["cell", "zebra", "no: such"]
    assert written[3].read_text() == ""
    content["annotations"][0]["iscrowd"] = 1
    (said,) = problems(write_yolo, content, tmp_path)
    assert "annotation 1 of image 1: a crowd region; expected single objects" in said


def test_yolo_leaves_a_data_yaml_with_the_same_classes_alone(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text("train: a\nval: b\nnames: [cell, zebra]\n")
    assert file not in write_yolo(instances("train"), tmp_path)
    file.write_text("train: a\nval: b\nnames: [zebra, cell]\n")
    assert f"{file}: a file that sskd_fast did not write" in problems(write_yolo, instances("train"), tmp_path)[0]


def test_ids_from_zero_as_label_studio_exports_coco_are_read(tmp_path: Path) -> None:
    sets = {}
    for split in ("train", "val"):
        content = instances(split)
        for record in (*content["images"], *content["annotations"], *content["categories"]):
            record.update({key: record[key] - 1 for key in ("id", "image_id", "category_id") if key in record})
        sets[split] = tmp_path / f"{split}.json"
        sets[split].write_text(json.dumps(content), encoding="utf-8")
    images = write_images(tmp_path / "images")
    found = open_sets(LabelFiles(sets["train"], images, sets["val"], images), "coco")
    assert found.train.category_ids == [0, 1]
    assert contents(found) == contents(opened(tmp_path / "own", "coco"))


def test_coco_instances_and_results_are_written_whole(tmp_path: Path) -> None:
    content = scored()
    (file,) = WRITERS["coco"](content, tmp_path / "instances.json")
    assert json.loads(file.read_text(encoding="utf-8")) == content
    counts = content["annotations"][0]["segmentation"]["counts"]
    content["annotations"][0]["segmentation"]["counts"] = counts.encode()
    content["annotations"][8]["iscrowd"] = 1
    (file,) = WRITERS["coco_results"](content, tmp_path / "results.json")
    results = json.loads(file.read_text())
    assert len(results) == 9 and results[0]["segmentation"]["counts"] == counts
    assert set(results[0]) == {"image_id", "category_id", "segmentation", "score"} and results[3]["score"] == 0.53
    assert [result.get("iscrowd") for result in results] == [None] * 8 + [1]
    del content["annotations"][2]["score"]
    (said,) = problems(WRITERS["coco_results"], content, tmp_path / "results.json")
    assert "annotation 3 of image 1: no score; expected one, as results have" in said


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("format", "name"), [("yolo", "labels/train/a.txt"), ("labelme", "train/a.json")])
def test_labels_of_others_and_edited_ones_are_never_replaced(tmp_path: Path, format: str, name: str) -> None:
    write = WRITERS[format]
    human = tmp_path / name
    human.parent.mkdir(parents=True)
    human.write_text("by hand")
    before = snapshot(tmp_path)
    (said,) = problems(write, instances("train"), tmp_path)
    assert said == (
        f"{human}: a file that sskd_fast did not write; expected no file, or one as sskd_fast left it. "
        "Write to another folder, or move the file away if it is not needed."
    )
    assert snapshot(tmp_path) == before
    human.unlink()
    write(instances("train"), tmp_path)
    fewer = instances("train")
    fewer["annotations"] = fewer["annotations"][1:]
    write(fewer, tmp_path)
    write(instances("train"), tmp_path)
    digest = hashlib.sha256(human.read_bytes()).hexdigest()
    assert f"{digest}  {name}\n" in (tmp_path / MARKER).read_text(encoding="utf-8")
    human.write_text(human.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    before = snapshot(tmp_path)
    (said,) = problems(write, fewer, tmp_path)
    assert f"{human}: a file written here that was edited since" in said
    assert snapshot(tmp_path) == before


def test_a_coco_file_of_others_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text("{}")
    assert "a file that sskd_fast did not write" in problems(WRITERS["coco"], instances("val"), path)[0]
    assert path.read_text() == "{}" and list(tmp_path.iterdir()) == [path]


def test_images_whose_labels_would_collide_or_leave_the_folder_are_refused(tmp_path: Path) -> None:
    content = instances("val")
    content["annotations"] = []
    content["images"] = [
        {"id": number, "file_name": name, "height": 9, "width": 9}
        for number, name in enumerate(["a/x.png", "b/x.png", "a/x.jpg", "../x.png", "/x.png"], 1)
    ]
    said = problems(write_labelme, content, tmp_path)
    assert len(said) == 3 and "two images have labels of this name, a/x.json" in said[0]
    assert "the file name ../x.json; expected one below the folder" in said[1] and "the file name /x.json" in said[2]
    assert list(tmp_path.iterdir()) == []


def test_faulty_annotations_are_all_named_before_anything_is_written(tmp_path: Path) -> None:
    content = instances("train")
    content["annotations"][0]["segmentation"] = []
    content["annotations"][1]["category_id"] = 5
    content["annotations"][2]["image_id"] = 50
    for format in ("yolo", "labelme"):
        said = problems(WRITERS[format], content, tmp_path)
        assert ["annotation 1" in said[0], "category 5" in said[1], "image 50" in said[2]] == [True] * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", READERS)
def test_classes_that_differ_in_case_are_named(tmp_path: Path, format: str) -> None:
    images = write_images(tmp_path / "images")
    if format == "yolo":
        place: Any = write_yolo_root(tmp_path / "own")
        files = [place / "data.yaml"]
    else:
        train, val = (FILES[format](tmp_path, split) for split in ("train", "val"))
        place = LabelFiles(train, images, val, images)
        files = [file for part in (train, val) for file in ([part] if part.is_file() else part.rglob("*.json"))]
    for file in files:
        file.write_text(file.read_text(encoding="utf-8").replace("zebra", "Cell"), encoding="utf-8")
    (warning,) = open_sets(place, format).warnings
    assert warning.endswith(": 'Cell', 'cell' count as 2 classes; if they are one, name it alike in all labels.")


def test_classes_that_differ_in_case_or_white_space_are_variants() -> None:
    names = ["cell", "dead cell", "Cell", "cell ", "dead  cell", "dog", "deadcell"]
    assert spelling_variants(names) == [["Cell", "cell", "cell "], ["dead  cell", "dead cell"]]
