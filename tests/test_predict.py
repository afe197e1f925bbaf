"""`python -m sskd_fast.predict`: folders, globs and videos, from a checkpoint to files, with interruptions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from trained_run import write_plates

from sskd_fast.data.places import InputError
from sskd_fast.journal import Journal
from sskd_fast.predict.__main__ import main
from sskd_fast.predict.drawing import draw
from sskd_fast.predict.inputs import find_inputs, overlay_names
from sskd_fast.predict.work import Work
from sskd_fast.predictor import Prediction, load
from sskd_fast.report.overlays import COLORS
from sskd_fast.source_prediction import groups

ROOT = Path(__file__).resolve().parent.parent


def predict(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def predictions(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "predictions.json").read_text()))


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_predictions_are_those_of_the_run(plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(plates_run, plates_run.parent / "val", "--score", 0, "--output", tmp_path) == 0
    found = predictions(tmp_path)
    expected = json.loads((plates_run / "predictions" / "refined_student.json").read_text())
    keys = ("image_id", "category_id", "segmentation", "score")
    assert [{key: a[key] for key in keys} for a in found["annotations"]] == expected and expected
    assert found["images"] == json.loads((plates_run.parent / "val.json").read_text())["images"]
    assert sorted(c["name"] for c in found["categories"]) == ["disc", "square"]
    assert {k: found["info"][k] for k in ("model", "stage", "score", "images_dir")} == {
        "model": str(plates_run),
        "stage": "refined_student",
        "score": 0,
        "images_dir": str(plates_run.parent / "val"),
    }
    last = found["annotations"][-1]
    mask = coco_mask.decode(last["segmentation"])
    rows, columns = np.nonzero(mask)
    assert last["id"] == len(expected) and last["area"] == mask.sum() and last["iscrowd"] == 0
    assert last["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert capsys.readouterr().out.startswith(
        f"6 images, {len(expected)} instances with a score of at least 0: {tmp_path}"
    )
    names = sorted(p.name for p in (tmp_path / "overlays").iterdir())
    assert names == [f"plate {number}.png" for number in range(1, 7)]
    assert not (tmp_path / "predictions.json.partial").exists()
    opened = COCO(str(tmp_path / "predictions.json"))
    assert len(opened.loadRes(found["annotations"]).anns) == len(opened.anns) == len(expected)


def test_augmented_predictions_are_those_of_the_run_in_its_views(plates_run: Path, tmp_path: Path) -> None:
    arguments = (plates_run, plates_run.parent / "val", "--score", 0, "--no-overlays", "--output", tmp_path)
    assert predict(*arguments, "--augment") == 0
    expected = json.loads((plates_run / "predictions" / "refined_student_views.json").read_text())
    keys = ("image_id", "category_id", "segmentation", "score")
    assert [{key: a[key] for key in keys} for a in predictions(tmp_path)["annotations"]] == expected and expected
    assert expected != json.loads((plates_run / "predictions" / "refined_student.json").read_text())
    plain, inputs = load(plates_run), find_inputs([str(plates_run.parent / "val")])
    keys_of_journals = {
        Work(str(plates_run), predictor, inputs, 0.5, None).key for predictor in (plain, plain.with_views())
    }
    assert len(keys_of_journals) == 2, "else a killed command would go on in other views"


def test_every_coco_file_of_a_run_opens_in_other_tools(plates_run: Path) -> None:
    truth = COCO(str(plates_run / "ground_truth.json"))
    for file in (plates_run / "predictions").glob("*.json"):
        truth.loadRes(str(file))
    (file,) = (plates_run / "pseudo_labels").glob("adapted*.json")
    content, opened = json.loads(file.read_text()), COCO(str(file))
    folder = Path(content["info"]["images_dir"])
    assert folder == plates_run.parent / "plain" and len(opened.imgs) == 6
    for image in opened.imgs.values():
        with Image.open(folder / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
    assert opened.anns and sorted(c["name"] for c in opened.cats.values()) == ["disc", "square"]
    for number, annotation in enumerate(content["annotations"], 1):
        mask = opened.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        assert annotation["id"] == number and annotation["area"] == mask.sum() > 0
        assert annotation["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["iscrowd"] in (0, 1) and 0 < annotation["score"] <= 1
    supervision = pytest.importorskip("supervision")
    found = supervision.DetectionDataset.from_coco(str(folder), str(file))
    assert sum(len(detections) for _, _, detections in found) == len(content["annotations"])


def test_the_score_holds_for_everything_that_is_written(plates_run: Path, tmp_path: Path) -> None:
    every = json.loads((plates_run / "predictions" / "refined_student.json").read_text())
    middle = sorted(result["score"] for result in every)[len(every) // 2]
    assert predict(plates_run, plates_run.parent / "val", "--score", middle, "--output", tmp_path, "--no-overlays") == 0
    found = [a["score"] for a in predictions(tmp_path)["annotations"]]
    assert found == [result["score"] for result in every if result["score"] >= middle]
    assert not (tmp_path / "overlays").exists()


def test_a_killed_command_goes_on_and_gives_the_same_bytes(plates_run: Path, tmp_path: Path) -> None:
    write_plates(tmp_path / "plates", 64, 5)  # two groups
    arguments = [str(plates_run), str(tmp_path / "plates"), "--score", "0.3"]
    command = [sys.executable, "-m", "sskd_fast.predict", *arguments, "--output", str(tmp_path / "cut")]
    journal = tmp_path / "cut" / "predictions.json.partial"
    process = subprocess.Popen(command, cwd=ROOT)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, "it ended before it could be killed"
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert journal.exists() and not (tmp_path / "cut" / "predictions.json").exists()
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    assert predict(*arguments, "--output", tmp_path / "whole") == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert len(predictions(tmp_path / "cut")["images"]) == 64


def test_images_are_predicted_again_only_if_something_changed(
    plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, output = shutil.copytree(plates_run.parent / "val", tmp_path / "in"), tmp_path / "out"
    call = (plates_run, images, "--output", output, "--no-overlays", "--format", "labelme", "--score")
    (output / "labelme").mkdir(parents=True)
    (output / "labelme" / "plate 1.json").write_text("somebody's")
    assert predict(*call, 0.02) == 2 and "a file that sskd_fast did not write" in capsys.readouterr().err
    assert (output / "labelme" / "plate 1.json").read_text() == "somebody's"
    (output / "labelme" / "plate 1.json").unlink()
    journal = output / "predictions.json.partial"
    key, line = journal.read_text().splitlines()
    group = json.loads(line)
    group["images"][0]["results"][0]["score"] = 0.123
    for changed in ("nothing", "score", "image"):
        journal.write_text(f"{key}\n{json.dumps(group)}\n")
        if changed == "image":
            os.utime(images / "plate 6.png", ns=(0, 0))
        assert predict(*call, 0.03 if changed == "score" else 0.02) == 0
        assert (predictions(output)["annotations"][0]["score"] == 0.123) is (changed == "nothing")


def test_predictions_that_somebody_has_edited_are_found_before_the_work(
    plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "predictions.json").write_text("somebody's")
    assert predict(plates_run, plates_run.parent / "val", "--output", tmp_path) == 2
    error = capsys.readouterr().err
    assert "predictions.json: a file that sskd_fast did not write" in error and error.count("\n") == 1
    assert files(tmp_path) == {"predictions.json": b"somebody's"}


def test_a_folder_that_another_process_writes_to_is_left_alone(
    plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / ".a.png.7.partial").write_bytes(b"half a picture")
    with Journal(tmp_path / "predictions.json.partial", "theirs") as theirs:
        theirs.append([{"images": []}])
        before = files(tmp_path)
        assert predict(plates_run, plates_run.parent / "val", "--output", tmp_path) == 2
        assert files(tmp_path) == before
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: another process is writing to this folder (it holds predictions.json.partial); expected "
        "one at a time; wait until it ends, or choose another folder\n"
    )
    assert predict(plates_run, plates_run.parent / "val", "--output", tmp_path, "--no-overlays") == 0


def test_broken_images_are_named_and_left_out(
    plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(plates_run.parent / "val", tmp_path / "in")
    (tmp_path / "in" / "plate 2.png").write_bytes(b"no picture")
    assert predict(plates_run, tmp_path / "in", "--score", 0, "--output", tmp_path / "out") == 1
    assert capsys.readouterr().err.startswith(f"skipped {tmp_path / 'in' / 'plate 2.png'}: the image file cannot be")
    assert [image["id"] for image in predictions(tmp_path / "out")["images"]] == [1, 3, 4, 5, 6]
    assert {a["image_id"] for a in predictions(tmp_path / "out")["annotations"]} <= {1, 3, 4, 5, 6}
    assert not (tmp_path / "out" / "overlays" / "plate 2.png").exists()
    assert predict(plates_run, tmp_path / "in" / "plate 2.png", "--output", tmp_path / "none") == 2
    assert "error: none of 1 images could be read" in capsys.readouterr().err
    assert list((tmp_path / "none").iterdir()) == []


def test_images_of_one_name_do_not_overwrite_each_other(plates_run: Path, tmp_path: Path) -> None:
    for name in ("a/x.png", "b/x.png", "b/x.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with Image.open(plates_run.parent / "val" / "plate 1.png") as image:
            image.save(tmp_path / name)
    assert predict(plates_run, tmp_path / "a", tmp_path / "b" / "*", tmp_path, "--output", tmp_path / "out") == 0
    assert [i["file_name"] for i in predictions(tmp_path / "out")["images"]] == ["a/x.png", "b/x.png", "b/x.tif"]
    assert sorted(files(tmp_path / "out" / "overlays")) == ["a/x.png", "b/x.png.png", "b/x.tif.png"]
    # Overlays are not taken for images when the command is repeated.
    assert predict(plates_run, tmp_path, "--output", tmp_path / "out") == 0
    assert len(predictions(tmp_path / "out")["images"]) == 3


def test_overlays_keep_the_suffix_only_if_they_must() -> None:
    assert overlay_names(["a.jpg", "b/a.jpg", "b/a.png"]) == {
        "a.jpg": "a.png",
        "b/a.jpg": "b/a.jpg.png",
        "b/a.png": "b/a.png.png",
    }
    assert overlay_names(["a.jpg", "a.tif", "a.jpg.png"]) == {
        "a.jpg": "a.jpg.png",
        "a.tif": "a.tif.png",
        "a.jpg.png": "a.jpg.png.png",
    }


def test_places_are_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/b/2.JPG", "a/.hidden/3.png", "a/notes.txt", "c/4.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_inputs([str(tmp_path / "c/4.tif"), str(tmp_path / "a"), str(tmp_path / "a" / "*")])
    assert (found.folder, found.files, found.count()) == (tmp_path, ("c/4.tif", "a/1.png", "a/b/2.JPG"), 3)
    assert found.notes == (
        f"{tmp_path}/a: 2 passed over: hidden by a dot before the name: 1 (.hidden); not images: 1 (.txt 1)",
        f"{tmp_path}/a/*: 1 passed over: not images: 1 (.txt 1)",
    )
    assert find_inputs([str(tmp_path / "**" / "*.tif")]).files == ("4.tif",)
    (tmp_path / "empty").mkdir()
    for place, said in (
        ("empty", "empty: has no image; expected images that Pillow reads, such as .png, .* one by one"),
        ("a/*.bmp", r"a/\*.bmp: matches no readable file; expected images .*\.mp4, .*; check the pattern"),
        ("nowhere.png", "nowhere.png: there is no such file or folder; correct the path"),
    ):
        with pytest.raises(InputError, match=said):
            find_inputs([str(tmp_path / place)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "{data}/val"], "nowhere: there is no such file or folder; expected a checkpoint"),
        (["{data}/val.json", "{data}/val"], "val.json: not a readable safetensors file"),
        (["{data}/run", "{data}/val", "--stage", "best"], "has no finished best; found adapted_teacher,"),
        (["{data}/run/checkpoints/refined_student.safetensors", "{data}/val", "--stage", "x"], "leave the stage out"),
        (["{data}/run", "{data}/val", "--device", "abacus"], "device abacus: PyTorch cannot use it"),
        (["{data}/run", "{data}/none"], "none: there is no such file or folder"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    filled = [argument.format(data=plates_run.parent) for argument in arguments]
    assert predict(*filled, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [("--score", "1.5"), ("--batch", "0"), ("--every", "0"), ("--format", "cvat")])
def test_options_out_of_range_are_refused(option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        predict("model", "image.png", *option)
    assert ended.value.code == 2 and option[0] in capsys.readouterr().err


def write_clip(path: Path, frames: int) -> None:
    """A video of noise, 96 x 64 pixels."""
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(3)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for _ in range(frames):
        writer.write(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8))
    writer.release()


def test_every_nth_frame_of_a_video_is_an_image(plates_run: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    write_clip(tmp_path / "clip.avi", 7)
    assert predict(plates_run, tmp_path / "clip.avi", "--every", 3, "--score", 0, "--output", tmp_path / "out") == 0
    found = predictions(tmp_path / "out")
    assert found["images"][2] == {
        "id": 3, "file_name": "clip.avi/000006.png", "height": 64, "width": 96, "video": "clip.avi", "frame": 6,
    }  # fmt: skip
    assert sorted(files(tmp_path / "out" / "overlays")) == [f"clip.avi/00000{n}.png" for n in (0, 3, 6)]
    capture = cv2.VideoCapture(str(tmp_path / "clip.avi"))
    frames = [capture.read()[1][..., ::-1] for _ in range(7)]
    found_by_hand = load(plates_run).predict(frames[::3])
    expected = [result for number, p in enumerate(found_by_hand, 1) for result in p.to_coco(number)]
    keys = ("image_id", "category_id", "segmentation", "score")
    assert [{k: a[k] for k in keys} for a in found["annotations"]] == expected
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert predict(plates_run, tmp_path / "broken.mp4", "--output", tmp_path / "none") == 2


def test_a_video_cut_in_the_middle_is_named(
    plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.avi"
    write_clip(clip, 40)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    assert predict(plates_run, clip, "--every", 10, "--output", tmp_path / "out") == 1
    assert f"skipped {clip}: ends after 20 of 40 frames; expected a whole, readable video. Copy it" in (
        capsys.readouterr().err
    )
    names = [image["file_name"] for image in predictions(tmp_path / "out")["images"]]
    assert names == ["clip.avi/000000.png", "clip.avi/000010.png"]


def test_a_video_without_opencv_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.mp4").touch()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"clip\.mp4: .* OpenCV, which is missing: pip install 'sskd_fast\[video\]'"):
        find_inputs([str(tmp_path / "clip.mp4")])


def test_other_formats_come_beside_and_spare_edited_files(
    plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = (plates_run, plates_run.parent / "val", "--score", 0.02, "--no-overlays", "--output", tmp_path, "--format")
    assert predict(*call, "yolo") == predict(*call, "labelme") == 0
    assert len(list((tmp_path / "yolo" / "labels").glob("*.txt"))) == 6
    assert "names:" in (tmp_path / "yolo" / "data.yaml").read_text()
    label = tmp_path / "labelme" / "plate 1.json"
    assert json.loads(label.read_text())["imagePath"] == "plate 1.png"
    label.write_text(label.read_text() + " ")
    assert predict(*call, "labelme") == 2
    assert "edited since" in capsys.readouterr().err and label.read_text().endswith(" ")
    assert (tmp_path / "predictions.json.partial").exists()  # what was predicted is not lost


def test_an_image_at_the_limit_of_instances_is_pointed_out(
    plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = (plates_run, plates_run.parent / "val" / "plate 1.png", "--score", 0, "--output", tmp_path, "--no-overlays")
    assert predict(*call, "--max-detections", 2) == 0
    assert "1 images have 2 instances, the limit; raise it with --max-detections" in capsys.readouterr().out
    assert len(predictions(tmp_path)["annotations"]) == 2


def test_a_limit_of_pixels_holds_for_the_command(
    plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSKD_FAST_MAX_PIXELS", "")
    call = (plates_run, plates_run.parent / "val" / "plate 1.png", "--output", tmp_path, "--no-overlays")
    assert predict(*call, "--max-pixels", 160 * 160 - 1) == 2
    said = capsys.readouterr().err
    assert (
        "plate 1.png: the image has 160 x 160 pixels (height x width), 25,600 in all; expected at most 25,599" in said
    )
    assert predict(*call, "--max-pixels", 160 * 160) == 0 and len(predictions(tmp_path)["images"]) == 1


def test_groups_end_at_32_images_or_32_megapixels() -> None:
    assert [len(group) for group in groups(range(70), lambda _: 1)] == [32, 32, 6]
    assert [len(group) for group in groups(range(7), lambda _: 12_000_000)] == [3, 3, 1]
    assert [len(group) for group in groups([1, 40, 1, 1], lambda size: size * 1_000_000)] == [2, 2]


def test_a_large_image_stays_within_the_stated_memory(plates_run: Path, tmp_path: Path) -> None:
    """At most 100 bytes a pixel more than for a small image, and 100 MB for tiles and masks."""
    rng = np.random.default_rng(0)
    large = rng.normal(900, 40, (1200, 1600)).clip(0, 65535).astype(np.uint16)
    Image.fromarray(large).save(tmp_path / "large.png")
    small = plates_run.parent / "val" / "plate 1.png"
    script = f"""
import resource
from sskd_fast.data.places import InputError
from sskd_fast.journal import Journal
from sskd_fast.predict.__main__ import main
for image in ({str(small)!r}, {str(tmp_path / "large.png")!r}):
    assert main([{str(plates_run)!r}, image, "--output", {str(tmp_path / "out")!r}]) == 0
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = (int(line) * 1024 for line in done.stdout.splitlines() if line.isdigit())
    assert after - before < 100 * large.size + 100_000_000


def test_drawings_show_classes_by_colour_and_name() -> None:
    image = torch.full((3, 400, 400), 200, dtype=torch.uint8)
    masks = np.zeros((400, 400, 2), dtype=np.uint8, order="F")
    masks[100:200, 50:150, 0] = masks[100:200, 250:350, 1] = 1
    codes = coco_mask.encode(masks)
    prediction = Prediction((400, 400), codes, [0, 1], [0.9, 0.8], ("disc", "square"), (3, 7))
    drawn = np.asarray(draw(image, prediction))
    assert drawn.shape == (400, 400, 3)
    for left, color in ((50, COLORS[0]), (250, COLORS[1])):
        assert drawn[101, left + 50].tolist() == list(color)  # the rim
        inside = drawn[150, left + 50]
        assert np.abs(inside - (0.66 * 200 + 0.34 * np.array(color))).max() < 2
        label = (drawn[70:99, left : left + 100] == color).all(-1)
        assert label.sum() > 300  # above its mask, in its colour
    assert (drawn[:60] == 200).all() and (drawn[220:] == 200).all()


def test_a_label_wider_than_the_picture_is_left_out() -> None:
    image, mask = torch.full((3, 400, 100), 200, dtype=torch.uint8), np.zeros((400, 100), dtype=np.uint8, order="F")
    mask[200:260, 20:80] = 1
    codes = [coco_mask.encode(mask)]
    long, longer, short = (
        np.asarray(draw(image, Prediction((400, 100), codes, [0], [0.9], ("n" * length,), (3,))))
        for length in (70, 90, 1)
    )
    assert np.array_equal(long, longer) and (long[:380] == 200).all() and (short[:380] != 200).any()


def test_drawings_are_neither_tiny_nor_huge() -> None:
    none = Prediction((1, 1), [], [], [], ("disc",), (3,))
    sizes = [draw(torch.full((3, *size), 200, dtype=torch.uint8), none).size for size in ((64, 64), (900, 3200))]
    assert sizes == [(320, 320), (1600, 450)]
