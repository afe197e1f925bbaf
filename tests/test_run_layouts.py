"""Published data sets through all stages with one command: a path and the format's name are enough."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sskd_fast.data.splits import read_split
from sskd_fast.method import FITTED, ROW_ORDER
from sskd_fast.run.__main__ import main
from tests.label_sets import FILES, write_images, write_yolo_root
from tests.official_layouts import write_ade20k, write_cityscapes, write_coco

WRITERS: dict[str, Callable[[Path], object]] = {
    "cityscapes": write_cityscapes,
    "ade20k": write_ade20k,
    "coco": write_coco,
}
SHORT = ["--preset", "smoke", "--max-steps", "2", "--labeled-fraction", "0.5", "views.rot90=false"]


@pytest.mark.parametrize(
    "format", ["cityscapes", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ade20k", "coco"))]
)
def test_all_stages_run_on_the_official_folders(tmp_path: Path, format: str) -> None:
    WRITERS[format](tmp_path / "data")
    folder = tmp_path / "run"
    crop = ["--crop", "[64,128]", "views.fit=true", "views.scale=[0.5,1.5]", "data.zoom=1"]
    place = ["--root", str(tmp_path / "data"), "--format", format, "--output", str(folder)]
    assert main([*place, *SHORT, *crop, "--seed", "3"]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [row["name"] for row in metrics["rows"]] == [name for name in ROW_ORDER if name != FITTED]
    assert (metrics["labeled_images"], metrics["unlabeled_images"], metrics["val_images"]) == (6, 6, 3)
    details = json.loads((folder / "details.json").read_text())
    for row in metrics["rows"]:
        official = {key for key in row if key.startswith("cityscapes")}
        assert official == ({"cityscapes_ap", "cityscapes_ap50"} if format == "cityscapes" else set())
        if official:
            assert 0 <= row["cityscapes_ap"] == details[row["name"]]["cityscapes"]["ap"] <= 100
    assert ("Cityscapes AP" in (folder / "report.html").read_text()) == (format == "cityscapes")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["yolo", *FILES])
def test_all_stages_run_on_every_format_of_labels(tmp_path: Path, format: str) -> None:
    if format == "yolo":
        place = ["--root", str(write_yolo_root(tmp_path / "data"))]
    else:
        train, val = (FILES[format](tmp_path / "data", split) for split in ("train", "val"))
        images = write_images(tmp_path / "data" / "images")
        place = ["--labeled", str(train), "--val", str(val), "--images", str(images)]
    folder = tmp_path / "run"
    assert main([*place, "--format", format, "--output", str(folder), *SHORT, "--crop", "32"]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [row["name"] for row in metrics["rows"]] == [name for name in ROW_ORDER if name != FITTED]
    assert (metrics["labeled_images"], metrics["unlabeled_images"], metrics["val_images"]) == (2, 2, 2)


SPLIT = """
import sys
from pathlib import Path
from sskd_fast.yaml_settings import load_config
from sskd_fast.run.sources import target_sources
root, folder = sys.argv[1:]
config = load_config([], [f"data.root={root}", "data.format=cityscapes", "data.labeled_fraction=0.3",
    "data.zoom=1", "num_queries=8", "views.size=64", "seed=5"])
sources = target_sources(config, Path(folder))
print(sources.labeled.image_ids, sources.folds, sources.unlabeled.image_ids)
"""


def test_processes_that_start_together_share_one_split(tmp_path: Path) -> None:
    """As the ranks of one run do, and a later run in another folder."""
    root = tmp_path / "data"
    write_cityscapes(root, {"train": {"aachen": 14, "bochum": 6}, "val": {"ulm": 2}})
    folders = [tmp_path / "run", tmp_path / "run", tmp_path / "later"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SPLIT, str(root), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, outputs
    assert len({said for said, _ in outputs}) == 1
    files = sorted(path.name for path in (tmp_path / "run" / "splits").iterdir())
    folds = [f"fold_{number}_of_3.txt" for number in (1, 2, 3)]
    assert files == [*folds, "labeled.txt", "unlabeled.txt", "val.txt"]
    ids = {name: set(read_split(tmp_path / "run" / "splits" / name)) for name in files}
    assert len(ids["labeled.txt"]) == 6 == sum(len(ids[name]) for name in folds)
    assert ids["labeled.txt"] == set().union(*(ids[name] for name in folds))
    assert not ids["unlabeled.txt"] & ids["labeled.txt"]
    assert ids["unlabeled.txt"] | ids["labeled.txt"] == set(range(1, 21))
    for name in files:
        assert (tmp_path / "run" / "splits" / name).read_bytes() == (tmp_path / "later" / "splits" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "cityscapes"], "--format cityscapes needs --root"),
        (["--format", "yolo"], "--format yolo needs --root (data.root)"),
        (["--format", "cvat", "--root", "x"], "--format cvat needs --labeled, --images and --val"),
        (["--format", "labelme"], "--format labelme needs --labeled, --images and --val"),
        (["--format", "ade20k", "--labeled", "x"], "--format ade20k needs --root (data.root)"),
        (["--root", "x", "--labeled", "y"], "--root holds the whole data set: leave out --labeled"),
        (
            ["--root", "x", "--format", "voc"],
            "data.format: found 'voc', expected one of cityscapes, ade20k, coco, yolo, labelme, cvat",
        ),
        (["--root", "x"], "there are no unlabelled images"),
        (["--root", "x", "--labeled-fraction", "0.1"], "instances_train2017.json: the annotation file does not exist"),
        (["--crop", "[64,96,96]"], "views.size: found [64, 96, 96], expected a list of 2"),
        (["--crop", "[64,50]"], "--crop (views.size): found (64, 50), expected multiples of 32"),
        (["--crop", "[64,96]"], "views.rot90: quarter turns need square crops, found (64, 96)"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 2
    said: Any = capsys.readouterr().err
    assert said.startswith("error: ") and message in said
