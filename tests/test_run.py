"""The command line end to end, as processes: files, repeatability, interruption, own data, messages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file

from benchmarks import calibration
from sskd_fast.data.embedded import write_scenes
from sskd_fast.evaluation import at_stride, compare_masks
from sskd_fast.method import COMPARISONS, EVERY_RUN, FITTED, IN_VIEWS, ROW_ORDER, STAGE
from sskd_fast.run.__main__ import main

TINY = [
    "--preset", "smoke",
    "data.embedded_labeled=16", "data.embedded_unlabeled=24", "data.embedded_val=12",
    "stages.supervised_teacher.steps=8", "stages.adapted_teacher.steps=10", "stages.distilled_student.steps=12",
    "stages.refined_student.steps=6", "pseudo_labels.fold_steps=0.5", "train.save_every=2", "train.log_every=2",
    "train.lam_pxl=0.1",
]  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sskd_fast.run", *arguments]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=1800)


def call_here(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and messages of the command, without the seconds of a new process."""
    capsys.readouterr()
    return main(list(arguments)), capsys.readouterr().err


def metrics_of(folder: Path) -> dict[str, Any]:
    """metrics.json without the seconds, which no two runs share."""
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    for row in metrics["rows"]:
        for key in ("seconds", "cpu_seconds", "label_seconds"):
            del row[key]
    return metrics


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("run") / "tiny"
    result = call("--stage", "all", "--output", str(folder), *TINY)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_run_folder_holds_everything(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, result = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [row["name"] for row in metrics["rows"]] == [name for name in ROW_ORDER if name != FITTED]
    assert (metrics["labeled_images"], metrics["unlabeled_images"], metrics["val_images"]) == (16, 24, 12)
    assert metrics["max_detections"] == 100 and metrics["seed"] == 0 and metrics["dataset"] == "embedded"
    by_name = {row["name"]: row for row in metrics["rows"]}
    assert by_name["adapted_teacher"]["params"] >= 11 * by_name["refined_student"]["params"]
    assert by_name["zero_shot_teacher"]["seconds"] == 0 < by_name["supervised_student"]["seconds"]
    for name in (name for name in ROW_ORDER if name != FITTED):
        results = json.loads((folder / "predictions" / f"{name}.json").read_text())
        assert all(set(r) == {"image_id", "category_id", "segmentation", "score"} for r in results)
        if name not in ("zero_shot_teacher", *IN_VIEWS):
            with safe_open(str(folder / "checkpoints" / f"{name}.safetensors"), "pt") as file:
                assert json.loads(file.metadata()["class_names"]) == ["disc", "triangle", "cross", "ring"]
    for teacher in ("supervised_teacher", "adapted_teacher"):
        labels = json.loads((folder / "pseudo_labels" / f"{teacher}.json").read_text())
        assert set(labels) == {"info", "images", "annotations", "categories"} and len(labels["images"]) == 24
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["stages"]["distilled_student"]["steps"] == 12 and config["train"]["lam_pxl"] == 0.1
    assert list((folder / "tensorboard").iterdir()) and not list(folder.rglob("*.partial"))
    assert not list((folder / "checkpoints").rglob("*.state.pt"))
    folds = sorted(path.name for path in (folder / "checkpoints" / "folds").iterdir())
    kinds = ("adapted", "supervised")
    assert folds == [f"{kind}_teacher_fold_{fold}_of_3.safetensors" for kind in kinds for fold in (1, 2, 3)]
    html = (folder / "report.html").read_text()
    assert (
        "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html and "data:image/webp" in html
    )
    assert "Pseudo-labels kept and refused" in html and "has been deleted" not in html
    assert {path.stem for path in (folder / "checkpoints").glob("*.*")} == set(STAGE) - {
        "pretrained_teacher",
        "pretrained_student",
        "zero_shot_teacher",
        FITTED,
    }
    assert "stage 1 of 7: zero-shot teacher, not trained" in result.stderr
    assert "Refined student" in result.stdout and "distillation" in result.stdout.lower()


def test_rows_have_their_costs_and_the_stride_of_their_masks(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    rows = {row["name"]: row for row in json.loads((finished[0] / "metrics.json").read_text())["rows"]}
    keys = ("steps", "labeled_seen", "unlabeled_seen")
    counts = {name: tuple(row[key] for key in keys) for name, row in rows.items()}
    assert counts["zero_shot_teacher"] == (0, 0, 0)
    assert counts["adapted_teacher"] == counts["adapted_teacher_views"] == (10, 10 * 4, 10 * 8)
    assert counts["distilled_student"] == (12, 12 * 4, 12 * 8)
    assert counts["matched_student"] == (18, 18 * 12, 0)
    for name, row in rows.items():
        learned = row["steps"] > 0
        assert (row["cpu_seconds"] > 0) == (row["seconds"] > 0) == learned
        assert (row["label_seconds"] > 0) == (row["unlabeled_seen"] > 0)
        assert row.get("views", 1) == (2 if name in IN_VIEWS else 1)
    assert rows["refined_student"]["stride"] == 2
    assert rows["adapted_teacher"]["stride"] == rows["adapted_teacher_views"]["stride"]
    assert rows["adapted_teacher"]["ap"] != rows["adapted_teacher_views"]["ap"]


def test_gains_are_those_of_compare_masks(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder = finished[0]
    details = json.loads((folder / "details.json").read_text())
    truth = json.loads((folder / "ground_truth.json").read_text())
    rows = {row["name"]: row for row in json.loads((folder / "metrics.json").read_text())["rows"]}

    def predictions(name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((folder / "predictions" / f"{name}.json").read_text())
        return found

    gains = {(gain["model"], gain["against"], gain["stride"]): gain for gain in details["gains"]}
    assert {pair[:2] for pair in gains} == {pair for pair in COMPARISONS if FITTED not in pair}
    for against in ("supervised_student", "matched_student", "adapted_teacher_views", "distilled_student"):
        found = gains["refined_student", against, None]
        expected = compare_masks(truth, predictions("refined_student"), predictions(against))
        assert (found["ap"], found["low"], found["high"]) == pytest.approx(
            (expected.ap, expected.low, expected.high), abs=1e-3
        )
        assert found["model_ap"] == pytest.approx(rows["refined_student"]["ap"], abs=1e-3)
    coarse = rows["adapted_teacher_views"]["stride"]
    assert set(details["ceilings"]) == {f"{row['stride']:g}" for row in rows.values()}
    for name in ("adapted_teacher", "adapted_teacher_views"):
        if coarse != 2:
            brought = at_stride(predictions("refined_student"), coarse)
            expected = compare_masks(truth, brought, predictions(name))
            assert gains["refined_student", name, coarse]["ap"] == pytest.approx(expected.ap, abs=1e-3)


def test_calibration_by_rank_gives_the_precision_of_the_runs_labels(
    finished: tuple[Path, subprocess.CompletedProcess[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = finished
    statistics = json.loads((folder / "label_statistics.json").read_text())
    calibration.main([str(folder)])
    lines = capsys.readouterr().out.splitlines()
    for teacher, reached in statistics.items():
        (line,) = [x for x in lines if teacher.replace("_", " ") in x]
        assert line.endswith(f"| {reached['precision']:.2f}, {reached['recall']:.2f} |"), line
        assert reached["recall"] > 0


def test_log_has_every_part(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    lines = [json.loads(line) for line in (finished[0] / "log.jsonl").read_text().splitlines()]
    distilled = [line for line in lines if line.get("stage") == "distilled_student" and "loss" in line]
    assert distilled[-1]["step"] == distilled[-1]["steps"] == 12
    parts = {"sup_class", "sup_mask", "sup_dice", "sup_heat", "semi_class", "pxl", "margin", "fnr", "lr", "grad_norm"}
    seconds = {f"seconds_{n}" for n in ("data", "forward", "matching", "losses", "contrast", "backward")}
    assert parts | seconds <= set(distilled[-1])
    refined = next(line for line in lines if line.get("stage") == "refined_student" and "loss" in line)
    assert "semi_class" not in refined and "pxl" not in refined
    evaluated = {(line["stage"], line["fold"]) for line in lines if line.get("event") == "eval"}
    assert evaluated == {(f"{kind}_teacher", fold) for kind in ("supervised", "adapted") for fold in (1, 2, 3)}


def test_splits_are_disjoint(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    def ids(name: str) -> set[str]:
        lines = (finished[0] / "splits" / f"{name}.txt").read_text().splitlines()
        return {line for line in lines if line and not line.startswith("#")}

    folds = [ids(f"fold_{number}_of_3") for number in (1, 2, 3)]
    assert len(ids("labeled")) == 16 == sum(map(len, folds)) and set().union(*folds) == ids("labeled")
    assert len(ids("unlabeled")) == 24 and len(ids("val")) == 12


# Starts the command once for each kill. Each process dies right before or after it puts a file in its place. They are
# forked, since the imports take longer than the work between two kills.
KILLED = """
import os, signal, sys
from sskd_fast.run.__main__ import main

def killing(put, when, file):
    def until(partial, path, **more):
        here = str(path).endswith(file)
        if here and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        put(partial, path, **more)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
    return until

def killed(kill, arguments):
    child = os.fork()
    if not child:
        os.replace, os.link = (killing(put, *kill.split()) for put in (os.replace, os.link))
        os._exit(main(arguments))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

kills = sys.argv[1].split(",")
for number, kill in enumerate(kills):
    print(kill, flush=True)
    status = killed(kill, [*sys.argv[2:], *["--resume"] * (number > 0)])
    if status != -signal.SIGKILL:
        sys.exit(f"{kill}: ended with {status}")
"""
KILLS = [
    "after splits/fold_2_of_3.txt",
    "before config.yaml",
    "after predictions/zero_shot_teacher.json",
    "before metrics.json",
    "after supervised_teacher.state.pt",
    "before checkpoints/supervised_teacher.safetensors",
    "after folds/supervised_teacher_fold_2_of_3.state.pt",
    "before predictions/supervised_teacher.json",
    "before cache/unlabeled/supervised_teacher.json",
    "after cache/labeled/folds/supervised_teacher_fold_2_of_3.json",
    "before pseudo_labels/supervised_teacher.json",
    "after pseudo_labels/supervised_teacher.json",
    "after adapted_teacher.state.pt",
    "before folds/adapted_teacher_fold_3_of_3.safetensors",
    "after predictions/adapted_teacher_views.json",
    "after label_statistics.json",
    "after distilled_student.state.pt",
    "after predictions/distilled_student.json",
    "after checkpoints/refined_student.safetensors",
    "before matched_student.state.pt",
    "after metrics.json",
    "after supervised_student.state.pt",
    "before report.html",
]


def made_of(folder: Path) -> dict[str, Any]:
    """A run's output by file: weights, labels, predictions and splits, without seconds and the folder's name."""
    made: dict[str, Any] = {}
    for pattern in ("predictions/*", "cache/**/*.json", "splits/*", "label_statistics.json", "ground_truth.json"):
        made |= {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob(pattern)}
    for file in folder.glob("pseudo_labels/*"):
        made[file.name] = {key: value for key, value in json.loads(file.read_text()).items() if key != "info"}
    for file in folder.glob("checkpoints/**/*.safetensors"):
        made[str(file.relative_to(folder))] = {name: weights.tobytes() for name, weights in load_file(file).items()}
    return made


@pytest.mark.slow
def test_a_run_killed_at_every_stage_ends_as_one_that_was_not(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """One run through all of KILLS in a row: its weights, labels, predictions and figures are the same."""
    folder = tmp_path / "again"
    command_line = [sys.executable, "-c", KILLED, ",".join(KILLS), "--output", str(folder), *TINY]
    result = subprocess.run(command_line, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0 and result.stdout.splitlines() == KILLS, result.stderr
    result = call("--output", str(folder), "--resume")
    assert result.returncode == 0, result.stderr
    assert "supervised teacher is finished, kept" in result.stderr
    assert metrics_of(folder) == metrics_of(finished[0])
    whole, again = made_of(finished[0]), made_of(folder)
    assert len(whole) > 40 and whole.keys() == again.keys()
    assert not [name for name in whole if whole[name] != again[name]]
    assert not [path for pattern in ("*.state.pt", "*.partial", "*.lock") for path in folder.rglob(pattern)]


def test_single_stages_go_on_from_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "steps"
    early = call_here("--stage", "refine", "--output", str(tmp_path / "early"), *TINY, capsys=capsys)
    assert early[0] == 2 and "distilled_student.safetensors does not exist" in early[1]
    short = ["--output", str(folder), "train.max_steps=2", "train.threads=1"]
    short += ["data.embedded_val=4", "data.embedded_unlabeled=6", "data.embedded_labeled=8"]
    distilled, refined = "distilled_student", "refined_student"
    for stage, rows, compared in (
        ("adapt", 5, []),
        ("distill", 11, [distilled]),
        ("refine", 13, [distilled, refined]),
        ("evaluate", 13, [distilled, refined]),
    ):
        if stage == "evaluate":  # what it writes anew may be gone
            (folder / "details.json").unlink()
            shutil.rmtree(folder / "predictions")
        smoke = ["--preset", "smoke"] if stage == "adapt" else []
        status, said = call_here("--stage", stage, *short, *smoke, capsys=capsys)
        assert status == 0, said
        assert len(metrics_of(folder)["rows"]) == rows
        details = json.loads((folder / "details.json").read_text())
        students = {gain["model"] for gain in details["gains"]}
        assert [name for name in (distilled, refined) if name in students] == compared
    status, said = call_here("--stage", "refine", *short, "--seed", "3", capsys=capsys)
    assert status == 2 and "holds a run with another seed or other data" in said


def test_earlier_run_is_moved_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 5\n")
    source = ["data.embedded_source=8", "data.embedded_source_val=4", "train.threads=1"]
    status, said = call_here("--stage", "pretrain", "--output", str(folder), "--max-steps", "1", *source, capsys=capsys)
    assert status == 0, said
    assert (tmp_path / "run.1" / "config.yaml").read_text() == "seed: 5\n" and "run.1" in said
    assert (folder / "checkpoints" / "pretrained_student.safetensors").exists()


def test_a_start_that_fails_leaves_things_as_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = tmp_path / "run"
    earlier.mkdir()
    (earlier / "config.yaml").write_text("seed: 5\n")
    nowhere = str(tmp_path / "nowhere.json")
    for folder in (earlier, tmp_path / "other"):
        data = ["--labeled", nowhere, "--images", str(tmp_path), "--val", nowhere, "--labeled-fraction", "0.5"]
        status, said = call_here("--output", str(folder), *data, capsys=capsys)
        assert status == 2 and "nowhere.json" in said and "earlier run" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (earlier / "config.yaml").read_text() == "seed: 5\n"


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for seed, (name, count) in enumerate((("train", 12), ("val", 5), ("plain", 9))):
        write_scenes(folder, name, "target", count, seed=50 + seed)
    renamed = json.loads((folder / "train.json").read_text())
    for file, factor in (("train.json", 10), ("val.json", 7)):
        content = json.loads((folder / file).read_text())
        content["categories"] = [{"id": factor * c["id"], "name": f"my {c['name']}"} for c in renamed["categories"]]
        for annotation in content["annotations"]:
            annotation["category_id"] *= factor
        (folder / file).write_text(json.dumps(content))
    return folder


SHORT = ["--preset", "smoke", "--max-steps", "3", "train.threads=1"]


@pytest.mark.parametrize("unlabeled", [True, False])
def test_own_data(own_data: Path, tmp_path: Path, unlabeled: bool, capsys: pytest.CaptureFixture[str]) -> None:
    images = ["--unlabeled", str(own_data / "plain")] if unlabeled else ["--labeled-fraction", "0.5"]
    status, said = call_here(
        "--labeled", str(own_data / "train.json"), "--images", str(own_data / "train"), *images,
        "--val", str(own_data / "val.json"),
        "--val-images", str(own_data / "val"), "--output", str(tmp_path / "run"), *SHORT, capsys=capsys,
    )  # fmt: skip
    assert status == 0, said
    metrics = metrics_of(tmp_path / "run")
    assert (metrics["labeled_images"], metrics["unlabeled_images"]) == ((12, 9) if unlabeled else (6, 6))
    predicted = json.loads((tmp_path / "run" / "predictions" / "adapted_teacher.json").read_text())
    assert {r["category_id"] for r in predicted} <= {7, 14, 21, 28}, (
        "validation files may number classes in their own way"
    )
    details = json.loads((tmp_path / "run" / "details.json").read_text())
    assert set(details["refined_student"]["per_class"]) == {"my disc", "my triangle", "my cross", "my ring"}
    ap = {row["name"]: row["ap"] for row in metrics["rows"]}
    for gain in details["gains"]:
        if gain["stride"] is None:
            assert gain["ap"] == pytest.approx(ap[gain["model"]] - ap[gain["against"]], abs=2e-3)
        assert gain["low"] <= gain["high"]


def bad_calls(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    data = [
        "--labeled",
        str(folder / "train.json"),
        "--images",
        str(folder / "train"),
        "--val",
        str(folder / "val.json"),
    ]
    return {
        "no unlabelled": (
            [*data, "--val-images", str(folder / "val")],
            ["no unlabelled images", "--labeled-fraction 0.1"],
        ),
        "no images": (["--labeled", "x.json"], ["--labeled needs --images"]),
        "no file": (
            ["--labeled", "x.json", "--images", ".", "--val", "y.json", "--labeled-fraction", "0.5"],
            ["x.json"],
        ),
        "unknown setting": (["train.learning_rate=1"], ["train.learning_rate: no such setting", "lr"]),
        "wrong type": (["train.lr=fast"], ["train.lr: found 'fast', expected float"]),
        "preset": (["--preset", "huge"], ["--preset: found 'huge'", "smoke"]),
        "crop": (["--crop", "50"], ["--crop (views.size): found 50, expected multiples of 32"]),
        "fraction": (
            ["--labeled-fraction", "7"],
            ["--labeled-fraction (data.labeled_fraction): found 7, expected a share", "more than 0 and at most 1"],
        ),
        "fraction of no data": (["--config", "configs/nuclei.yaml"], ["goes with --labeled or --root", "not given"]),
        "overlap": (
            [*data[:4], "--val", str(folder / "train.json"), "--labeled-fraction", "0.5"],
            ["train.json", "same content as the training image"],
        ),
    }


@pytest.mark.parametrize(
    "case",
    [
        "no unlabelled", "no images", "no file", "unknown setting", "wrong type", "preset", "crop", "fraction",
        "fraction of no data", "overlap",
    ],
)  # fmt: skip
def test_bad_input_is_named(own_data: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, said = bad_calls(own_data)[case]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and "Traceback" not in shown.err and not shown.out
    for words in said:
        assert words in shown.err
    assert not (tmp_path / "run" / "metrics.json").exists()


def some_images(annotations: Path, images: int, target: Path) -> Path:
    """Part of a COCO file, written to `target`: images without instances and with crowd regions come first."""
    content = json.loads(annotations.read_text())
    crowded = {a["image_id"] for a in content["annotations"] if a["iscrowd"]}
    filled = {a["image_id"] for a in content["annotations"]} - crowded
    content["images"] = sorted(content["images"], key=lambda record: record["id"] in filled)[:images]
    ids = {record["id"] for record in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    target.write_text(json.dumps(content))
    return target


def test_coco_mini_runs_through_all_stages(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """80 categories with gaps in their ids, crowd regions, an image without instances."""
    data = real_data("coco_mini")
    train, val = (
        some_images(data / f"annotations/instances_{part}.json", images, tmp_path / f"{part}.json")
        for part, images in (("train", 16), ("val", 8))
    )
    result = call(
        "--labeled", str(train), "--images", str(data / "images"),
        "--labeled-fraction", "0.5", "--resume", *SHORT, "pseudo_labels.views=1", "pseudo_labels.folds=2",
        "data.zoom=0.25",
        "--val", str(val), "--output", str(tmp_path / "run"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "run holds no run to go on with: this one starts from the beginning" in result.stderr
    metrics = metrics_of(tmp_path / "run")
    assert [row["name"] for row in metrics["rows"]] == [name for name in ROW_ORDER if name in EVERY_RUN]
    assert metrics["val_images"] == 8


def first_groups(annotations: Path, images: int, target: Path) -> Path:
    """The part of a COCO file with the first groups of images, `images` of them or a few more, written to `target`."""
    content = json.loads(annotations.read_text())
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in content["images"]:
        groups.setdefault(str(record["group"]), []).append(record)
    chosen: list[dict[str, Any]] = []
    while len(chosen) < images:
        chosen += groups.pop(next(iter(groups)))
    ids = {record["id"] for record in chosen}
    content["images"] = chosen
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    target.write_text(json.dumps(content))
    return target


@pytest.mark.slow
def test_nuclei_shortened(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """The nuclei configuration with fewer images and steps: the models learn to find nuclei on whole images."""
    data = real_data("nuclei_dsb2018")
    train = first_groups(data / "annotations/instances_train.json", 20, tmp_path / "train.json")
    val = first_groups(data / "annotations/instances_val.json", 6, tmp_path / "val.json")
    result = call(
        "--config", "configs/nuclei.yaml", "--labeled", str(train), "--images", str(data / "images"), "--val", str(val),
        "--output", str(tmp_path / "run"), "--labeled-fraction", "0.5", "train.evaluations=1",
        "stages.supervised_teacher.steps=40", "stages.adapted_teacher.steps=5", "stages.distilled_student.steps=60",
        "stages.refined_student.steps=5", "stages.supervised_student.steps=5", "pseudo_labels.folds=2",
        "pseudo_labels.views=1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    metrics = metrics_of(tmp_path / "run")
    assert metrics["max_detections"] == 1000 and metrics["val_images"] >= 6 and metrics["unlabeled_images"] >= 10
    by_name = {row["name"]: row for row in metrics["rows"]}
    assert by_name["refined_student"]["ap50"] > 40
    assert by_name["supervised_teacher"]["ap"] > by_name["zero_shot_teacher"]["ap"] + 5
