from __future__ import annotations

import base64
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_folders import (
    AP,
    CATEGORIES,
    RESULTS,
    Page,
    disc,
    gain,
    make_run,
    metrics_of,
    old_row,
    result,
    save_images,
    truth_of,
)

from sskd_fast.method import EVERY_RUN, ROW_ORDER, title_of
from sskd_fast.pseudo_labels import label_statistics
from sskd_fast.report import read_figures, table_text, verdict_words, write_report
from sskd_fast.report.curves import HEIGHT, WIDTH, Series, line_chart, nice_ticks, stage_curves, stage_logs
from sskd_fast.report.numbers import count_text, difference_text, seconds_text
from sskd_fast.report.overlays import overlay_rows
from sskd_fast.report.pictures import LONG_SIDE, SHORT_SIDE, Patch, badge, enlarged
from sskd_fast.report.verdict import verdict

# Verdict and table


REFINED, BEST, MATCHED, TEACHER = "refined_student", "supervised_student", "matched_student", "adapted_teacher_views"


PLAIN = {name: ap for name, ap in AP.items() if not name.endswith("student_views")}


def said(details: dict[str, Any] | None = None, **aps: float) -> str:
    """The verdict of a run whose students were measured in one view alone, as earlier versions did."""
    return verdict_words(metrics_of({**PLAIN, **aps}), details)


def test_no_ratio_of_parameters_to_a_file_of_predictions() -> None:
    metrics = metrics_of(PLAIN)
    for row in metrics["rows"]:
        if row["name"].startswith(("adapted_teacher", "supervised_teacher", "zero_shot_teacher")):
            row["params"] = 0
    assert "fewer parameters" in said() and "fewer parameters" not in verdict_words(metrics, None)


def test_verdict_compares_student_and_teacher_in_the_same_views() -> None:
    entry = gain(f"{REFINED}_views", TEACHER, 3.7, -0.2, 7.0)
    words = verdict_words(metrics_of(AP), {"gains": [entry]})
    assert "+2.1 AP against the adapted teacher (23.2 AP). Intervals" not in words
    assert "; +2.1 AP against the adapted teacher (23.2 AP)." in words
    assert (
        "Averaged over 6 views of each image, as the teacher labels, the refined student reaches 27.3 AP: +5.8 AP "
        "against the supervised student (21.5 AP); +7.3 AP against the matched student (20.0 AP); +3.7 AP (95 % "
        "interval -0.2 to +7.0, no difference shown) against the adapted teacher (23.6 AP), in the same views."
    ) in words
    zoomed = metrics_of(AP)
    for found in zoomed["rows"]:
        found.pop("views", None)
    assert "In the view of each image in which the teacher labels, the refined student reaches" in verdict_words(zoomed)
    strides = [
        gain(REFINED, name, ap, None, None, stride=4.0) for name, ap in ((TEACHER, -9.0), ("adapted_teacher", -7.2))
    ]
    words = verdict_words(metrics_of(AP), {"gains": strides})
    assert "has 12.8 AP, against 20.0 of the adapted teacher: -7.2 AP." in words
    of_one_view = {name: ap for name, ap in AP.items() if not name.endswith("teacher_views")}
    assert "+2.1 AP against the adapted teacher (23.2 AP)." in verdict_words(metrics_of(of_one_view))


def test_verdict_of_a_student_that_gained_and_beats_its_teacher() -> None:
    gains = [
        gain(REFINED, BEST, 5.7, 3.1, 8.0),
        gain(REFINED, MATCHED, 7.2, 4.0, 9.5),
        gain(REFINED, TEACHER, 1.7, -0.4, 3.9),
    ]
    words = said({"gains": gains})
    assert words.startswith(
        "Distillation helped: +5.7 AP (95 % interval +3.1 to +8.0) over the supervised student. Trained: the refined "
        "student on 200 labelled + 1800 unlabelled images with pseudo-labels of the adapted teacher; the supervised "
        "student (with steps and augmentation of its own) and the matched student (with the steps and augmentation of "
        "distillation and refinement) on 200 labelled images; "
        "the adapted teacher on 200 labelled + 1800 unlabelled images with pseudo-labels of the supervised teacher. "
    )
    assert (
        "The refined student reaches 25.3 AP on 256 validation images: +5.7 AP (95 % interval +3.1 to +8.0) against "
        "the supervised student (19.6 AP); +7.2 AP (95 % interval +4.0 to +9.5) against the matched student (18.1 AP); "
        "+1.7 AP (95 % interval -0.4 to +3.9, no difference shown) against the adapted teacher, as it labels (23.6 AP, "
        "6 views of an image). Intervals are over the choice of validation images, for these trained models."
    ) in words
    assert "The student has 10.8 times fewer parameters than the teacher (97.7 k against 1.06 M)." in words
    assert "At the" not in words  # nothing is known at equal stride


def test_verdict_of_a_student_of_true_labels_says_so() -> None:
    words = verdict_words(metrics_of(AP) | {"true_labels": True}, None)
    assert (
        "Trained: the refined student and the adapted teacher on 200 labelled + 1800 unlabelled images with their "
        "hidden true labels, a bound and no result; "
    ) in words


@pytest.mark.parametrize(
    ("ap", "low", "high", "tone", "words"),
    [
        (5.7, 2.1, 9.0, "better", "Distillation helped: +5.7 AP (95 % interval +2.1 to +9.0) over the supervised"),
        (5.7, -0.2, 9.0, "even", "No gain shown: +5.7 AP (95 % interval -0.2 to +9.0, no difference shown) against"),
        (1.4, 0.2, 2.0, "even", "No clear gain: +1.4 AP (95 % interval +0.2 to +2.0) against"),
        (-3.6, -6.0, 1.0, "even", "No gain shown: -3.6 AP (95 % interval -6.0 to +1.0, no difference shown) against"),
        (-3.6, -6.0, -1.0, "worse", "Distillation did not help: -3.6 AP (95 % interval -6.0 to -1.0) against"),
        (5.7, None, None, "better", "Distillation helped: +5.7 AP over the supervised student."),
        (-0.6, None, None, "even", "No clear gain: -0.6 AP against the supervised student."),
    ],
)
def test_verdict_claims_no_more_than_the_validation_images_show(
    ap: float, low: float | None, high: float | None, tone: str, words: str
) -> None:
    details = {"gains": [gain(REFINED, BEST, ap, low, high)]}
    metrics = metrics_of({**AP, REFINED: AP[BEST] + ap})
    assert verdict(metrics, details).tone == tone and verdict_words(metrics, details).startswith(words)
    assert ("Intervals are over" in verdict_words(metrics, details)) == (low is not None)


def test_the_better_of_both_supervised_students_is_the_one_to_beat() -> None:
    gains = [gain(REFINED, BEST, 5.7, 3.1, 8.0), gain(REFINED, MATCHED, 0.3, -1.0, 1.9)]
    found = verdict(metrics_of({**AP, MATCHED: 25.0}), {"gains": gains})
    assert found.tone == "even" and found.headline.startswith("No gain shown: +0.3 AP")
    assert found.headline.endswith("against the matched student.")


def test_verdict_of_a_handful_of_images_is_open_whatever_they_show() -> None:
    metrics, sure = metrics_of(AP) | {"val_images": 9}, {"gains": [gain(REFINED, BEST, 5.7, 5.0, 6.0)]}
    assert verdict(metrics, sure).tone == "open" and "interval" not in verdict_words(metrics, sure)
    assert verdict_words(metrics, sure).startswith("Too few validation images for a verdict: +5.7 AP against")
    assert verdict(metrics | {"val_images": 10}, sure).tone == "better"


def test_verdict_compares_at_equal_stride_if_strides_differ() -> None:
    entry = gain(REFINED, TEACHER, -7.2, -9.0, -5.0, stride=4.0) | {"model_ap": 23.8, "against_ap": 31.0}
    words = said({"gains": [entry], "ceilings": {"2": 87.5, "4": 48.0}})
    assert (
        "At the teacher's stride 4, to which the student's masks are brought, the student has 23.8 AP, against 31.0 "
        "of the adapted teacher, as it labels: -7.2 AP (95 % interval -9.0 to -5.0). Perfect masks reach 87.5 AP at "
        "stride 2 and 48.0 AP at stride 4."
    ) in words
    assert "+1.7 AP against the adapted teacher, as it labels" in words  # as the masks are, without an interval


def test_verdict_says_what_refining_and_adapting_changed() -> None:
    gains = [gain(REFINED, "distilled_student", -0.6, -0.7, -0.5)]
    words = said({"gains": gains}, refined_student=23.8)
    assert (
        "Refining the student on the labelled images: -0.6 AP (95 % interval -0.7 to -0.5) against the distilled "
        "student."
    ) in words
    assert "Adapting the teacher with pseudo-labels: +0.6 AP against the supervised teacher." in words


def test_verdict_says_what_the_chain_cost_against_the_supervised_student() -> None:
    assert (
        "Cost of the chain up to the refined student: 400 steps, 3.2 k labelled and 3.2 k unlabelled images seen, "
        "226 s of training (400 s of CPU) and 40 s of labelling; of the supervised student: 100 steps, 800 labelled "
        "images seen, 56 s of training (100 s of CPU)."
    ) in said()


def test_without_a_sure_pseudo_label_no_unlabelled_image_is_claimed() -> None:
    metrics = metrics_of(AP)
    for found in metrics["rows"]:
        found["unlabeled_seen"] = 0
    words = verdict_words(metrics)
    assert "and the adapted teacher on 200 labelled images (no pseudo-label was sure enough);" in words
    assert "unlabelled" not in words


def test_figures_of_an_earlier_version_are_still_shown() -> None:
    names = ("zero_shot_teacher", "supervised_teacher", "adapted_teacher", BEST, "distilled_student", REFINED)
    metrics = metrics_of({}) | {"rows": [old_row(name, AP[name]) for name in names]}
    details = {REFINED: {"ap75": 1.0, "gain": {"ap": 5.7, "low": 1.0, "high": 9.0}}}
    words = verdict_words(metrics, details)
    assert words.startswith(
        "Distillation helped: +5.7 AP over the supervised student. Trained: the refined student on 200"
    )
    assert "the supervised student on 200 labelled images; the adapted teacher on" in words
    assert "+2.1 AP against the adapted teacher (23.2 AP)." in words
    assert "Cost" not in words and "interval" not in words and "best" not in words
    lines = table_text(metrics).splitlines()
    assert re.split(" {2,}", lines[0]) == ["model", "AP", "AP50", "parameters", "training"] and len(lines) == 7


def test_verdict_of_an_unfinished_run_says_what_is_missing() -> None:
    assert verdict(metrics_of({})).tone == "open"
    partly = {name: AP[name] for name in ("zero_shot_teacher", "supervised_teacher", "distilled_student")}
    words = verdict_words(metrics_of(partly))
    assert words.startswith("No verdict yet: 3 of 7 models are measured. Best so far: distilled student with 24.4 AP.")
    assert "Not measured yet: adapted teacher, matched student, supervised student, refined student." in words
    unmeasured = metrics_of({**AP, "refined_student": math.nan})
    assert "The distilled student reaches 24.4 AP" in verdict_words(unmeasured)
    assert "No teacher was measured" in verdict_words(metrics_of({"supervised_student": 1.0, "refined_student": 2.0}))


def test_table_has_one_line_for_each_row_in_the_order_of_the_method() -> None:
    shuffled = metrics_of({name: AP[name] for name in reversed(ROW_ORDER) if name in AP})
    shuffled["rows"].append({"name": "other_model", "ap": 1.0})
    lines = [re.split(" {2,}", line) for line in table_text(shuffled).splitlines()]
    assert lines[0] == [
        "model", "AP", "AP50", "parameters", "training", "CPU time", "labelling", "steps", "images seen",
    ]  # fmt: skip
    assert [line[0] for line in lines[1:]] == [
        "Zero-shot teacher", "Supervised teacher", "Supervised teacher, as it labels (6 views)", "Adapted teacher",
        "Adapted teacher, as it labels (6 views)", "Matched student",
        "Matched student, as the teacher labels (6 views)", "Supervised student",
        "Supervised student, as the teacher labels (6 views)", "Distilled student",
        "Distilled student, as the teacher labels (6 views)", "Refined student",
        "Refined student, as the teacher labels (6 views)", "Other model",
    ]  # fmt: skip
    assert lines[1][1:] == ["14.9", "28.3", "1.06 M", "56 s", "100 s", "0 s", "0", "0"]
    assert lines[10][1:] == ["24.4", "46.4", "97.7 k", "56 s", "100 s", "20 s", "100", "800 + 1.6 k"]
    assert lines[-1][1:] == ["1.0", *"-------"]
    assert len({len(line) for line in table_text(shuffled).splitlines()}) == 1


def test_figures_of_a_data_sets_own_evaluation_get_columns() -> None:
    metrics = metrics_of(AP)
    metrics["rows"][1] |= {"cityscapes_ap": 12.34, "cityscapes_ap50": 25.0}
    lines = table_text(metrics).splitlines()
    titles = ["model", "AP", "AP50", "Cityscapes AP", "Cityscapes AP50", "parameters", "training"]
    assert re.split(r" {2,}", lines[0])[:7] == titles
    cells = [re.split(r" {2,}", line) for line in lines[1:]]
    assert [row[3:5] for row in cells].count(["12.3", "25.0"]) == 1 and all(len(row) == 11 for row in cells)
    assert [row[3:5] for row in cells].count(["-", "-"]) == len(cells) - 1


def test_numbers_as_text() -> None:
    counts = [count_text(value) for value in (0, 999, 97_700, 999_600, 1_059_000, 568e6, None, math.nan)]
    assert counts == ["0", "999", "97.7 k", "1 M", "1.06 M", "568 M", "-", "-"]
    assert [seconds_text(value) for value in (4.4, 599, 600, 5400, None)] == [
        "4 s",
        "599 s",
        "10 min",
        "1 h 30 min",
        "-",
    ]
    assert [difference_text(value) for value in (4.84, -0.3, 0.04, -0.04)] == ["+4.8", "-0.3", "0.0", "0.0"]


# Curves


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 47.3), (3.2, 19.7), (-2, 0.5), (0.001, 0.0042), (7, 7), (0, 0)])
def test_ticks_are_round_and_enclose_the_data(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 7
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:.0e}"[0] in "125"


def test_chart_is_well_formed_and_breaks_at_non_finite_numbers() -> None:
    points = [(0.0, 1.0), (1.0, 3.0), (2.0, math.nan), (3.0, 2.0), (4.0, math.inf)]
    svg = line_chart([Series("a & b", points, "main", marked=True)], title='1 < "2"', x_label="step", y_label="loss")
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == '1 < "2"'
    drawn = next(path.attrib["d"] for path in root.iter("path") if path.attrib["class"] == "line main")
    assert drawn.count("M") == 2 and drawn.count("L") == 1
    numbers = [float(number) for number in re.findall(r"[\d.]+", drawn)]
    assert all(0 <= x <= WIDTH for x in numbers[::2]) and all(0 <= y <= HEIGHT for y in numbers[1::2])
    value = next(text.text for text in root.iter("text") if text.attrib["class"] == "value main")
    assert value == "2.0"


def test_chart_without_a_finite_point_is_empty() -> None:
    assert line_chart([Series("a", [(0.0, math.nan)], "main")], title="", x_label="", y_label="") == ""


def test_stages_keep_their_order_and_a_repeated_step_counts_once() -> None:
    log: list[dict[str, Any]] = [
        {"stage": "b", "step": 1, "steps": 3, "lr": 1.0, "loss": 5.0, "loss_mask": 4.0},
        {"stage": "b", "step": 2, "steps": 3, "lr": 1.0, "loss": 50.0, "loss_mask": 40.0},
        {"event": "warning", "message": "interrupted"},
        {"stage": "b", "step": 2, "steps": 3, "lr": 1.0, "loss": 4.0, "loss_mask": 3.0},
        {"stage": "a", "step": 1, "event": "eval", "ap": 10.0, "ap50": 20.0},
    ]
    first, second = stage_curves(log)
    assert (first.stage, first.last_step, first.steps, first.parts) == ("b", 2, 3, {"loss_mask": 3.0})
    assert first.loss and not first.ap
    assert ">50<" not in first.loss
    assert (second.stage, second.loss, second.parts) == ("a", "", {}) and second.ap


# Pictures


def picture_of(source: str) -> Image.Image:
    head, data = source.split(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def test_an_object_keeps_its_number_in_every_picture(tmp_path: Path) -> None:
    save_images(tmp_path / "images")
    columns = {"zero_shot_teacher": [], "refined_student": RESULTS}
    titles = {"refined_student": "refined student"}
    first, second = overlay_rows(truth_of(), tmp_path / "images", columns, titles=titles)
    truth, nothing, student = first.overlays
    assert (truth.summary, nothing.summary) == ("1 disc, 1 ring", "0 of 2 found")
    assert student.summary == "2 of 2 found, 1 of wrong class, 1 extra"
    assert student.alt == f"scene 1.png, refined student: {student.summary}"
    assert [(s.number, s.right) for s in student.shown] == [(1, True), (2, False), (None, False)]
    assert [s.color for s in student.shown[:2]] == [s.color for s in truth.shown]
    assert (second.file_name, second.overlays[2].summary) == ("scene 2.png", "0 of 2 found")


def test_the_images_shown_are_spread_over_the_set(tmp_path: Path) -> None:
    rows = overlay_rows(truth_of(images=7), tmp_path, {}, titles={}, limit=3)
    assert [row.file_name for row in rows] == ["scene 1.png", "scene 3.png", "scene 5.png"]


@pytest.mark.parametrize("size", [(48, 64), (20, 400), (600, 800)])
def test_pictures_are_enlarged_and_drawn_on_the_objects(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 200, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scene 1.png")
    truth = truth_of(images=1)
    truth["images"][0] |= {"height": size[0], "width": size[1]}
    centre = size[0] / 2, size[1] / 2
    truth["annotations"] = truth["annotations"][:1]
    truth["annotations"][0]["segmentation"] = disc(*centre, radius=size[0] / 4, size=size)
    overlay = overlay_rows(truth, tmp_path, {}, titles={})[0].overlays[0]
    picture = picture_of(overlay.source)
    assert picture.size == (overlay.width, overlay.height)
    assert min(picture.size) >= SHORT_SIDE and max(picture.size) >= LONG_SIDE
    scale = picture.height / size[0]
    inside = picture.getpixel((picture.width // 2, int(picture.height / 2 + 0.15 * size[0] * scale)))
    outside = picture.getpixel((picture.width // 2, int(0.1 * picture.height)))
    assert isinstance(inside, tuple) and isinstance(outside, tuple)
    assert max(abs(value - 200) for value in outside) <= 8
    assert inside[2] < 150 < inside[0]  # tinted with the first colour, amber


def test_dark_pictures_are_brightened_and_others_stay() -> None:
    pixels = np.full((200, 320, 3), 40, dtype=np.uint8)
    pixels[:50] = 8
    assert [enlarged(pixels).getpixel((160, y)) for y in (5, 190)] == [(46, 46, 46), (230, 230, 230)]
    pixels[50:] = 128
    assert [enlarged(pixels).getpixel((160, y)) for y in (5, 190)] == [(8, 8, 8), (128, 128, 128)]
    assert enlarged(np.zeros_like(pixels)).getpixel((160, 100)) == (0, 0, 0)


def test_an_object_that_its_number_would_hide_has_none() -> None:
    for rows, numbered in ((14, False), (15, True)):
        canvas = Image.new("RGB", (80, 60), (200, 200, 200))
        badge(canvas, Patch(np.full((rows, 20), 255, dtype=np.uint8), left=30, top=20), "1", (255, 176, 0))
        assert (np.asarray(canvas) != 200).any() == numbered


def test_an_image_that_cannot_be_read_is_drawn_grey_and_named(tmp_path: Path) -> None:
    (first, *_) = overlay_rows(truth_of(), tmp_path, {}, titles={})
    assert "scene 1.png" in first.problem
    assert picture_of(first.overlays[0].source).getpixel((0, 0)) == (128, 128, 128)


def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path: Path) -> None:
    save_images(tmp_path / "images")
    wrong = [{**RESULTS[0], "segmentation": disc(5, 5, size=(32, 32))}]
    with pytest.raises(ValueError, match=r"\[32, 32\]"):
        overlay_rows(truth_of(), tmp_path / "images", {"refined_student": wrong}, titles={})


# The page


@pytest.mark.parametrize("measured", range(8))
def test_report_of_a_run_at_any_stage(tmp_path: Path, measured: int) -> None:
    run = make_run(tmp_path / "run", measured)
    path = write_report(run)
    assert path == run / "report.html"
    assert not list(run.glob("*.tmp"))
    page = Page(path.read_text(encoding="utf-8"))
    state = "complete" if measured == 7 else f"{measured} of 7 models measured"
    assert state in page.text
    assert ("Distillation helped" in page.text) == (measured > 5)
    for name in ROW_ORDER:
        assert (title_of(name) in page.text) == (name in EVERY_RUN or name in json.dumps(read_figures(run)[0]))
    assert ("Validation images" in page.text) == (measured > 0)
    assert ("labels on 2 images" in page.text) == (measured > 2)


def test_evaluations_of_fold_models_are_averaged_by_step() -> None:
    """Their losses belong to other trainings, so the chart of the stage's loss leaves them out."""
    log: list[dict[str, Any]] = [{"stage": "s", "step": 10, "loss": 3.0}]
    for fold, ap in ((1, 10.0), (2, 30.0)):
        log.append({"stage": "s", "fold": fold, "step": 10, "loss": 100.0})
        log.append({"stage": "s", "fold": fold, "step": 10, "event": "eval", "ap": ap, "ap50": 2 * ap})
    found = stage_logs(log)["s"]
    assert found.figure("ap") == [(10.0, 20.0)] and found.figure("ap50") == [(10.0, 40.0)]
    assert found.loss == [(10.0, 3.0)]


def test_report_shows_finer_figures(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path)).read_text()
    assert "<dt>AP against the adapted teacher</dt><dd>+2.1</dd>" in text
    table = text[text.index("AP75, AP by size") :]
    table = table[: table.index("</table>")]
    assert '<th scope="col">a&lt;b</th><th scope="col">c</th></tr>' in table, "one group alone is no column"
    assert table.count("<td>31.5</td><td>-</td><td>-</td><td>-</td><td>12.5</td><td>13.5</td>") == 13


def test_report_is_one_accessible_file_without_outside_resources(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path)).read_text(encoding="utf-8")
    page = Page(text)
    assert {name for name, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "base", "a"} == set()
    assert all(str(image["src"]).startswith("data:image/webp;base64,") for image in page.attributes("img"))
    assert not re.search(r"https?://|url\(|@import|\son\w+=", text)
    assert len(page.attributes("img")) == 2 * 5 + 2 * 2 and all(image["alt"] for image in page.attributes("img"))
    assert all(chart["aria-label"] and chart["role"] == "img" for chart in page.attributes("svg"))
    assert page.attributes("html") == [{"lang": "en"}]
    assert "width=device-width" in text and "prefers-color-scheme: dark" in text
    assert [name for name, _ in page.elements].count("h1") == 1


def test_report_escapes_its_input(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "metrics.json").write_text(json.dumps(metrics_of(AP, dataset="<i>set</i> & more")))
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"event": "warning", "message": "<script>alert(1)</script>"}) + "\n")
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert "<i>set</i> & more" in page.text and "name: a <b> & c" in page.text
    assert page.text.count("<script>alert(1)</script>") == 1 and "<script" not in text


def test_a_crowded_picture_shows_scores_instead_of_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    crowded = [result(1, 1, 12, x, 0.5 + x / 200) for x in range(10, 30)]
    (run / "predictions" / "refined_student.json").write_text(json.dumps(crowded))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "1 of 2 found, 19 extra scores 0.55 to 0.65" in page.text
    assert "1 disc 0.90" in page.text  # the other columns still list theirs


def test_warnings_of_the_log_and_of_the_labels_are_shown_once(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    statistics = label_statistics([], [1, 2], CATEGORIES)
    (message,) = statistics.warnings
    (run / "label_statistics.json").write_text(json.dumps({"supervised_teacher": asdict(statistics)}))
    with (run / "log.jsonl").open("a") as log:
        log.write(2 * (json.dumps({"event": "warning", "message": "9 masks without area"}) + "\n"))
        log.write(json.dumps({"stage": "supervised_teacher", "event": "warning", "message": message}) + "\n")
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert text.count("9 masks without area") == 1
    assert text.count(f"Supervised teacher: {message}") == text.count(message) == 1


def test_report_is_the_same_for_the_same_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_a_log_line_still_being_written_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = write_report(run).read_bytes()
    with (run / "log.jsonl").open("a") as log:
        log.write('{"stage": "refi')
    assert write_report(run).read_bytes() == before


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metrics.json", "{", r"metrics\.json: not readable as JSON"),
        ("log.jsonl", "{\n{}\n", r"log\.jsonl, line 1: not readable as JSON"),
        ("predictions/refined_student.json", "[", r"refined_student\.json: not readable"),
    ],
)
def test_an_unreadable_file_is_named_and_the_last_report_stays(
    tmp_path: Path, file: str, text: str, message: str
) -> None:
    run = make_run(tmp_path)
    before = write_report(run).read_bytes()
    (run / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    with pytest.raises(ValueError, match="expected the folder of a run"):
        write_report(run / "nowhere")
