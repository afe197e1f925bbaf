"""Resumed runs keep only results of the same settings and files; changes are named."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sskd_fast.data.embedded import write_scenes
from sskd_fast.method import BASELINE, STAGE
from sskd_fast.report import read_figures
from sskd_fast.report.table import measured_rows
from sskd_fast.report.verdict import verdict_words
from sskd_fast.run.__main__ import main
from sskd_fast.run.made_with import made_with, measured_with
from sskd_fast.run.measure import compare_students
from sskd_fast.run.models import RunModels
from sskd_fast.run.results import Row
from sskd_fast.run.resumption import changed, warnings_of_kept
from sskd_fast.run.training import Run, stage_training, state_key, training_state
from sskd_fast.train.cost import Cost
from sskd_fast.train.progress import Log


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose teacher is adapted, interrupted before its students; its data lie beside it."""
    place = tmp_path_factory.mktemp("adapted")
    for seed, (name, count) in enumerate((("train", 4), ("val", 2), ("plain", 3))):
        write_scenes(place, name, "target", count, seed=30 + seed)
    data = [f"--labeled={place / 'train.json'}", f"--images={place / 'train'}", f"--unlabeled={place / 'plain'}"]
    data += [f"--val={place / 'val.json'}", f"--val-images={place / 'val'}", f"--output={place / 'run'}"]
    settings = ["--preset", "smoke", "--max-steps", "1", "pseudo_labels.folds=2", "train.threads=1"]
    assert main(["--stage", "adapt", *data, *settings]) == 0
    return place / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextlib.contextmanager
def edited(path: Path) -> Iterator[None]:
    """A file of labels without its last instance, or an image of noise, for the while."""
    before = path.read_bytes()
    if path.suffix == ".json":
        labels = json.loads(before)
        labels["annotations"].pop()
        path.write_text(json.dumps(labels))
    else:
        noise = np.random.default_rng(0).integers(0, 255, np.asarray(Image.open(path)).shape, dtype=np.uint8)
        Image.fromarray(noise).save(path)
    try:
        yield
    finally:
        path.write_bytes(before)


TEACHERS = "its finished stages (supervised teacher, adapted teacher) were made with what was there"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.lr=0.0123"], ["train.lr 0.0", " -> 0.0123;", TEACHERS]),
        (["--max-steps", "2"], ["train.max_steps 1 -> 2;", TEACHERS]),
        (
            ["stages.adapted_teacher.steps=77"],
            ["stages.adapted_teacher.steps ", " -> 77;", "its finished stages (adapted teacher) were"],
        ),
        (["pseudo_labels.views=3", "--stage", "adapt"], ["pseudo_labels.views ", " -> 3;"]),
    ],
)
def test_changed_settings_are_named_and_nothing_is_written(
    adapted: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(adapted)
    assert main(["--output", str(adapted), "--resume", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {adapted} cannot be resumed: ") and said.count("\n") == 1
    assert all(part in said for part in words), said
    assert "start a new run: without --resume (the earlier run is moved aside) or with another --output" in said
    assert contents(adapted) == before


@pytest.mark.parametrize(
    ("file", "words", "touched"),
    [
        ("train.json", "the labels ({place}/train.json) have changed", "zero-shot teacher, supervised"),
        ("train/00001.png", "the labelled images ({place}/train) have changed", "zero-shot teacher, supervised"),
        ("plain/00001.png", "the unlabelled images ({place}/plain) have changed", "(adapted teacher)"),
        ("val.json", "the validation labels ({place}/val.json) have changed", "zero-shot teacher, supervised"),
    ],
)
def test_edited_files_are_named_and_nothing_is_written(
    adapted: Path, file: str, words: str, touched: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(adapted)
    with edited(adapted.parent / file):
        assert main(["--output", str(adapted), "--resume"]) == 2
    said = capsys.readouterr().err
    assert words.format(place=adapted.parent) in said and touched in said and said.count("\n") == 1
    assert contents(adapted) == before


def test_settings_that_change_no_figure_resume_even_in_another_place(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(adapted, tmp_path / "moved")
    idle = ["train.threads=2", "data.workers=1", "train.log_every=7", "device=cpu", "stages.refined_student.steps=3"]
    assert main(["--output", str(moved), "--resume", "--stage", "adapt", *idle]) == 0
    assert capsys.readouterr().err.count("is finished, kept") == 3
    rows = [json.loads((folder / "metrics.json").read_text())["rows"] for folder in (adapted, moved)]
    assert rows[0] == rows[1]


def test_a_run_of_an_earlier_version_is_refused_in_a_line(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = shutil.copytree(adapted, tmp_path / "old")
    (old / "made_with.json").unlink()
    metrics = json.loads((old / "metrics.json").read_text())
    for row in metrics["rows"]:
        del row["made_with"], row["measured_with"]
    (old / "metrics.json").write_text(json.dumps(metrics))
    assert main(["--output", str(old), "--resume"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {old}: an earlier version has begun this run") and said.count("\n") == 1


def test_measuring_anew_on_other_labels_is_on_the_record_of_every_row(adapted: Path, tmp_path: Path) -> None:
    again = shutil.copytree(adapted, tmp_path / "again")
    with edited(adapted.parent / "val.json"):
        assert main(["--output", str(again), "--stage", "evaluate"]) == 0
    (old, new) = (json.loads((folder / "metrics.json").read_text())["rows"] for folder in (adapted, again))
    assert [row["made_with"] for row in old] == [row["made_with"] for row in new]
    assert len({row["measured_with"] for row in new}) == 1 and new[0]["measured_with"] != old[0]["measured_with"]
    records = json.loads((again / "made_with.json").read_text())
    assert {*(row["measured_with"] for row in (*old, *new)), *(row["made_with"] for row in new)} <= set(records)


def plant(models: RunModels, measured: dict[str, str], made: str = "") -> None:
    """Rows of stages with these keys of their figures, and predictions of each."""
    for name, key in measured.items():
        models.results.write_predictions(name, [], models.sources.val)
        models.results.add_row(Row(name, 1.0, 2.0, 3, 4.0, {}, made_with=made, measured_with=key))


def gains(models: RunModels) -> set[tuple[str, str]]:
    compare_students(models)
    found: list[dict[str, Any]] = models.results.details["gains"]
    return {(gain["model"], gain["against"]) for gain in found}


def test_no_gain_is_computed_between_rows_of_different_ground_truth(untrained_run: RunModels) -> None:
    now = measured_with(untrained_run).key
    plant(untrained_run, {BASELINE: now, "distilled_student": now, "refined_student": "of another"})
    assert gains(untrained_run) == {("distilled_student", BASELINE)}
    plant(untrained_run, {"refined_student": now})
    assert ("refined_student", "distilled_student") in gains(untrained_run)


def test_a_stage_that_builds_on_another_basis_warns(untrained_run: RunModels) -> None:
    results, models = untrained_run.results, untrained_run
    basis = made_with(models, STAGE["adapted_teacher"])
    old = results.keep_basis(type(basis)({**basis.settings, "train.lr": 7.0}, basis.files))
    plant(models, {"adapted_teacher": results.keep_basis(measured_with(models))}, old)
    (warning,) = warnings_of_kept(models, [STAGE["refined_student"]])
    lr = models.config.train.lr
    assert warning == f"adapted teacher, which this builds on: train.lr 7.0 -> {lr}"
    assert [name for name, _ in changed(models, ["adapted_teacher"])] == ["adapted_teacher"]


def test_a_baseline_of_another_basis_warns(untrained_run: RunModels) -> None:
    results, models = untrained_run.results, untrained_run
    basis = measured_with(models)
    old = results.keep_basis(type(basis)({**basis.settings, "predict.nms_iou": 0.9}, basis.files))
    plant(models, {BASELINE: old}, results.keep_basis(made_with(models, STAGE[BASELINE])))
    now = models.config.predict.nms_iou
    (warning,) = warnings_of_kept(models, [STAGE["refined_student"]])
    assert warning == f"supervised student, which stays as it is: predict.nms_iou 0.9 -> {now}"
    assert warnings_of_kept(models, [STAGE[BASELINE]]) == []


def test_the_verdict_leaves_out_rows_of_other_ground_truth(untrained_run: RunModels) -> None:
    plant(untrained_run, {BASELINE: "old labels", "distilled_student": "new labels", "refined_student": "new labels"})
    metrics, _ = read_figures(untrained_run.results.folder)
    assert list(measured_rows(metrics)) == ["distilled_student", "refined_student"]
    words = verdict_words(metrics)
    assert words.startswith("No verdict yet") and "against" not in words
    assert "Left out, since measured on other labels or with other settings: supervised student;" in words
    plant(untrained_run, {BASELINE: "new labels"})
    words = verdict_words(read_figures(untrained_run.results.folder)[0])
    assert "0.0 AP against the supervised student" in words and "Left out" not in words


def test_an_unfinished_stage_of_another_basis_starts_over_by_name(
    untrained_run: RunModels, capsys: pytest.CaptureFixture[str]
) -> None:
    models, stage = untrained_run, STAGE["supervised_teacher"]
    log = Log(models.results.folder)
    training = stage_training(models, stage)
    training_state(Run(models, log), training, stage.name).save(1, {}, torch.optim.SGD([torch.zeros(1)]), Cost())
    assert training_state(Run(models, log, resume=True), training, stage.name).key == state_key(models, training)
    assert capsys.readouterr().err == ""
    train = dataclasses.replace(models.config.train, lr=0.5)
    other = dataclasses.replace(models, config=dataclasses.replace(models.config, train=train))
    training_state(Run(other, log, resume=True), training, stage.name)
    log.close()
    said = capsys.readouterr().err
    assert f"what was trained of it is left, it starts over: train.lr {models.config.train.lr} -> 0.5" in said
