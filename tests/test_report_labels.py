from __future__ import annotations

import base64
import io
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from run_folders import CATEGORIES, Page, disc, make_run, result

from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.splits import write_split
from sskd_fast.pseudo_labels import label_statistics
from sskd_fast.report import write_report
from sskd_fast.report.html_choices import MOST_BYTES
from sskd_fast.report.label_choices import Choice, by_class, label_choices, score_histogram
from sskd_fast.report.label_pictures import COLORS, MOST_REFUSED, label_rows
from sskd_fast.report.score_histogram import histogram_chart
from sskd_fast.report.unlabeled_images import unlabeled_images

THRESHOLDS = {"disc": 0.6, "ring": 0.7}
CACHED = "cache/unlabeled/supervised_teacher.json"
RAW = [
    result(1, 1, 12, 12, 0.9),
    result(1, 1, 12, 13, 0.8),  # the same disc once more
    result(1, 2, 30, 40, 0.65),  # unsure
    result(1, 2, 40, 10, 0.6),
    result(2, 1, 20, 20, 0.6),  # at the threshold
    result(2, 1, 40, 40, 0.05),
]
LABELS = [RAW[0] | {"iscrowd": 0}, RAW[4] | {"iscrowd": 0}, RAW[2] | {"iscrowd": 1}]


def choices() -> list[Choice]:
    return label_choices(RAW, LABELS, CATEGORIES, THRESHOLDS)


def labelled_run(folder: Path) -> Path:
    """A run whose first teacher has labelled two images of the unlabelled folder that its settings name."""
    run, plain = make_run(folder), folder / "plain"
    plain.mkdir()
    for name in ("first <1>.png", "second.png"):
        Image.fromarray(np.full((48, 64, 3), 200, dtype=np.uint8)).save(plain / name)
    (run / "config.yaml").write_text(f"data:\n  unlabeled: {plain}\n")
    write_split(run / "splits" / "unlabeled.txt", [1, 2], dataset=ImageFolder(plain))
    (run / "cache" / "unlabeled").mkdir(parents=True)
    cached = {"key": "k", "image_ids": [1, 2], "results": RAW}
    (run / CACHED).write_text(json.dumps(cached))
    (run / "pseudo_labels" / "supervised_teacher.json").write_text(json.dumps(LABELS))
    statistics = label_statistics(LABELS[:2], [1, 2], CATEGORIES, thresholds={1: 0.6, 2: 0.7})
    (run / "label_statistics.json").write_text(json.dumps({"supervised_teacher": vars(statistics)}))
    return run


def section(run: Path) -> str:
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    return text[text.index("Pseudo-labels kept and refused") : text.index("Configuration")]


def test_every_prediction_is_kept_unsure_refused_or_doubled() -> None:
    assert [choice.fate for choice in choices()] == ["kept", "doubled", "unsure", "refused", "kept", "refused"]
    counts = {name: Counter(choice.fate for choice in own) for name, own in by_class(choices()).items()}
    assert counts == {"disc": Counter(kept=2, doubled=1, refused=1), "ring": Counter(unsure=1, refused=1)}
    assert list(counts) == ["disc", "ring"], "most predictions first"


def test_a_prediction_that_comes_twice_is_kept_once() -> None:
    found = label_choices([RAW[0], RAW[0]], LABELS[:1], CATEGORIES, THRESHOLDS)
    assert [choice.fate for choice in found] == ["kept", "doubled"]


def test_labels_of_other_predictions_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 3 labels are not among the 5 predictions"):
        label_choices(RAW[1:], LABELS, CATEGORIES, THRESHOLDS)
    with pytest.raises(ValueError, match="class 'ring' has no threshold; the classes with one are disc"):
        label_choices(RAW, LABELS, CATEGORIES, {"disc": 0.6})


def test_histogram_counts_scores_and_marks_the_threshold() -> None:
    disc_scores, ring_scores = (score_histogram(name, own) for name, own in by_class(choices()).items())
    assert (disc_scores.name, disc_scores.threshold, ring_scores.name) == ("disc", 0.6, "ring")
    assert {i: n for i, n in enumerate(disc_scores.all) if n} == {1: 1, 12: 1, 16: 1, 18: 1}
    assert {i: n for i, n in enumerate(disc_scores.kept) if n} == {12: 1, 18: 1}
    assert sum(ring_scores.kept) == 0 and sum(ring_scores.read) == 1 and sum(ring_scores.all) == 2
    root = ElementTree.fromstring(histogram_chart(disc_scores))
    assert root.attrib["aria-label"] == "Scores of disc: 4 predictions, 2 kept, 0 unsure, threshold 0.60"
    line = next(path.attrib["d"] for path in root.iter("path") if path.attrib["class"] == "threshold")
    assert line.startswith("M151.6 ")  # 34 + 0.6 * 196
    bars = {path.attrib["class"]: path.attrib["d"].count("z") for path in root.iter("path")}
    assert (bars["bar refused"], bars["bar unsure"], bars["bar kept"]) == (4, 2, 2)


def test_pictures_show_labels_and_the_best_of_the_refused(tmp_path: Path) -> None:
    images = ImageFolder(labelled_run(tmp_path) / "plain")
    many = [Choice(result(1, 1, 30, 40, s / 100), "disc", 0.6, "refused") for s in range(10, 20)]
    first, second = label_rows(images, {"supervised_teacher": [*choices(), *many]})
    assert (first.file_name, second.file_name, first.problem) == ("first <1>.png", "second.png", "")
    shown = first.pictures[0].shown
    assert [choice.fate for choice in shown] == ["kept", "unsure", *["refused"] * MOST_REFUSED]
    assert [choice.score for choice in shown[2:]] == [0.6, 0.19, 0.18, 0.17, 0.16, 0.15]
    assert [choice.fate for choice in second.pictures[0].shown] == ["kept", "refused"]


def test_an_unlabelled_image_that_cannot_be_read_is_grey_and_named(tmp_path: Path) -> None:
    images = ImageFolder(labelled_run(tmp_path) / "plain")
    (images.images_dir / "second.png").write_bytes(b"no picture")
    first, second = label_rows(images, {"supervised_teacher": choices()})
    assert first.problem == "" and "second.png: the image file cannot be read" in second.problem
    (drawn,) = second.pictures
    assert [choice.fate for choice in drawn.shown] == ["kept", "refused"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.source.split(",")[1]))).convert("RGB"))
    assert (
        pixels.shape == (drawn.height, drawn.width, 3) == (192, 320, 3) and np.ptp(pixels) == 0 and pixels.max() == 128
    )


@pytest.mark.parametrize(("fate", "share"), [("kept", (0.9, 1.0)), ("refused", (0.3, 0.8))])
def test_labels_have_a_solid_rim_and_the_refused_a_dashed_one(
    tmp_path: Path, fate: Any, share: tuple[float, float]
) -> None:
    images = ImageFolder(labelled_run(tmp_path) / "plain")
    kept = Choice(result(1, 1, 40, 8, 0.9), "disc", 0.6, "kept")  # so that the image is shown
    one = Choice({**result(1, 1, 0, 0, 0.5), "segmentation": disc(24, 32, radius=14)}, "disc", 0.6, fate)
    source = label_rows(images, {"supervised_teacher": [kept, one]})[0].pictures[0].source
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB"), dtype=int)
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    colored = 0
    for angle in angles:
        radii = np.arange(62, 76)
        rows, columns = 120 + radii * np.sin(angle) + 2.5, 160 + radii * np.cos(angle) + 2.5
        ray = pixels[rows.astype(int), columns.astype(int)]
        colored += bool((np.abs(ray - np.array(COLORS[fate])).max(axis=1) < 70).any())
    assert share[0] <= colored / len(angles) <= share[1]


def test_the_report_shows_what_was_kept_and_refused(tmp_path: Path) -> None:
    run = labelled_run(tmp_path)
    said = section(run)
    assert "first <1>.png" in said and "second.png" in said
    assert "1 kept, 1 unsure, 1 refused shown 1 disc 0.90 ≥ 0.60 ring 0.65 < 0.70 ring 0.60 < 0.70" in said
    assert "1 disc 0.6000 ≥ 0.6000" in said, "equal at two digits"
    assert "disc 0.60 2 0 1 1 ring 0.70 0 1 1 0 All 2 1 2 1" in said
    html = (run / "report.html").read_text(encoding="utf-8")
    assert html.count('class="threshold"') == 2
    assert len(re.findall(r'alt="[^"]*Supervised teacher: ', html)) == 2


def test_the_report_says_why_refused_predictions_are_unknown(tmp_path: Path) -> None:
    run = labelled_run(tmp_path)
    (run / CACHED).unlink()
    words = f"Supervised teacher : {CACHED} has been deleted, so the refused predictions are no longer known"
    assert words in section(run)


def test_a_large_cache_is_not_read(tmp_path: Path) -> None:
    run = labelled_run(tmp_path)
    os.truncate(run / "cache" / "unlabeled" / "supervised_teacher.json", MOST_BYTES + 1)
    assert f"{CACHED} has 256 MB; predictions are shown from files of up to 256 MB." in section(run)


@pytest.mark.parametrize("place", ["embedded", "labeled", "root"])
def test_unlabelled_images_are_found_again_by_their_settings(tmp_path: Path, place: str) -> None:
    run, names = tmp_path / "run", ["a.png", "b.png", "c.png"]
    folder, annotations, data = {
        "embedded": (run / "data" / "unlabeled", run / "data" / "unlabeled.json", {}),
        "labeled": (
            tmp_path / "images",
            tmp_path / "all.json",
            {"labeled": f"{tmp_path}/all.json", "images": f"{tmp_path}/images", "val": f"{tmp_path}/val.json"},
        ),
        "root": (
            tmp_path / "coco" / "train2017",
            tmp_path / "coco" / "annotations" / "instances_train2017.json",
            {"root": f"{tmp_path}/coco", "format": "coco"},
        ),
    }[place]
    for path in (folder, annotations.parent):
        path.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 6)).save(folder / name)
    images = [{"id": i, "file_name": name, "height": 6, "width": 8} for i, name in enumerate(names, 1)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "disc"}]}
    annotations.write_text(json.dumps(content))
    write_split(run / "splits" / "unlabeled.txt", [2, 3], dataset=ImageFolder(folder))
    found = unlabeled_images(run, data)
    assert found.file_names == ["b.png", "c.png"] and found.pixels(0).shape == (6, 8, 3)


def test_labels_that_do_not_belong_to_the_predictions_are_reported(tmp_path: Path) -> None:
    run = labelled_run(tmp_path)
    (run / "pseudo_labels" / "supervised_teacher.json").write_text(json.dumps([RAW[0] | {"score": 0.91}]))
    assert f"{CACHED} is not what its labels were chosen from (1 of 1 labels" in section(run)


def test_true_labels_have_no_refused_ones(tmp_path: Path) -> None:
    run = labelled_run(tmp_path)
    statistics = label_statistics(LABELS[:2], [1, 2], CATEGORIES)
    (run / "label_statistics.json").write_text(json.dumps({"supervised_teacher": vars(statistics)}))
    assert "its labels are the hidden true ones" in section(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plain: (plain / "second.png").unlink(), "1 ids that"),
        (lambda plain: (plain / "second.png").rename(plain / "third.png"), "other image files than when they were"),
    ],
)
def test_missing_images_are_reported(tmp_path: Path, change: Any, words: str) -> None:
    run = labelled_run(tmp_path)
    change(run / "plain")
    said = section(run)
    assert "The unlabelled images cannot be shown:" in said and words in said
    assert "All 2 1 2 1" in said


def test_predictions_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    run = labelled_run(tmp_path)
    (run / CACHED).write_text("{")
    with pytest.raises(ValueError, match=f"{CACHED}: not readable as JSON"):
        write_report(run)


def test_labels_in_shards_are_located(tmp_path: Path) -> None:
    run = labelled_run(tmp_path)
    statistics = json.loads((run / "label_statistics.json").read_text())
    statistics["supervised_teacher"]["shards"] = 7
    (run / "label_statistics.json").write_text(json.dumps(statistics))
    (run / "pseudo_labels" / "supervised_teacher.json").unlink()
    place = "pseudo_labels/supervised_teacher/"
    assert f"its labels are in 7 shards in {place}; the refused predictions were not kept" in section(run)
