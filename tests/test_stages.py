"""The table of stages: budgets, what depends on what, and the image sets they read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sskd_fast.data.embedded import write_scenes
from sskd_fast.data.errors import DataError
from sskd_fast.data.pseudo_labeled import PseudoLabeled
from sskd_fast.losses.mask_ownership import MaskOwnership
from sskd_fast.method import (
    BASELINE,
    COMPARISONS,
    FINAL_STUDENTS,
    FITTED,
    MATCHED_BASELINE,
    ROW_ORDER,
    STAGE,
    STAGES,
    chain_of,
    dependents,
    stage_of,
    words_of,
)
from sskd_fast.models.checkpoint import read_description
from sskd_fast.run.command_line import parser, resolve
from sskd_fast.run.labels import teacher_labels
from sskd_fast.run.models import RunModels
from sskd_fast.run.results import Row, RunResults
from sskd_fast.run.sources import target_sources
from sskd_fast.run.stage_settings import part_weights, stage_budget, stage_objective
from sskd_fast.run.training import coarser_by
from sskd_fast.settings import Config
from sskd_fast.source_prediction import predict_source
from sskd_fast.train.progress import Log
from sskd_fast.typed_settings import ConfigError
from sskd_fast.yaml_settings import PRESETS, load_config

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
CONFIGS = Path(__file__).parents[1] / "configs"


def test_the_table_is_the_method() -> None:
    table = {s.name: (s.model, s.start, s.labels_from, s.semi, s.pixel) for s in STAGES}
    assert table["supervised_teacher"] == ("teacher", "pretrained", None, False, True)
    assert table["adapted_teacher"] == ("teacher", "pretrained", "supervised_teacher", True, True)
    assert table["distilled_student"] == ("student", "backbone", "adapted_teacher", True, True)
    assert table["refined_student"] == ("student", "distilled_student", None, False, False)
    assert table["supervised_student"] == table["matched_student"] == ("student", "backbone", None, False, False)


@pytest.mark.parametrize("limit", [0, 7, 200])
def test_matched_student_has_the_budget_of_both_student_stages(limit: int) -> None:
    config = load_config([], [f"train.max_steps={limit}"])
    parts = [stage_budget(config, STAGE[name]) for name in ("distilled_student", "refined_student")]
    alone = stage_budget(config, STAGE["matched_student"])
    assert alone.steps == sum(part.steps for part in parts)
    assert alone.labeled_batch == parts[0].labeled_batch + parts[0].unlabeled_batch and alone.unlabeled_batch == 0


@pytest.mark.parametrize(
    "settings", [*(f"--preset {name}" for name in NAMES), *(f"--config {path}" for path in sorted(CONFIGS.iterdir()))]
)
def test_both_trained_teachers_have_equal_steps(settings: str) -> None:
    kind, value = settings.split()
    config = load_config([], [], value) if kind == "--preset" else load_config([Path(value)])
    supervised, adapted = (stage_budget(config, STAGE[f"{name}_teacher"]) for name in ("supervised", "adapted"))
    assert supervised.steps == adapted.steps and supervised.lr_factor == adapted.lr_factor
    assert supervised.labeled_batch == adapted.labeled_batch + adapted.unlabeled_batch


def test_supervised_student_has_a_budget_of_its_own() -> None:
    config = load_config([], ["stages.supervised_student.steps=77", "stages.supervised_student.labeled_batch=5"])
    alone = stage_budget(config, STAGE["supervised_student"])
    assert (alone.steps, alone.labeled_batch, alone.unlabeled_batch) == (77, 5, 0)


def test_objective_has_the_weights_of_the_stage() -> None:
    weights = ["train.lam_pxl=0.3", "train.lam_semi=0.5", "train.semi_masks=0.5"]
    config = load_config([], [*weights, "stages.distilled_student.semi_factor=0.5"])
    adapted, refined = (
        stage_objective(config, STAGE["adapted_teacher"]),
        stage_objective(config, STAGE["refined_student"]),
    )
    assert (adapted.lam_semi, adapted.lam_pxl) == (0.5, 0.3) and adapted.contrast is not None
    assert (refined.lam_semi, refined.lam_pxl) == (0.0, 0.0) and refined.contrast is None
    assert stage_objective(config, STAGE["distilled_student"]).lam_semi == 0.25
    assert part_weights(config, STAGE["adapted_teacher"])["semi_dice"] == 1.25
    assert part_weights(config, STAGE["distilled_student"])["semi_dice"] == 0.625
    assert "pxl" not in part_weights(config, STAGE["refined_student"])


def test_the_share_of_the_gradient_goes_to_stages_with_the_contrast() -> None:
    config = load_config([], ["train.lam_pxl=0.1", "train.pxl_gradient_share=0.15", "contrast.form=ownership"])
    adapted, refined = (stage_objective(config, STAGE[name]) for name in ("adapted_teacher", "refined_student"))
    assert adapted.gradient_share is not None and adapted.gradient_share.share == 0.15
    assert isinstance(adapted.contrast, MaskOwnership)
    assert refined.gradient_share is None and refined.contrast is None
    assert stage_objective(load_config([]), STAGE["adapted_teacher"]).gradient_share is None


def test_a_new_teacher_outdates_what_builds_on_it() -> None:
    later = {"adapted_teacher", "distilled_student", "refined_student"}
    assert dependents(STAGE["supervised_teacher"]) == later
    assert dependents(STAGE["distilled_student"]) == {"refined_student"}
    assert dependents(STAGE["supervised_student"]) == set()
    fitted = {FITTED, "supervised_teacher", *later}
    assert dependents(STAGE["zero_shot_teacher"]) == fitted  # by way of the teacher that is fitted to it
    assert chain_of(STAGE["refined_student"]) == fitted
    assert chain_of(STAGE["matched_student"]) == {"matched_student"}


def test_rows_in_the_views_of_the_teacher_stand_beside_their_stages() -> None:
    trained = ("supervised_teacher", "adapted_teacher", MATCHED_BASELINE, BASELINE, *reversed(FINAL_STUDENTS))
    in_views = (row for name in trained for row in (name, f"{name}_views"))
    assert ("zero_shot_teacher", FITTED, *in_views) == ROW_ORDER
    assert stage_of("adapted_teacher_views") == STAGE["adapted_teacher"] and stage_of("other") is None
    assert "adapted_teacher_views" not in STAGE and words_of("adapted_teacher_views") == "adapted teacher, as it labels"
    assert words_of("refined_student_views") == "refined student, as the teacher labels"


def test_models_are_compared_in_the_same_views_and_students_with_their_teacher_as_it_labels() -> None:
    assert {other for model, other in COMPARISONS if model == "refined_student_views"} == {
        "supervised_teacher_views", "adapted_teacher_views", "matched_student_views", "supervised_student_views",
        "distilled_student_views",
    }  # fmt: skip
    assert {other for model, other in COMPARISONS if model == "refined_student"} == {
        "zero_shot_teacher", FITTED, "supervised_teacher", "supervised_teacher_views", "adapted_teacher",
        "adapted_teacher_views", "matched_student", "supervised_student", "distilled_student",
    }  # fmt: skip


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for seed, (name, count) in enumerate((("train", 12), ("val", 4), ("plain", 6))):
        write_scenes(folder, name, "target", count, seed=80 + seed)
    return folder


def settings(folder: Path, *overrides: str) -> Config:
    files = [f"data.labeled={folder / 'train.json'}", f"data.images={folder / 'train'}"]
    files += [f"data.val={folder / 'val.json'}", f"data.val_images={folder / 'val'}"]
    return load_config([], [*files, *overrides])


def test_labelled_and_validation_images_leave_the_unlabelled_set(own_data: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(own_data / "plain", mixed)
    shutil.copy(own_data / "train" / "00003.png", mixed / "seen.png")
    shutil.copy(own_data / "val" / "00001.png", mixed / "asked.png")
    sources = target_sources(settings(own_data, f"data.unlabeled={mixed}"), tmp_path / "run")
    assert sorted(sources.unlabeled.file_names) == sorted(p.name for p in (own_data / "plain").iterdir())
    assert any("2 of 8 images are labelled or validation images too" in w and "seen.png" in w for w in sources.warnings)
    with pytest.raises(DataError, match="all 12 images are labelled or validation images"):
        target_sources(settings(own_data, f"data.unlabeled={own_data / 'train'}"), tmp_path / "none")


def test_splits_are_drawn_once_and_differ_by_seed(own_data: Path, tmp_path: Path) -> None:
    def folds(seed: int, folder: str) -> list[list[int]]:
        config = settings(own_data, f"data.unlabeled={own_data / 'plain'}", f"seed={seed}")
        return target_sources(config, tmp_path / folder).folds

    first = folds(0, "a")
    assert folds(0, "b") == first and folds(5, "a") == first, "a folder keeps its splits"
    assert folds(5, "c") != first


def test_sizes_come_from_the_data(own_data: Path, tmp_path: Path) -> None:
    sources = target_sources(settings(own_data, "data.labeled_fraction=0.5"), tmp_path / "run")
    assert sources.views.size == (64, 64) and sources.zoom == 1.0 and 16 <= sources.num_queries <= 40
    assert len(sources.labeled) == len(sources.unlabeled) == 6
    assert sources.hidden_truth is not None and sources.unlabeled[0].instances is None
    hidden = {record["id"] for record in sources.hidden_truth["images"]}
    assert hidden == set(sources.unlabeled.image_ids)
    assert not hidden & set(sources.labeled.image_ids)


def test_true_labels_take_the_place_of_the_teachers(own_data: Path, tmp_path: Path) -> None:
    config = settings(own_data, "data.labeled_fraction=0.5", "pseudo_labels.truth=true")
    sources = target_sources(config, tmp_path)
    assert any("pseudo_labels.truth" in w and "no result" in w for w in sources.warnings)
    models = RunModels(config, sources, RunResults(tmp_path, {}), torch.device("cpu"))
    labels = teacher_labels(models, Log(tmp_path), "adapted_teacher")  # no such teacher has been trained
    assert labels is not None and labels.cell == (1, 1) and sources.hidden is not None
    source = PseudoLabeled(sources.unlabeled, labels.results, sources.labeled.category_ids, class_names=sources.classes)
    assert len(source) == 6
    for i in range(len(source)):
        given, hidden = source[i].instances, sources.hidden[i].instances
        assert given is not None and hidden is not None and len(hidden) > 0
        assert torch.equal(given.masks, hidden.masks) and torch.equal(given.labels, hidden.labels)
        assert given.scores.eq(1).all()
    written = json.loads((tmp_path / "pseudo_labels" / "adapted_teacher.json").read_text())
    keys = ("image_id", "category_id", "segmentation", "iscrowd", "score")
    assert [{key: a[key] for key in keys} for a in written["annotations"]] == labels.results
    assert [image["id"] for image in written["images"]] == sources.unlabeled.image_ids
    statistics = json.loads((tmp_path / "label_statistics.json").read_text())["adapted_teacher"]
    assert statistics["precision"] == statistics["recall"] == statistics["mean_iou"] == 1


def test_all_that_builds_on_an_outdated_model_is_dropped(tmp_path: Path) -> None:
    results = RunResults(tmp_path, {})
    as_it_labels = results.predictions_path("adapted_teacher_views")
    as_it_labels.parent.mkdir()
    as_it_labels.touch()
    for name in ("supervised_teacher", "adapted_teacher_views"):
        results.add_row(Row(name, 1.0, 2.0, 3, 4.0, {"seconds": 5.0}))
    results.write_details("gains", [{"model": "adapted_teacher", "against": "supervised_teacher"}])
    results.outdate(dependents(STAGE["supervised_teacher"]))
    assert not as_it_labels.exists() and [row["name"] for row in results.rows] == ["supervised_teacher"]
    results.add_row(Row("supervised_teacher", 1.5, 2.0, 3, 4.0, {"seconds": 5.0}))
    assert results.details["gains"] == [], "gains of another model of that name"
    places = (results.state_path, results.weights_path, results.predictions_path)
    independent, dependent = ([place(n) for place in places] for n in ("supervised_student", "refined_student"))
    for path in (*independent, *dependent):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    results.outdate(dependents(STAGE["adapted_teacher"]))
    assert all(path.exists() for path in independent) and not any(path.exists() for path in dependent)


def test_true_labels_need_hidden_ones(own_data: Path, tmp_path: Path) -> None:
    config = settings(own_data, f"data.unlabeled={own_data / 'plain'}", "pseudo_labels.truth=true")
    with pytest.raises(DataError, match="plain: images that never had labels; expected hidden ones"):
        target_sources(config, tmp_path / "run")


def test_a_missing_field_is_named_before_training(own_data: Path, tmp_path: Path) -> None:
    config = settings(own_data, "data.labeled_fraction=0.5", "data.balance_key=modality")
    with pytest.raises(DataError, match="has no field 'modality'"):
        target_sources(config, tmp_path / "run")


def test_one_labelled_image_is_trained_on_without_folds(own_data: Path, tmp_path: Path) -> None:
    sources = target_sources(settings(own_data, "data.labeled_fraction=0.05"), tmp_path / "run")
    assert len(sources.labeled) == 1 and sources.folds == []
    assert any("all labels belong to one image" in w and "stay at 0.50" in w for w in sources.warnings)
    two = target_sources(settings(own_data, "data.labeled_fraction=0.17"), tmp_path / "two")
    assert sorted(map(len, two.folds)) == [1, 1] and not two.warnings


def test_a_run_is_named_by_its_data_unless_told(own_data: Path, tmp_path: Path) -> None:
    def name(*arguments: str) -> str:
        return resolve(parser().parse_args(arguments)).data.name

    nested = tmp_path / "cells" / "annotations"
    nested.mkdir(parents=True)
    (nested / "train.json").write_text(json.dumps({}))
    assert name() == "embedded" and name("--labeled", str(own_data / "train.json")) == own_data.name
    assert name("--labeled", str(nested / "train.json")) == "cells"
    assert name("--labeled", str(nested / "train.json"), "--config", "configs/nuclei.yaml") == "nuclei"


def test_a_folder_is_not_gone_on_with_under_another_seed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 4\n")
    arguments = ["--resume", "--output", str(tmp_path)]
    assert resolve(parser().parse_args(arguments)).seed == 4
    with pytest.raises(ConfigError, match="another seed or other data"):
        resolve(parser().parse_args([*arguments, "--seed", "5"]))


def test_a_model_predicts_in_windows_of_its_own(untrained_run: RunModels) -> None:
    config = untrained_run.config
    config = replace(
        config, predict=replace(config.predict, tile=(64, 96)), teacher=replace(config.teacher, tile=(32, 48))
    )
    models = replace(untrained_run, config=config)
    model, source = models.start(STAGE["zero_shot_teacher"]), models.sources.val
    assert models.inference_of(config.student).tile == (64, 96)
    own = replace(models.inference_of(config.student), tile=(32, 48), overlap=16)
    expected = predict_source(model, own, source, source.category_ids)
    assert (
        models.predict(model, source)
        == expected
        != predict_source(model, models.inference_of(config.student), source, source.category_ids)
    )
    models.save("supervised_teacher", model, {})
    assert read_description(models.results.weights_path("supervised_teacher")).inference == own
    with pytest.raises(ValueError, match=r"tile=\(32, 0\): expected two sides, or 0, 0"):
        replace(config.teacher, tile=(32, 0))


@pytest.mark.parametrize(("labels", "pool"), [((2.0, 4.0), 1), ((4.0, 8.0), 2), ((8.0, 4.0), 2), ((1.0, 1.0), 1)])
def test_masks_are_compared_on_cells_as_coarse_as_the_labels(labels: tuple[float, float], pool: int) -> None:
    assert coarser_by(labels, (3.5, 3.5)) == pool
