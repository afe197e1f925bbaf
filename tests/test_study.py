"""Studies: their rows as settings, what rows share, the table of their figures, and its place on a page."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sskd_fast.files import write_json, write_text
from sskd_fast.method import BASELINE, FINAL_STUDENTS, MATCHED_BASELINE, STAGE
from sskd_fast.models.mask_transformer import MaskTransformer
from sskd_fast.models.settings import ModelConfig
from sskd_fast.run import contents
from sskd_fast.run.basis import lineage, settings_that_matter
from sskd_fast.run.stage_settings import stage_budget
from sskd_fast.study.__main__ import NOT_FINISHED, main, seeds_of
from sskd_fast.study.figures import keep_label_seconds, label_seconds, step_seconds, total_seconds
from sskd_fast.study.page import COLUMNS, columns, insert, markdown
from sskd_fast.study.parts import Part, Settings, part_of, share_settings, take_over
from sskd_fast.study.run import rows_of
from sskd_fast.study.summary import difference
from sskd_fast.study.tables import TABLES, TEACHERS, Row, Table
from sskd_fast.typed_settings import ConfigError
from tests.described import save_described

ROWS = [pytest.param(table, row, id=f"{name}: {row.name}") for name, table in TABLES.items() for row in table.rows]


# The tables


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_every_row_is_a_configuration_and_stages_of_the_method(table: Table, row: Row) -> None:
    part = part_of(row, Settings(), 4)
    assert part.config.seed == 4 and part.config.output == ""
    assert part.stages == (row.stages or row.teaching) and set(part.stages) <= set(STAGE)
    assert (part.after is not None) == bool(row.stages and row.teaching)
    trained = {*row.stages, *row.teaching}
    assert row.result in trained
    labeller = part.config.pseudo_labels.teacher
    if "distilled_student" in row.stages and not part.config.pseudo_labels.truth:
        assert labeller == "none" or labeller in row.teaching
    assert table.against(row) in {r.name for r in table.rows}
    assert row.time_of == "" or table.row(row.time_of).time_of == ""
    assert set(table.columns) <= set(COLUMNS)


def test_names_of_rows_are_unique_and_can_be_listed_between_commas() -> None:
    for table in TABLES.values():
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names) and not any("," in name or "|" in name for name in names)


def test_rows_have_the_settings_of_their_names() -> None:
    def config(table: str, row: str) -> Any:
        return part_of(TABLES[table].row(row), Settings(overrides=("train.lam_pxl=0.2",)), 0).config

    neither, both = config("ablations", "student neither").train, config("ablations", "student both").train
    assert (neither.lam_semi, neither.lam_pxl, both.lam_semi, both.lam_pxl) == (0, 0, 1, 0.1)
    assert config("stages", "all").train.lam_pxl == 0.2
    assert config("stages", "distillation alone").pseudo_labels.teacher == "zero_shot_teacher"
    assert [config("negatives", cues).contrast.cues for cues in ("uniform", "mask", "class", "fused", "object")] == [
        "uniform",
        "mask",
        "class",
        "fused",
        "object",
    ]
    assert config("negatives", "half hard").contrast.hard_share == 0.5
    few = config("negatives", "object in one image of four").contrast
    assert (few.cues, few.form, few.strong_every) == ("object", "sampled", 4)
    assert config("negatives", "expected").contrast.form == "expected"
    assert [config("map", f"level {n}").student.embedding_level for n in range(4)] == [0, 1, 2, 3]
    alone = config("baselines", "unlabelled alone").stages.distilled_student
    ours = config("baselines", "ours").stages.distilled_student
    assert (alone.labeled_batch, alone.unlabeled_batch) == (0, ours.labeled_batch + ours.unlabeled_batch)
    assert config("baselines", "mean teacher").pseudo_labels.teacher == "none"
    assert config("labels", "100 %").pseudo_labels.truth
    labels = TABLES["labels"]
    assert [row.result for row in labels.rows] == 4 * [BASELINE, MATCHED_BASELINE, FINAL_STUDENTS[0]] + [
        FINAL_STUDENTS[1]
    ]
    for share in ("2", "5", "10", "30"):
        few = [
            config("labels", f"{share} % {name}").data for name in ("supervised", "supervised as many steps", "ours")
        ]
        assert {data.embedded_labeled for data in few} == {round(float(share) / 100 * 1560)}
        matched = f"{share} % supervised as many steps"
        assert {labels.row(f"{share} % {name}").against for name in ("ours", "supervised")} == {matched}
        steps = stage_budget(config("labels", matched), STAGE[MATCHED_BASELINE]).steps
        assert steps == ours.steps + config("labels", matched).stages.refined_student.steps
    assert labels.row("100 %").against == matched and labels.row("100 %").share == 0.3
    assert [config("steps", row.name).stages.distilled_student.steps for row in TABLES["steps"].rows] == [
        factor * ours.steps for factor in (1, 1, 2, 2, 4, 4)
    ]
    alone = TABLES["steps"].row("4 x steps on labels alone")
    budget = stage_budget(config("steps", alone.name), STAGE[alone.result])
    refined = config("steps", alone.name).stages.refined_student
    assert alone.against == "4 x steps" and budget.steps == 4 * ours.steps + refined.steps


def test_a_share_of_the_labels_hides_the_others() -> None:
    embedded = Settings().config()
    assert share_settings(embedded, 0.0) == ()
    assert share_settings(embedded, 0.1) == ("data.embedded_labeled=156", "data.embedded_unlabeled=1404")
    own = Settings(overrides=("data.labeled=a.json", "data.images=a", "data.val=b.json", "data.labeled_fraction=0.3"))
    assert share_settings(own.config(), 0.1) == ("data.labeled_fraction=0.1",)


OWN = ("train.lr=0.2", "data.zoom=0.5", "train.lam_pxl=0.3", "train.pxl_gradient_share=0.3", "seed=9")


def test_a_seed_may_have_settings_of_its_own() -> None:
    settings = Settings(overrides=("train.lr=0.1", "views.hflip=false"), by_seed={2: OWN})
    configs = [part_of(TABLES["negatives"].row("object"), settings, seed).config for seed in (1, 2)]
    assert [config.seed for config in configs] == [1, 2]
    assert [config.train.lr for config in configs] == [0.1, 0.2]
    assert [config.data.zoom for config in configs] == [Settings().config().data.zoom, 0.5]
    assert not any(config.views.hflip for config in configs)
    assert all(config.train.pxl_gradient_share == 0.15 for config in configs)  # the row has the last word


# What rows share


def keys(table: str, *overrides: str, seed: int = 0) -> dict[str, tuple[str, str]]:
    """By row: the keys of the part that measures it, and of the one before."""
    parts = {row.name: part_of(row, Settings(overrides=overrides), seed) for row in TABLES[table].rows}
    return {name: (part.key, part.after.key if part.after else "") for name, part in parts.items()}


def test_rows_share_their_teacher_if_its_settings_are_equal() -> None:
    weight = ("train.lam_pxl=0.1", "train.pxl_gradient_share=0.15")
    ablations, negatives = (keys(table, *weight) for table in ("ablations", "negatives"))
    teacher = ablations["teacher both"][0]
    assert {before for name, (_, before) in ablations.items() if name.startswith("student")} == {teacher}
    assert len({own for name, (own, _) in ablations.items() if name.startswith("teacher")}) == 4
    assert {before for _, before in negatives.values()} == {teacher}
    assert len({own for own, _ in negatives.values()}) == len(negatives)
    labels = keys("labels")
    assert len({before for _, before in labels.values()}) == 5  # four shares, and no teacher
    assert len({own for own, _ in labels.values()}) == len(labels)


def test_rows_of_one_training_share_all_of_it() -> None:
    stages = keys("stages")
    assert stages["all"] == stages["no refinement"] == keys("baselines")["ours"]
    assert stages["no teacher adaptation"] == stages["distillation alone"] != stages["all"]
    assert len({own for own, _ in keys("cost").values()}) == 1
    steps = keys("steps")
    assert steps["1 x steps"] == keys("doubt")["as by default"]
    assert len({own for own, _ in steps.values()}) == len(steps)
    assert {before for _, before in steps.values()} == {steps["4 x steps"][1], ""}


def test_a_setting_that_matters_trains_anew_and_no_other_does() -> None:
    own, teacher = keys("stages")["all"]
    same = ("train.log_every=3", "train.threads=1", "data.workers=2", "device=cpu", "stages.supervised_student.steps=9")
    assert keys("stages", *same)["all"] == (own, teacher)
    longer = keys("stages", "stages.distilled_student.steps=9")["all"]
    assert longer[0] != own and longer[1] == teacher
    for change in ("train.lr=1e-4", "stages.adapted_teacher.steps=9", "data.embedded_val=9", "predict.nms_iou=0.7"):
        assert keys("stages", change)["all"][1] != teacher
    assert keys("stages", seed=1)["all"][1] != teacher
    wider = keys("stages", "student.width=44")["all"]
    assert wider[0] != own and wider[1] == teacher


def test_an_edited_file_trains_anew(tmp_path: Path) -> None:
    names = ("labels.json", "val.json", "images/a.png", "teacher.safetensors", "results.json")
    for name in names:
        write_text(tmp_path / name, name)
    data = [
        f"data.{n}={tmp_path / file}"
        for n, file in (("labeled", "labels.json"), ("val", "val.json"), ("images", "images"))
    ]
    teacher = (
        f"teacher_weights={tmp_path / 'teacher.safetensors'}",
        f"teacher.foundation.results=[{tmp_path / 'results.json'}]",
    )
    own = Settings(overrides=("data.labeled_fraction=0.5", *data, *teacher))

    def key() -> str:
        contents._of_path.cache_clear()  # as in another process
        return part_of(TABLES["stages"].row("all"), own, 0).key

    keys = [key()]
    assert key() == keys[0]
    for name in names:
        write_text(tmp_path / name, f"{name} edited")
        keys.append(key())
    assert len(set(keys)) == len(names) + 1


def test_the_settings_that_matter_are_those_of_the_stages() -> None:
    config = Settings().config()
    assert "student" not in settings_that_matter(config, TEACHERS)
    of_student = settings_that_matter(config, ("distilled_student", "refined_student"))
    assert {*of_student["stages"]} == {"distilled_student", "refined_student"} and "baseline" not in of_student
    assert "baseline" in settings_that_matter(config, ("supervised_student",))
    matched = settings_that_matter(config, ("matched_student",))
    assert {*matched["stages"]} == {"distilled_student", "refined_student"}


def test_a_part_takes_over_the_models_before_it_and_shares_its_images(tmp_path: Path) -> None:
    before, after = tmp_path / "adapted_teacher-1", tmp_path / "refined_student-2"
    write_text(before / "checkpoints" / "adapted_teacher.safetensors", "weights")
    write_text(before / "checkpoints" / "x.state.pt", "state")
    write_text(before / "log.jsonl", "line\n")
    write_json(before / "cache" / "unlabeled" / "a.json", {})
    write_json(before / "finished.json", {})
    take_over(before, after)
    assert sorted(path.name for path in after.iterdir()) == ["cache", "checkpoints", "log.jsonl"]
    weights = after / "checkpoints" / "adapted_teacher.safetensors"
    assert weights.samefile(before / "checkpoints" / weights.name) and len(list(weights.parent.iterdir())) == 1
    assert not (after / "log.jsonl").samefile(before / "log.jsonl")
    write_json(after / "cache" / "unlabeled" / "b.json", {})
    assert (before / "cache" / "unlabeled" / "b.json").exists()


# Figures


def test_a_model_builds_on_the_teacher_that_labelled_for_it() -> None:
    students = {"refined_student", "distilled_student"}
    assert lineage("refined_student", "none") == students
    assert lineage("refined_student", "zero_shot_teacher") == {*students, "zero_shot_teacher"}
    assert lineage("distilled_student", "supervised_student") == {"distilled_student", "supervised_student"}
    adapted = lineage("refined_student", "adapted_teacher")
    assert {*students, "supervised_teacher", "adapted_teacher"} <= adapted and "supervised_student" not in adapted
    assert lineage("matched_student", "adapted_teacher") == {"matched_student"}


def test_the_first_labelling_counts_for_all_that_share_it(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for first in (40.0, 2.0):
        write_json(tmp_path / "metrics.json", {"rows": [{"name": "distilled_student", "label_seconds": first}]})
        keep_label_seconds(tmp_path, "supervised_teacher")
    assert label_seconds(tmp_path) == {"supervised_teacher": 40.0}


def test_the_seconds_of_a_model_are_those_of_all_it_was_made_with(tmp_path: Path) -> None:
    seconds = {
        "supervised_teacher": 1.0,
        "adapted_teacher": 20.0,
        "distilled_student": 300.0,
        "refined_student": 4000.0,
    }
    model = MaskTransformer(ModelConfig(channels=(4,), blocks=(1,), width=4, mask_width=2, heads=1, feedforward=4), 1)
    (tmp_path / "checkpoints").mkdir()
    for stage, value in {**seconds, "supervised_student": 5e4}.items():
        save_described(tmp_path / "checkpoints" / f"{stage}.safetensors", model, ["disc"], seconds=value)
    write_json(tmp_path / "cache" / "label_seconds.json", {"supervised_teacher": 0.25, "adapted_teacher": 0.5})
    assert total_seconds(tmp_path, "refined_student", Settings().config()) == 4321.75
    assert total_seconds(tmp_path, "adapted_teacher", Settings().config()) == 21.25
    assert total_seconds(tmp_path, "supervised_student", Settings().config()) == 5e4
    by_truth = Settings(overrides=("pseudo_labels.truth=true",)).config()
    assert total_seconds(tmp_path, "distilled_student", by_truth) == 300.0
    by_supervised = Settings(overrides=("pseudo_labels.teacher=supervised_teacher",)).config()
    assert total_seconds(tmp_path, "distilled_student", by_supervised) == 301.25


def test_a_step_takes_the_sum_of_its_parts() -> None:
    assert step_seconds({"seconds_data": 0.1, "seconds_backward": 0.5, "seconds": 90.0, "loss": 1.0}) == 0.6


def measured(aps: list[float], images: str = "a") -> dict[str, Any]:
    return {"ap": aps[0], "drawn": aps, "images": images}


def test_differences_are_over_the_seeds_that_both_rows_have_on_the_same_images() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 3, (3, 101)).tolist()
    own = {seed: measured([30.0 + 2 + n for n in noise[seed]]) for seed in range(3)}
    other = {seed: measured([30.0 + n for n in noise[seed]]) for seed in range(2)} | {2: measured(noise[2], "b")}
    gain = difference(own, other)
    assert gain["seeds"] == [0, 1] and gain["by_seed"] == pytest.approx([2.0, 2.0])
    assert (gain["ap"], gain["low"], gain["high"]) == pytest.approx((2.0, 2.0, 2.0))
    assert difference(own, {5: measured([1.0, 1.0])}) == {}


# The page


def summary(**changes: Any) -> dict[str, Any]:
    def figure(mean: float | None, sd: float | None = None) -> dict[str, Any]:
        return {"mean": mean, "sd": sd, "by_seed": [mean]}

    gain = {"against": "all", "ap": -1.25, "low": -2.0, "high": -0.5, "sd": 0.1, "by_seed": [-1.25]}
    rows = [
        {"name": "all", "figures": {"ap": figure(31.24, 0.56), "ap_large": figure(None)}},
        {"name": "no refinement", "figures": {"ap": figure(30.0), "ap_large": figure(None)}, "difference": gain},
    ]
    facts = {"dataset": ["embedded"], "machines": ["M, 2 cores, torch 2"], "commits": ["abc"], "dates": ["2030-01-02"]}
    return {"seeds": [0, 1], "reference": "all", "unfinished": [["all", 3]], "rows": rows, **facts, **changes}


def test_the_table_shows_only_measured_figures() -> None:
    table = TABLES["stages"]
    assert columns(table, summary()) == {
        "": ["all", "no refinement"],
        "AP": ["31.2 ± 0.6", "30.0"],
        "difference": ["", "-1.2 (-2.0 to -0.5)"],
    }
    text = markdown(table, summary(), "python -m sskd_fast.study stages")
    for part in ("`python -m sskd_fast.study stages`", "Seeds 0, 1;", "2030-01-02 at abc: M, 2 cores, torch 2."):
        assert part in text
    assert "Not measured yet: all (seed 3)." in text


def test_a_page_keeps_its_text_outside_the_study(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("# Results\n\nBefore.\n", encoding="utf-8")
    insert(page, "stages embedded", "one")
    insert(page, "labels embedded", "two")
    first = page.read_text(encoding="utf-8")
    assert first.startswith("# Results\n\nBefore.\n\n<!-- study stages embedded") and first.count("<!--") == 4
    stamp = page.stat().st_mtime_ns
    insert(page, "stages embedded", "one")
    assert page.read_text(encoding="utf-8") == first and page.stat().st_mtime_ns == stamp
    insert(page, "stages embedded", r"new \1")
    assert page.read_text(encoding="utf-8") == first.replace("\n\none\n\n", "\n\nnew \\1\n\n")


def test_half_a_pair_of_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("<!-- end of study stages -->\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"results\.md: found one of the markers of study stages, expected"):
        insert(page, "stages", "text")


# The command line


@pytest.mark.parametrize(("text", "seeds"), [("3", [0, 1, 2]), ("0,4", [0, 4]), ("4,", [4]), ("1", [0])])
def test_seeds_are_a_number_of_them_or_a_list(text: str, seeds: list[int]) -> None:
    assert seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "1,1", "x", "-1"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected how many, such as 3, or which, such as 0,1,2"):
        seeds_of(text)


def test_rows_are_chosen_by_name() -> None:
    assert [row.name for row in rows_of(TABLES["negatives"], "object, no L_pxl")] == ["no L_pxl", "object"]
    with pytest.raises(ConfigError, match="--rows: found 'objekt', expected some of no L_pxl, as written, uniform"):
        rows_of(TABLES["negatives"], "objekt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.lrr=1"], "train.lrr: no such setting"),
        (["--rows", "x"], "--rows: found 'x'"),
        (["--data", "missing.yaml"], "--config missing.yaml: cannot be read"),
        (["pseudo_labels.teacher=none"], "pseudo_labels.teacher='none': nothing labels the unlabelled images"),
    ],
)
def test_bad_input_is_reported_before_training(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stages", "--output", str(tmp_path), *arguments]) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# A tiny row of every table

TINY = [
    "--preset", "smoke", "--seeds", "1", "train.max_steps=2", "train.log_every=1", "pseudo_labels.views=1",
    "pseudo_labels.folds=2", "train.lam_pxl=0.1", "train.pxl_gradient_share=0.15", "data.embedded_labeled=12",
    "data.embedded_unlabeled=20", "data.embedded_val=8",
]  # fmt: skip
TINY_ROWS = {
    "ablations": "teacher both,student both", "stages": "no teacher adaptation,distillation alone",
    "negatives": "no L_pxl,object", "baselines": "mean teacher,ours",
    "labels": "30 % supervised,30 % supervised as many steps",
    "baselines-time": "mean teacher", "map": "level 3", "cost": "adapted teacher", "doubt": "no object by score",
    "refinement": "faded and refined", "steps": "2 x steps on labels alone",
}  # fmt: skip
# Figures that a row of a table has beside those of every row.
FIGURES = {
    "negatives": {"margin", "fnr_foreground", "step_cost", "step_seconds"},
    "map": {"map_stride", "margin"},
    "cost": {"gflops", "params", "steps", "seconds"},
    "baselines-time": {"chain_steps", "total_seconds"},
    "labels": {"chain_steps"},
    "steps": {"steps", "cpu_seconds"},
}


def files_below(folder: Path) -> dict[str, int]:
    """Every file with the time of its last change."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny row or two of every table, and a page with all of them."""
    folder = tmp_path_factory.mktemp("studies") / "tiny"
    assert run(folder, "ablations", "--pieces", "0") == NOT_FINISHED
    for table in TINY_ROWS:
        assert run(folder, table) == 0
    return folder


def run(folder: Path, table: str, *more: str) -> int:
    page = folder.parent / "results.md"
    return main([table, "--output", str(folder), "--page", str(page), "--rows", TINY_ROWS[table], *TINY, *more])


@pytest.mark.slow
@pytest.mark.parametrize("table", TINY_ROWS)
def test_a_tiny_row_of_every_table_is_measured(table: str, studies: Path) -> None:
    study = json.loads((studies / f"{table}.json").read_text())
    assert [row["name"] for row in study["rows"]] == [r.name for r in rows_of(TABLES[table], TINY_ROWS[table])]
    assert study["unfinished"] == [] and study["seeds"] == [0] and study["dataset"] == ["embedded"]
    assert study["command"].startswith(f"python -m sskd_fast.study {table} --output ") and study["commits"]
    for row in study["rows"]:
        wanted = {"ap", "ap50", "ap75", "ap_small", "touching_ap", "step_seconds", "total_seconds"}
        figures = row["figures"]
        assert wanted | (FIGURES.get(table, set()) if row["name"] != "no L_pxl" else set()) <= set(figures)
        assert all(math.isfinite(figures[key]["mean"]) for key in ("ap", "ap50", "step_seconds", "total_seconds"))
        assert (studies / row["folders"]["0"] / "checkpoints" / f"{row['result']}.safetensors").exists()
    page = (studies.parent / "results.md").read_text()
    assert page.count((studies / f"{table}.md").read_text().strip()) == 1


@pytest.mark.slow
def test_a_finished_study_trains_nothing(studies: Path) -> None:
    before = files_below(studies / "runs")
    pages = (studies.parent / "results.md").read_text()
    for table in TINY_ROWS:
        assert run(studies, table) == 0
    assert files_below(studies / "runs") == before
    assert (studies.parent / "results.md").read_text() == pages


@pytest.mark.slow
def test_rows_of_all_tables_share_one_teacher(studies: Path) -> None:
    names = [path.name.partition("-")[0] for path in (studies / "runs" / "seed-0").iterdir()]
    assert names.count("adapted_teacher") == 1
    rows = {row["name"]: row for row in json.loads((studies / "negatives.json").read_text())["rows"]}
    folders = {name: studies / row["folders"]["0"] for name, row in rows.items()}
    first, second = (load_file(f / "checkpoints" / "adapted_teacher.safetensors") for f in folders.values())
    assert folders["object"] != folders["no L_pxl"] and all(torch.equal(first[name], second[name]) for name in first)
    assert rows["object"]["difference"]["against"] == "no L_pxl"


@pytest.mark.slow
def test_a_changed_setting_trains_anew(studies: Path) -> None:
    part = part_of(TABLES["map"].row("level 3"), Settings((), tuple(t for t in TINY if "=" in t), "smoke"), 0)
    assert part.is_finished(studies) and isinstance(part, Part)
    changed = part_of(TABLES["map"].row("level 3"), Settings((), ("train.max_steps=3",), "smoke"), 0)
    assert not changed.is_finished(studies) and changed.folder(studies) != part.folder(studies)
