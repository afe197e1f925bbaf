"""The domain shift: its parts share no group, both models start from the source, and a bound comes from true labels."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import domain_shift
from benchmarks.domains import Domain, drawn_groups, write_parts
from sskd_fast.data.embedded import write_scenes
from sskd_fast.report.__main__ import main as report
from sskd_fast.typed_settings import ConfigError

SMALL = """
data: {{zoom: 1.0}}
views: {{size: 32}}
num_queries: 8
pseudo_labels: {{views: 1, folds: 2}}
teacher_weights: ""
student_weights: ""
train: {{evaluations: 0, max_steps: 1, threads: 1}}
stages:
{stages}
"""
STAGES = ("supervised_teacher", "adapted_teacher", "distilled_student", "refined_student", "supervised_student")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label files of 6 and 10 images, two a group: seven by day, nine at night, group 3 with one of each."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "annotations").mkdir()
    (folder / "images").mkdir()
    for part, start, count in (("train", 0, 6), ("val", 6, 10)):
        path = write_scenes(folder / part, part, "target", count, seed=50 + start)
        content = json.loads(path.read_text())
        for number, image in enumerate(content["images"], start):
            name = f"{part}{image['file_name']}"
            shutil.copy(folder / part / part / image["file_name"], folder / "images" / name)
            image |= {"file_name": name, "light": "day" if number < 7 else "night", "group": f"group {number // 2}"}
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return folder


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_folds_of_the_target_are_whole_groups_and_the_source_shares_none(data: Path, tmp_path: Path) -> None:
    assert write_parts(data, tmp_path, Domain("light", "day"), Domain("light", "night"), 3, "group") == 3

    def groups(name: str) -> set[str]:
        return {image["group"] for image in content(tmp_path / f"{name}.json")["images"]}

    assert groups("source") == {"group 0", "group 1", "group 2"}  # group 3 has an image of the target
    assert groups("val_1") | groups("val_2") | groups("val_3") == groups("target")
    assert groups("target") == {f"group {number}" for number in range(3, 8)}
    for fold in (1, 2, 3):
        assert not groups(f"train_{fold}") & groups(f"val_{fold}")
        both = [content(tmp_path / f"{part}_{fold}.json") for part in ("train", "val")]
        assert sum(len(part["images"]) for part in both) == 9
        for part in both:
            ids = {image["id"] for image in part["images"]}
            assert {a["image_id"] for a in part["annotations"]} <= ids and part["categories"]
    files = [content(data / "annotations" / f"instances_{part}.json") for part in ("train", "val")]
    objects = sum(len(file["annotations"]) for file in files)
    kept = sum(len(content(tmp_path / f"{part}.json")["annotations"]) for part in ("source", "target"))
    of_group_3_by_day = files[1]["images"][0]["id"]
    assert objects - kept == sum(a["image_id"] == of_group_3_by_day for a in files[1]["annotations"])


def test_drawn_groups_are_whole_and_the_others_are_the_target(data: Path, tmp_path: Path) -> None:
    source, target = drawn_groups(data, 3, "group")
    assert (str(source), str(target)) == ("3 groups", "5 groups") and drawn_groups(data, 3, "group")[0] == source
    assert write_parts(data, tmp_path, source, target, 2, "group") == 2
    parts = {name: content(tmp_path / f"{name}.json")["images"] for name in ("source", "target", "val_1", "val_2")}
    groups = {name: {image["group"] for image in images} for name, images in parts.items()}
    assert groups["source"] == source.names and groups["target"] == target.names == groups["val_1"] | groups["val_2"]
    assert len(source.names | target.names) == 8 and len(parts["source"]) + len(parts["target"]) == 16
    for count in (1, 6):
        with pytest.raises(SystemExit, match=f"found {count} of 8 groups, expected at least 2 and at least 3 others"):
            drawn_groups(data, count, "group")
    with pytest.raises(SystemExit, match="has no field 'patient'; expected every image to name its group"):
        drawn_groups(data, 3, "patient")


def test_a_copy_in_another_group_is_named(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    source, target = drawn_groups(data, 3, "group")
    images = [i for f in ("train", "val") for i in content(data / "annotations" / f"instances_{f}.json")["images"]]
    original, copy = (next(i["file_name"] for i in images if i in part) for part in (source, target))
    shutil.copy(data / "images" / original, tmp_path / "data" / "images" / copy)
    with pytest.raises(SystemExit, match=f"{copy} is the same file as .*{original}, in another group"):
        drawn_groups(tmp_path / "data", 3, "group")


@pytest.mark.parametrize(
    "chosen", [[], ["--source", "light=day"], ["--source-groups", "3", "--target", "light=day"],
               ["--source-groups", "3", "--source", "light=day", "--target", "light=night"]],
)  # fmt: skip
def test_source_and_target_are_two_domains_or_drawn_groups(
    chosen: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        domain_shift.main([str(data), *chosen, "--config", "c", "--output", str(tmp_path / "shift")])
    assert "expected --source with --target, or --source-groups alone" in capsys.readouterr().err
    assert not (tmp_path / "shift").exists()


@pytest.mark.parametrize(
    ("text", "words"), [("light", "found 'light', expected FIELD=VALUE"), ("=day", "found '=day'")]
)
def test_a_domain_is_a_field_and_a_value(text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        domain_shift.main([".", "--source", text, "--target", "light=night", "--config", "c", "--output", "o"])
    assert words in capsys.readouterr().err


def test_a_domain_without_images_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--target light=dusk: none of 16 images has it"):
        write_parts(data, tmp_path, Domain("light", "day"), Domain("light", "dusk"), 3, "group")


@pytest.mark.parametrize(
    ("folds", "words"),
    [
        ("1,4", "found 4, expected folds from 1 to 3"),
        ("0", "found '0', expected different folds from 1 up, such as 1,3"),
        ("1,1", "found '1,1', expected different folds"),
        ("first", "found 'first', expected different folds"),
    ],
)
def test_folds_that_are_not_there_are_named(
    folds: str, words: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [str(data), "--source", "light=day", "--target", "light=night", "--config", "c", "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        domain_shift.main([*call, "--only", folds])
    assert f"argument --only: {words}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--rows", "object"], "argument --rows: expected with --study"),
        (["--study", "negative"], "argument --study: invalid choice: 'negative'"),
        (["--study", "map", "--truth"], "argument --truth: not allowed with argument --study"),
    ],
)
def test_a_study_is_a_table_and_its_rows(
    more: list[str], words: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [str(data), "--source", "light=day", "--target", "light=night", "--config", "c", "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        domain_shift.main([*call, *more])
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--rows", "objekt"], "--rows: found 'objekt', expected some of no L_pxl"),
        (["teacher.precision=float16", "train.pxl_gradient_share=0"], "float16"),  # a row sets the share
    ],
)
def test_a_study_that_cannot_run_is_refused_before_anything_is_trained(
    more: list[str], words: str, data: Path, tmp_path: Path
) -> None:
    output, config = tmp_path / "shift", tmp_path / "small.yaml"
    config.write_text("seed: 0\n")
    call = [str(data), "--source", "light=day", "--target", "light=night", "--config", str(config)]
    with pytest.raises(ConfigError, match=words):
        domain_shift.main([*call, "--output", str(output), "--study", "negatives", *more])
    assert not (output / "source").exists()


def test_an_error_is_one_line(data: Path, tmp_path: Path) -> None:
    call = [str(data), "--source", "light=day", "--target", "light=night", "--output", str(tmp_path / "shift")]
    command = [sys.executable, "-m", "benchmarks.domain_shift", *call, "--config", "nowhere.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --config nowhere.yaml: cannot be read") and result.stderr.count("\n") == 1


@pytest.mark.slow
def test_models_start_from_the_source_and_the_summary_is_over_the_folds(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [f"  {name}: {{steps: 1, labeled_batch: 2, unlabeled_batch: 2}}" for name in STAGES]
    config = tmp_path / "small.yaml"
    config.write_text(SMALL.format(stages="\n".join(steps)))
    output = tmp_path / "shift"
    call = [str(data), "--source", "light=day", "--target", "light=night", "--config", str(config)]
    call += ["--output", str(output), "--folds", "2", "--labeled-fraction", "0.5", "--truth", "baseline.folds=2"]
    call += ["baseline.steps=[1]", "baseline.strengths=[1.0]"]
    domain_shift.main([*call, "--only", "2"])
    assert f"# {data.name}: folds 2\n" in capsys.readouterr().out and not (output / "truth" / "seed-1").exists()
    domain_shift.main(call)
    shown = capsys.readouterr()
    assert f"# {data.name}: folds 1, 2\n" in shown.out and "| Refined student | " in shown.out
    assert "| over folds and images | t over folds | fold 1 | fold 2 |" in shown.out
    assert "seed" not in shown.out and "differ in more than" not in shown.out
    (output / "truth" / "summary.md").unlink()
    assert report([str(output / "truth")]) == 0
    assert (output / "truth" / "summary.md").read_text(encoding="utf-8") in shown.out
    capsys.readouterr()
    assert "unlabelled images with their hidden true labels, a bound and no result." in shown.out
    for fold in (1, 2):
        run = output / "truth" / f"seed-{fold}"
        metrics = content(run / "metrics.json")
        assert {row["name"] for row in metrics["rows"]} == {
            "distilled_student",
            "refined_student",
            "matched_student",
            "supervised_student",
        }
        assert f"{output}/source/checkpoints/supervised_student.safetensors" in (run / "config.yaml").read_text()
    assert not (output / "source" / "baseline.json").exists()  # the source's student is a start, not a result
    domain_shift.main(call)
    assert "is finished, kept" in capsys.readouterr().err
    study_call = [*(word for word in call if word != "--truth"), "--study", "negatives", "--rows", "no L_pxl,object"]
    domain_shift.main([*study_call, "--only", "2"])
    trained = {path: path.stat().st_mtime_ns for path in (output / "studies").rglob("*.safetensors")}
    domain_shift.main(study_call)
    assert trained and all(path.stat().st_mtime_ns == time for path, time in trained.items())
    study = content(output / "studies" / "negatives.json")
    assert (output / "studies" / "negatives.md").read_text().count("Folds 1, 2; ") == 1
    assert (study["seeds"], study["unit"], study["unfinished"]) == ([1, 2], "fold", [])
    assert "--study negatives" in study["command"]
    assert study["rows"][1]["difference"]["against"] == "no L_pxl" and study["rows"][1]["difference"]["seeds"] == [1, 2]
    for row in study["rows"]:
        for fold in (1, 2):
            run = output / "studies" / row["folders"][str(fold)]
            settings = (run / "config.yaml").read_text()
            assert f"val_{fold}.json" in settings and "source/checkpoints/supervised_teacher.safetensors" in settings
            parts = [content(file)["images"] for file in (run / "ground_truth.json", output / f"val_{fold}.json")]
            assert len({tuple(sorted(image["file_name"] for image in part)) for part in parts}) == 1
