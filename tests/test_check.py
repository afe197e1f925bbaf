"""The check command: contents of a data set, derived settings, problems, and exit codes."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sskd_fast.check.__main__ import main
from sskd_fast.data.coco import CocoInstances
from sskd_fast.evaluate import main as evaluate
from sskd_fast.models.checkpoint import read_description
from sskd_fast.settings import derived_settings
from sskd_fast.yaml_settings import load_config
from tests.label_sets import FILES, write_images, write_yolo_root
from tests.official_layouts import write_ade20k, write_cityscapes, write_coco

Check = Callable[..., tuple[int, list[dict[str, Any]], str]]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """check(*arguments) -> the exit code, the content of the JSON file ([] if there is none), what was printed."""

    def run(*arguments: object) -> tuple[int, list[dict[str, Any]], str]:
        file = tmp_path / "found.json"
        file.unlink(missing_ok=True)
        code = main([*map(str, arguments), "--json", str(file)])
        said = capsys.readouterr()
        return code, json.loads(file.read_text()) if file.exists() else [], said.err if code == 2 else said.out

    return run


def test_sound_data_are_summed_up_as_a_run_takes_them(plates_run: Path, check: Check) -> None:
    data, model = plates_run.parent, read_description(plates_run / "checkpoints" / "refined_student.safetensors")
    labeled = ["--labeled", data / "train.json", "--images", data / "train"]
    val = ["--val", data / "val.json", "--val-images", data / "val", "--unlabeled", data / "plain"]
    code, (found,), printed = check(*labeled, *val)
    assert code == 0 and found["problems"] == [] and len(found["warnings"]) == 2
    size = {"smallest": [160, 160], "largest": [160, 160]}
    assert {name: figures["images"] for name, figures in found["sets"].items()} == {
        "labeled": 12, "val": 6, "unlabeled": 6,
    }  # fmt: skip
    assert found["sets"]["unlabeled"] == {"images": 6, **size}
    annotations = json.loads((data / "train.json").read_text())["annotations"]
    counts = {name: sum(a["category_id"] == i for a in annotations) for i, name in ((3, "square"), (7, "disc"))}
    assert found["sets"]["labeled"] == {
        "images": 12, **size, "instances": 24, "crowd_regions": 0, "empty_images": 0, "classes": counts,
    }  # fmt: skip
    assert found["derived"] == {
        "zoom": model.inference.zoom, "crop": list(model.inference.tile), "queries": model.model.num_queries,
    }  # fmt: skip
    for text in (
        f"labelled: 12 images of 160 x 160 pixels (height x width), 24 instances (square {counts['square']}, disc ",
        f"a run would use: zoom {model.inference.zoom:.2f}, crops of 96 x 96 pixels, 16 queries",
        "2 warnings:\n    1. ", "no problem found",
    ):  # fmt: skip
        assert text in printed
    assert check(data / "train.json", "--images", data / "train")[1][0]["sets"] == {"labeled": found["sets"]["labeled"]}


def test_every_problem_comes_with_its_cure_and_the_warnings_beside_it(
    make_coco: Callable[..., Any], box_mask: Callable[..., Any], check: Check
) -> None:
    coco = make_coco("train", {1: "a", 2: "b"})
    for number in range(3):
        coco.instance(coco.image((12 + 4 * number, 16)), box_mask(12 + 4 * number, 16, 0, 0, 5, 5))
    (coco.images / "2.png").write_bytes(b"no image")
    coco.content["annotations"][0]["category_id"] = 7
    code, (found,), printed = check(coco.write(), "--images", coco.images)
    assert code == 1 and [problem["item"] for problem in found["problems"]] == ["image 2", "annotation 1 of image 1"]
    assert all(problem["cure"] and problem["expected"] for problem in found["problems"]) and found["derived"] == {}
    assert "2 problems:\n    1. " in printed and "2.png: image 2: the image file cannot be read" in printed
    assert "Correct its category_id or add the category." in printed and "no problem found" not in printed
    assert found["warnings"] == [f"{coco.file}: 1 classes have no instance: b."] and "1 warning:" in printed
    coco.content["annotations"][0]["category_id"] = 1
    coco.write()
    code, (found,), _ = check(coco.file, "--images", coco.images)
    sizes = found["sets"]["labeled"]
    assert code == 1 and (sizes["smallest"], sizes["largest"], sizes["instances"]) == ([12, 16], [20, 16], 3)


def test_limits_that_objects_exceed_are_warned_of_as_in_a_run(make_coco: Callable[..., Any], check: Check) -> None:
    coco = make_coco()
    for _ in range(2):
        image = coco.image((64, 64))
        for place in range(2100):
            coco.instance(image, {"size": [64, 64], "counts": [place, 1, 4095 - place]})
    code, (found,), printed = check(coco.write(), "--images", coco.images)
    in_run = derived_settings(load_config([]), CocoInstances(coco.file, coco.images), None).warnings
    assert code == 0 and len(in_run) == 3 and found["warnings"] == in_run
    assert (
        "and 2000 detections of an image are kept: the other objects count as missed. Add --max-detections 3150, or cut"
        in printed
    )


def test_a_crowded_validation_image_raises_the_detections(
    make_coco: Callable[..., Any], box_mask: Callable[..., Any], check: Check
) -> None:
    sets = {"train": make_coco("train"), "val": make_coco("val")}
    for number, (name, count) in enumerate({"train": 2, "val": 380}.items()):
        image = sets[name].image((40, 40 + number), image_id=number + 1)
        for place in range(count):
            y, x = 2 * (place // 20), 2 * (place % 20)
            sets[name].instance(image, box_mask(40, 40 + number, y, x, y + 1, x + 1))
    labels = [part for flag, name in (("--labeled", "train"), ("--val", "val")) for part in (flag, sets[name].write())]
    images = ["--images", sets["train"].images, "--val-images", sets["val"].images]
    code, (found,), _ = check(*labels, *images)
    assert code == 0 and found["derived"]["queries"] == 16 and found["warnings"][-1].startswith(
        "1 of 1 validation images show more objects in a crop than its 16 queries can find, about 380 in the fullest."
    )  # fmt: skip
    assert found["notes"] == [
        "objects on a labelled image: 2 in the median, 2 at most, 380 on a validation image; the model finds up to 600 "
        "(--max-detections) and looks for 16 in each crop (--num-queries)"
    ]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_the_output_cannot_show_are_escaped(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accented = "\N{LATIN SMALL LETTER E WITH ACUTE}"
    folder = tmp_path / f"photos of {accented}"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no image")
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", output)
    assert main([str(folder)]) == 1
    output.flush()
    printed = output.buffer.getvalue().decode(encoding)
    shown = accented if encoding == "utf-8" else r"\xe9"
    assert rf"photos of {shown}/caf\udce9.png: image 1: the image file cannot be read" in printed


def test_what_a_run_refuses_beyond_the_files_is_a_problem(plates_run: Path, check: Check, tmp_path: Path) -> None:
    data = plates_run.parent
    labeled = ["--labeled", data / "train.json", "--images", data / "train"]
    code, (found,), printed = check(*labeled, "--unlabeled", data / "train")
    assert code == 1 and "all 12 images are labelled or validation images" in printed and len(found["problems"]) == 1
    code, _, printed = check(*labeled, "--group-key", "city")
    assert code == 1 and "has no field 'city'" in printed
    content = json.loads((data / "train.json").read_text())
    content["images"] = content["images"][:1]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1]
    (tmp_path / "one.json").write_text(json.dumps(content))
    code, (found,), _ = check(tmp_path / "one.json", "--images", data / "train")
    assert code == 0 and "all labels belong to one image" in found["warnings"][-1]
    shutil.copytree(data / "plain", tmp_path / "mixed")
    shutil.copy(data / "train" / "plate 1.png", tmp_path / "mixed" / "again.png")
    code, (found,), _ = check(*labeled, "--unlabeled", tmp_path / "mixed")
    assert code == 0 and "(again.png): they are left out of the unlabelled set" in found["warnings"][-1]


def test_plain_images_are_all_decoded(plates_run: Path, check: Check, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(plates_run.parent / "plain", folder)
    code, (found,), printed = check(folder)
    assert code == 0 and found["sets"] == {"unlabeled": {"images": 6, "smallest": [160, 160], "largest": [160, 160]}}
    cut = (folder / "plate 3.png").read_bytes()
    (folder / "plate 3.png").write_bytes(cut[: len(cut) // 2])
    (folder / "plate 5.png").write_bytes(b"")
    code, found, printed = check(folder, plates_run.parent / "plain")
    assert code == 1 and [len(checked["problems"]) for checked in found] == [2, 0]
    assert "plate 3.png: image 3: the image file cannot be read" in printed and "plate 5.png: image 5:" in printed


@pytest.mark.parametrize(
    ("format", "write"), [("cityscapes", write_cityscapes), ("ade20k", write_ade20k), ("coco", write_coco)]
)
def test_published_data_sets_are_told_by_their_folders(
    tmp_path: Path, check: Check, format: str, write: Callable[[Path], object]
) -> None:
    write(tmp_path / "data")
    code, (found,), printed = check(tmp_path / "data")
    assert code == 0 and found["problems"] == [] and found["derived"]["zoom"] <= 1
    assert {name: figures["images"] for name, figures in found["sets"].items()} == {"labeled": 12, "val": 3}
    assert ("and 12 crowd regions" in printed) == (format != "ade20k")
    again = check("--root", tmp_path / "data", "--format", format)
    assert again[0] == 0 and again[1] == [found]
    next((tmp_path / "data").rglob("*_leftImg8bit.png" if format == "cityscapes" else "*.jpg")).write_bytes(b"")
    assert check(tmp_path / "data")[0] == 1


def test_a_data_set_without_validation_images_is_named_and_the_rest_summed_up(tmp_path: Path, check: Check) -> None:
    write_cityscapes(tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "leftImg8bit" / "val")
    code, (found,), printed = check(tmp_path / "data")
    assert code == 1 and {name: figures["images"] for name, figures in found["sets"].items()} == {"labeled": 12}
    (problem,) = found["problems"]
    assert problem["file"] == str(tmp_path / "data" / "leftImg8bit" / "val") and problem["cure"] in printed


def test_more_kinds_of_problems_than_a_screen_takes_are_counted(make_coco: Callable[..., Any], check: Check) -> None:
    coco = make_coco()
    image = coco.image((40, 60))
    for number in range(203):
        coco.instance(image, {f"{chr(97 + number // 26)}{chr(97 + number % 26)}": 1})
    code, (found,), printed = check(coco.write(), "--images", coco.images)
    assert code == 1 and len(found["problems"]) == 203 and "203 problems:\n    1. " in printed
    assert "an object with the keys hr; expected" in printed and "the keys hs" not in printed
    assert printed.endswith("\n    ... and 3 more kinds, in --json FILE\n") and "    201." not in printed


@pytest.mark.parametrize("format", [*FILES, "yolo"])
def test_labels_of_every_format_are_read(tmp_path: Path, check: Check, format: str) -> None:
    if format == "yolo":
        code, (found,), _ = check(write_yolo_root(tmp_path / "data"))
    else:
        files = {f"--{key}": FILES[format](tmp_path, split) for key, split in (("labeled", "train"), ("val", "val"))}
        flags = [part for pair in files.items() for part in pair]
        code, (found,), _ = check(*flags, "--images", write_images(tmp_path / "images"), "--format", format)
    assert code == 0 and found["problems"] == []
    labeled, val = found["sets"]["labeled"], found["sets"]["val"]
    assert (labeled["images"], labeled["empty_images"], labeled["classes"]) == (4, 1, {"cell": 6, "zebra": 3})
    assert (val["images"], val["classes"]) == (2, {"cell": 2, "zebra": 1})


def test_file_names_may_be_confined_to_the_folder(plates_run: Path, check: Check, tmp_path: Path) -> None:
    content = json.loads((plates_run.parent / "train.json").read_text())
    first, folder = content["images"][0], tmp_path / "images"
    shutil.copytree(plates_run.parent / "train", folder)
    (tmp_path / "plate.png").write_bytes((folder / first["file_name"]).read_bytes())
    first["file_name"] = "../plate.png"
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(content))
    assert check(labels, "--images", folder)[0] == 0
    code, (found,), printed = check(labels, "--images", folder, "--confine")
    assert code == 1 and found["sets"] == {} and "file_name '../plate.png': it leads out of the folder" in printed
    values = ["--val", str(labels), "--images", str(folder)]
    assert evaluate([str(plates_run), *values]) == 0
    assert evaluate([str(plates_run), *values, "--confine"]) == 2


def test_what_cannot_be_checked_is_said_in_a_line(plates_run: Path, check: Check, tmp_path: Path) -> None:
    data = plates_run.parent
    for folder in ("both/leftImg8bit", "both/annotations_instance"):
        (tmp_path / folder).mkdir(parents=True)
    for arguments, message in (
        ([], "give DATA, --labeled with --images, --root, or --unlabeled"),
        ([data / "none.json"], "none.json: there is no such file or folder; correct the path"),
        ([data / "train.json"], "give the folder of its images, --images DIR"),
        (["--labeled", data / "train.json"], "--labeled needs --images"),
        ([data / "plain", "--labeled", data / "train.json"], "give it alone, or say what it is"),
        (["--root", data, "--labeled", data / "train.json"], "leave out --labeled and --val, or --root"),
        (["--root", data], "it has none of them: give the format with --format"),
        (["--root", data, "--format", "labelme"], "--format labelme needs --labeled, --images and --val"),
        ([data / "train.json", "--images", data, "--format", "ade20k"], "--format ade20k needs --root (data.root)"),
        (
            ["--labeled", data / "train.json", "--images", data, "--format", "cityscapes"],
            "--format cityscapes needs --root (data.root): the folder that holds the data set",
        ),
        ([tmp_path / "both"], "it has those of ade20k and cityscapes: give the format with --format"),
    ):
        code, found, said = check(*arguments)
        assert code == 2 and found == [] and message in said and said.count("\n") == 1
