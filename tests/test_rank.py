"""Ranking of images to label next: disagreement by hand, order, and pre-labels that tools and runs accept."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from sskd_fast.rank.__main__ import main
from sskd_fast.rank.disagreement import Comparison, compare
from sskd_fast.rank.judges import judges_of
from sskd_fast.rank.prelabels import instances_dict
from sskd_fast.rank.ranking import RankedImage, open_images, rank_images
from sskd_fast.rle import encode_segmentation
from sskd_fast.run.sources import target_sources
from sskd_fast.yaml_settings import load_config
from tests.coco_builder import encoded

SIZE = (10, 12)


def label(rows: int, columns: int, score: float, *, left: int = 0, category: int = 3) -> dict[str, Any]:
    """A label of so many rows and columns from row 0 and column `left` on."""
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[:rows, left : left + columns] = True
    return {"image_id": 1, "category_id": category, "segmentation": encoded(mask), "score": score}


def test_disagreement_is_one_minus_f1_by_score_and_iou() -> None:
    whole, half, other = label(4, 4, 0.8), label(4, 2, 0.6), label(4, 4, 0.4, left=6)
    for teacher, student, expected in (
        ([], [], 0.0),
        ([whole], [whole], 0.0),
        ([whole], [], 1.0),
        ([], [half], 1.0),
        ([whole], [half], 0.5),  # IoU 8 / 16
        ([whole, other], [half], 1 - 0.5 * 1.4 / 1.8),
        ([whole, other], [half, other], 1 - (0.5 * 1.4 + 0.8) / 2.2),
        ([whole], [half, half], 1 - 0.5 * 1.4 / 2.0),  # one of the two is left without a partner
        ([whole], [label(4, 4, 0.8, category=7)], 1.0),
        ([whole], [label(3, 2, 0.6)], 1.0),  # IoU 6 / 16
    ):
        assert compare(teacher, student, SIZE).disagreement == pytest.approx(expected)


def test_prelabels_are_the_teachers_or_the_better_of_a_pair() -> None:
    whole, half, other = label(4, 4, 0.5), label(4, 2, 0.6), label(4, 4, 0.4, left=6)
    assert compare([whole, other], [half], SIZE).prelabels == [half, other]
    assert compare([other, whole], [label(4, 2, 0.3), label(9, 1, 0.9, left=11)], SIZE).prelabels == [whole, other]
    assert compare([], [half], SIZE).prelabels == []


def drawn(seed: int) -> NDArray[np.bool_]:
    """A mask of several parts with holes, some of one pixel, some touching at corners or at the border."""
    rng = np.random.default_rng(seed)
    mask = rng.random(SIZE) < 0.5
    mask[2:7, 3:9] = True
    mask[4, 5:7] = False
    return mask


def test_every_mask_is_one_polygon_with_the_same_pixels() -> None:
    masks = [drawn(seed) for seed in range(20)]
    labels = [{"image_id": 1, "category_id": 3, "segmentation": encoded(mask), "score": 0.5} for mask in masks]
    image = RankedImage("a.png", SIZE, Comparison(labels, [], []))
    content = json.loads(json.dumps(instances_dict([image], {3: "square"})))
    assert [set(a) for a in content["annotations"]] == [
        {"id", "image_id", "category_id", "segmentation", "area", "iscrowd", "score"}
    ] * 20
    for annotation, mask in zip(content["annotations"], masks, strict=True):
        assert len(annotation["segmentation"]) == 1 and annotation["area"] == mask.sum()
        again = coco_mask.decode(encode_segmentation(annotation["segmentation"], *SIZE)).astype(np.bool_)
        assert np.array_equal(again, mask)


def test_an_image_on_which_the_models_differ_comes_first(plates_run: Path) -> None:
    """The student is the teacher with a score threshold at the best label of one of the images."""
    source = open_images([str(plates_run.parent / "plain")], stretch=True)
    teacher, _ = judges_of(plates_run, device="cpu", score=0.1)
    assert [image.comparison.disagreement for image in rank_images(source, teacher, teacher)] == [0.0] * 6
    best = {r.image_id: 0.0 for r in source.records}
    for found in teacher.labels(source, range(len(source))):
        best[found["image_id"]] = max(best[found["image_id"]], found["score"])
    order = sorted(best, key=best.__getitem__)
    assert 0.1 < best[order[0]] < best[order[-1]]
    pair = source.subset([order[-1], order[0]])
    blind = dataclasses.replace(teacher, thresholds=dict.fromkeys(teacher.thresholds, best[order[-1]]))
    first, second = rank_images(pair, teacher, blind)
    assert first.file == pair.file_names[1] and first.comparison.disagreement == 1 and not first.comparison.student
    assert second.comparison.disagreement < 1 and len(second.comparison.pairs) == 1


def test_thresholds_are_those_of_the_run(plates_run: Path) -> None:
    teacher, student = judges_of(plates_run, device="cpu")
    kept = json.loads((plates_run / "label_statistics.json").read_text())["adapted_teacher"]["thresholds"]
    assert teacher.thresholds == {3: kept["square"], 7: kept["disc"]} and set(student.thresholds) == {3, 7}
    assert (teacher.stage, student.stage) == ("adapted_teacher", "refined_student")
    assert (len(teacher.views), len(student.views)) == (2, 1)
    assert all(0.01 <= score <= 1 for score in student.thresholds.values())


@pytest.fixture
def ranked(plates_run: Path, tmp_path: Path) -> Callable[..., Path]:
    """ranked(*flags) -> the folder of the results on the run's unlabelled images, at a score that finds some."""

    def rank(*flags: str) -> Path:
        images = str(plates_run.parent / "plain")
        assert main([str(plates_run), images, "--output", str(tmp_path / "next"), "--score", "0.2", *flags]) == 0
        return tmp_path / "next"

    return rank


def test_the_ranking_is_written_and_shown(ranked: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = ranked()
    content = json.loads((folder / "ranking.json").read_text())
    rows = content["ranking"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, 6] and len({row["file"] for row in rows}) == 6
    assert [row["disagreement"] for row in rows] == sorted((row["disagreement"] for row in rows), reverse=True)
    assert content["teacher"] == {"stage": "adapted_teacher", "thresholds": {"square": 0.2, "disc": 0.2}}
    with (folder / "ranking.csv").open() as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["rank", "disagreement", "teacher", "student", "file"]
    assert lines[3].split(maxsplit=4)[4] == rows[0]["file"] and lines[3].split()[1] == f"{rows[0]['disagreement']:.3f}"


def test_a_run_takes_the_prelabels_back_unchanged(
    plates_run: Path, ranked: Callable[..., Path], tmp_path: Path
) -> None:
    data, folder = plates_run.parent, ranked()
    content = json.loads((folder / "prelabels.json").read_text())
    rows = json.loads((folder / "ranking.json").read_text())["ranking"]
    assert [image["file_name"] for image in content["images"]] == [row["file"] for row in rows]
    assert content["categories"] == [{"id": 3, "name": "square"}, {"id": 7, "name": "disc"}]
    counts = [sum(a["image_id"] == image["id"] for a in content["annotations"]) for image in content["images"]]
    assert counts == [row["teacher"] for row in rows] and sum(counts) > 0
    settings = {
        "labeled": folder / "prelabels.json",
        "images": data / "plain",
        "unlabeled": data / "train",
        "val": data / "val.json",
        "val_images": data / "val",
        "stretch": "true",
    }
    sources = target_sources(load_config([], [f"data.{key}={value}" for key, value in settings.items()]), tmp_path)
    assert len(sources.labeled) == 6 and sources.classes == ["square", "disc"]
    truth = sources.labeled.ground_truth()["annotations"]
    assert sorted(a["area"] for a in truth) == sorted(a["area"] for a in content["annotations"])


def test_only_the_first_images_are_prelabelled(ranked: Callable[..., Path]) -> None:
    folder = ranked("--top", "2")
    files = [row["file"] for row in json.loads((folder / "ranking.json").read_text())["ranking"]]
    assert [i["file_name"] for i in json.loads((folder / "prelabels.json").read_text())["images"]] == files[:2]


def test_labels_that_somebody_has_corrected_stay(
    plates_run: Path, ranked: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ranked()
    before = (folder / "prelabels.json").read_text()
    assert (ranked("--top", "1") / "prelabels.json").read_text() != before  # written here: written anew
    edited = json.loads(before) | {"annotations": []}
    (folder / "prelabels.json").write_text(json.dumps(edited))
    capsys.readouterr()
    images = str(plates_run.parent / "plain")
    assert main([str(plates_run), images, "--output", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "prelabels.json: a file written here that was edited since" in error
    assert "Write to another folder" in error and json.loads((folder / "prelabels.json").read_text()) == edited


def test_files_passed_over_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").touch()
    assert open_images([str(tmp_path)], stretch=False).file_names == ["a.png"]
    assert capsys.readouterr().err == f"{tmp_path}: 1 passed over: not images: 1 (.txt 1)\n"


def test_images_are_named_one_by_one_by_folder_or_by_glob(plates_run: Path) -> None:
    data = str(plates_run.parent)
    one = open_images([f"{data}/plain/plate 2.png"], stretch=True)
    assert one.file_names == ["plate 2.png"] and one.images_dir == plates_run.parent / "plain"
    several = open_images([f"{data}/plain", f"{data}/plain/plate 2.png", f"{data}/val/plate 1.png"], stretch=True)
    assert several.images_dir == plates_run.parent and len(several) == 7
    assert several.file_names[-2:] == ["plain/plate 6.png", "val/plate 1.png"]
    matching = open_images([f"{data}/*/plate [12].png"], stretch=True)
    assert matching.file_names == [f"{folder}/plate {n}.png" for folder in ("plain", "train", "val") for n in (1, 2)]


def test_broken_images_are_named_and_left_out(
    plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(plates_run.parent / "plain", tmp_path / "in") / "plate 2.png"
    broken.write_bytes(broken.read_bytes()[:2000])  # its header is whole
    command = [str(plates_run), str(tmp_path / "in"), "--score", "0.2", "--output", str(tmp_path / "next")]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"skipped {broken}: the image file cannot be read") and captured.err.count("\n") == 1
    found = json.loads((tmp_path / "next" / "ranking.json").read_text())["ranking"]
    assert sorted(row["file"] for row in found) == [f"plate {number}.png" for number in (1, 3, 4, 5, 6)]


def test_bad_input_is_refused_in_one_line(plates_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, plain = tmp_path / "run", plates_run.parent / "plain"
    shutil.copytree(plates_run, run)
    (run / "predictions" / "refined_student.json").unlink()
    (tmp_path / "text.png").write_text("no image")
    for command, message in (
        ([tmp_path, plain], "not the folder of a run, has no config.yaml; give one such as runs/embedded"),
        (
            [run, plain],
            "refined_student.json: the file is missing, needed for the thresholds; give one for both models",
        ),
        ([plates_run, tmp_path / "none"], "none: there is no such file or folder; correct the path"),
        (
            [plates_run, tmp_path / "*.tif"],
            "*.tif: matches no readable file; expected images that Pillow reads",
        ),
    ):
        assert main([str(part) for part in command]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    command = [plates_run, tmp_path / "text.png", "--output", tmp_path / "next"]
    assert main([str(part) for part in command]) == 2
    skipped, error = capsys.readouterr().err.splitlines()
    assert "text.png: the image file cannot be read" in skipped and not (tmp_path / "next").exists()
    assert error == "error: none of 1 images could be read; see the lines above"
    statistics = json.loads((run / "label_statistics.json").read_text())
    statistics["adapted_teacher"]["thresholds"] = {}
    (run / "label_statistics.json").write_text(json.dumps(statistics))
    assert main([str(run), str(plain)]) == 2
    assert "has no threshold of the adapted teacher for square; give one for both" in capsys.readouterr().err
    (run / "label_statistics.json").write_text('{"adapted_teacher": {')
    assert main([str(run), str(plain)]) == 2
    error = capsys.readouterr().err
    assert f"error: {run}/label_statistics.json: the file is damaged (" in error and error.count("\n") == 1
    assert error.endswith("needed for the thresholds; give one for both models, --score 0.5\n")
    (run / "checkpoints" / "adapted_teacher.safetensors").unlink()
    assert main([str(run), str(plain)]) == 2
    assert "has no finished adapted_teacher" in capsys.readouterr().err
    (run / "config.yaml").write_text("teacher: {kind: results, foundation: {results: given.json}}\n")
    assert main([str(run), str(plain)]) == 2
    assert "its teacher is a file of predictions, which cannot label other images; take" in capsys.readouterr().err
