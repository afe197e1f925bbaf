from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import AP, RESULTS, Page, make_run, metrics_of, truth_of

from sskd_fast.report.__main__ import main
from sskd_fast.report.comparison import ComparedRun, compared_runs, different_settings, incomparable, seed_groups
from sskd_fast.report.run_folder import read_run


def a_run(folder: Path, aps: dict[str, float] | None = None, *, labeled: str = "1\n2\n", **settings: Any) -> Path:
    """The folder of a finished run without pictures, with these settings."""
    folder.mkdir(parents=True)
    facts = {key: settings[key] for key in ("seed",) if key in settings}
    (folder / "metrics.json").write_text(json.dumps(metrics_of(AP if aps is None else aps, **facts)))
    (folder / "ground_truth.json").write_text(json.dumps(truth_of() | {"images_dir": str(folder)}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"output": str(folder), **settings}))
    (folder / "splits").mkdir()
    (folder / "splits" / "labeled.txt").write_text(labeled)
    return folder


def compared(*folders: Path) -> list[ComparedRun]:
    return compared_runs([read_run(folder) for folder in folders])


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def page_of(tmp_path: Path, *folders: Path) -> Page:
    output = tmp_path / "page.html"
    assert main([*map(str, folders), "--output", str(output)]) == 0
    return Page(output.read_text(encoding="utf-8"))


def test_settings_that_differ(tmp_path: Path) -> None:
    first = a_run(tmp_path / "a", seed=0, train={"lr": 0.1, "betas": [0.9, 0.98]}, device="cpu")
    second = a_run(tmp_path / "b", seed=0, train={"lr": 0.2, "betas": [0.9, 0.98]}, device="cpu", extra=True)
    runs = compared(first, second)
    assert different_settings(runs) == {"train.lr": ["0.1", "0.2"], "extra": ["-", "true"]}
    assert different_settings(runs[:1]) == {}


def test_runs_that_differ_only_in_the_seed_are_a_group(tmp_path: Path) -> None:
    folders = [
        a_run(tmp_path / "a0", {"refined_student": 20.0}, seed=0, lr=0.1),
        a_run(tmp_path / "b0", {"refined_student": 30.0}, seed=0, lr=0.2),
        a_run(tmp_path / "a1", {"refined_student": 23.0}, seed=1, lr=0.1),
        a_run(tmp_path / "a2", {"refined_student": 26.0}, seed=2, lr=0.1),
    ]
    first, second = seed_groups(compared(*folders))
    assert [run.name for run in first.runs] == ["a0", "a1", "a2"] and first.name == "a0, a1, a2"
    assert [run.seed for run in first.runs] == ["0", "1", "2"]
    assert first.spread("refined_student", "ap") == (pytest.approx(23.0), pytest.approx(3.0))
    assert second.spread("refined_student", "ap") is None and first.spread("adapted_teacher", "ap") is None


def test_the_same_run_twice_is_no_second_seed(tmp_path: Path) -> None:
    folders = [a_run(tmp_path / name, seed=0, lr=0.1) for name in ("a", "copy")]
    groups = seed_groups(compared(*folders))
    assert [[run.name for run in group.runs] for group in groups] == [["a"], ["copy"]]
    assert all(group.spread("refined_student", "ap") is None for group in groups)
    assert incomparable(groups) == [
        "a, copy have the same settings and the same seed 0: together they are one run, not several."
    ]


def test_runs_without_settings_stay_alone(tmp_path: Path) -> None:
    folders = [a_run(tmp_path / name, seed=0) for name in "ab"]
    for folder in folders:
        (folder / "config.yaml").unlink()
    assert len(seed_groups(compared(*folders))) == 2
    assert "Without config.yaml: a, b." in page_of(tmp_path, *folders).text


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    folders = [a_run(tmp_path / place / "run") for place in ("first", "second")]
    assert [run.name for run in compared(*folders)] == ["first/run", "second/run"]
    assert [run.name for run in compared(a_run(tmp_path / "x"), a_run(tmp_path / "y"))] == ["x", "y"]


def test_runs_on_the_same_images_compare(tmp_path: Path) -> None:
    assert incomparable(seed_groups(compared(a_run(tmp_path / "a", lr=1), a_run(tmp_path / "b", lr=2)))) == []


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("metrics.json", {"dataset": "cells"}, "data sets, so their AP is not comparable (shapes: a; cells: b)."),
        ("metrics.json", {"max_detections": 300}, "limits, so their AP is not comparable (100: a; 300: b)."),
        (
            "ground_truth.json",
            {"images": []},
            "The validation images differ, so AP compares only within these groups: a",
        ),
    ],
)
def test_reasons_not_to_compare_are_in_bold(tmp_path: Path, file: str, change: Any, words: str) -> None:
    first, second = a_run(tmp_path / "a", lr=1), a_run(tmp_path / "b", lr=2)
    edit(second / file, **change)
    (sentence,) = incomparable(seed_groups(compared(first, second)))
    assert words in sentence
    page = page_of(tmp_path, first, second)
    assert page.text.count(sentence) == 2  # beside the runs and beside the figures
    assert [name for name, _ in page.elements].count("strong") == 2


def test_different_labelled_images_are_reported_unless_both_groups_have_the_same(tmp_path: Path) -> None:
    one = a_run(tmp_path / "one", lr=1, seed=0, labeled="1\n2\n")
    other = a_run(tmp_path / "other", lr=2, seed=0, labeled="1\n3\n")
    (sentence,) = incomparable(seed_groups(compared(one, other)))
    assert sentence == "The labelled images differ, so AP compares only within these groups: one | other."
    more = [
        a_run(tmp_path / "one1", lr=1, seed=1, labeled="1\n3\n"),
        a_run(tmp_path / "other1", lr=2, seed=1, labeled="1\n2\n"),
    ]
    assert incomparable(seed_groups(compared(one, other, *more))) == [
        "The seeds of one, one1 have different labelled images: the standard deviation includes that.",
        "The seeds of other, other1 have different labelled images: the standard deviation includes that.",
    ]
    edit(other / "ground_truth.json", images=[])
    edit(more[0] / "ground_truth.json", images=[])
    assert incomparable(seed_groups(compared(one, other, more[0]))) == [
        "The seeds of one, one1 have different labelled and validation images: the standard deviation includes that.",
        "The labelled and validation images differ, so AP compares only within these groups: one | one1, other.",
    ]


def test_without_ground_truth_the_split_tells_the_validation_images(tmp_path: Path) -> None:
    folders = [a_run(tmp_path / name, lr=name) for name in "abc"]
    for folder, images in zip(folders, ("1\n2\n", "1\n3\n", "1\n2\n"), strict=True):
        (folder / "ground_truth.json").unlink()
        (folder / "splits" / "val.txt").write_text(images)
    assert incomparable(seed_groups(compared(*folders))) == [
        "The validation images differ, so AP compares only within these groups: a, c | b."
    ]


def test_many_thresholds_are_a_range(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name) for name in "ab"]
    for folder, count in zip(folders, (6, 7), strict=True):
        record = json.loads((folder / "label_statistics.json").read_text())
        record["supervised_teacher"]["thresholds"] = {f"kind {n}": 0.8 - n / 10 for n in range(count)}
        (folder / "label_statistics.json").write_text(json.dumps(record))
    text = page_of(tmp_path, *folders).text
    assert "kind 0 0.80, kind 1 0.70, kind 2 0.60, kind 3 0.50, kind 4 0.40, kind 5 0.30" in text
    assert "0.20 to 0.80" in text and "kind 6" not in text


def test_drawn_images_count_though_their_names_are_equal(tmp_path: Path) -> None:
    folders = [a_run(tmp_path / name, lr=name) for name in "ab"]
    for folder in folders:
        (folder / "data").mkdir()
        (folder / "data" / "labeled.json").write_text(folder.name)
    assert incomparable(seed_groups(compared(*folders))) == [
        "The labelled images differ, so AP compares only within these groups: a | b."
    ]


def test_the_page_shows_figures_settings_verdicts_curves_and_labels(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name) for name in ("first", "<second>")]
    for number, folder in enumerate(folders):
        (folder / "config.yaml").write_text(f"seed: {number}\nlr: 0.1\n")
    edit(folders[1] / "metrics.json", **metrics_of({**AP, "refined_student": 27.3}, seed=1))
    page = page_of(tmp_path, *folders)
    assert "2 runs compared 1 configuration" in page.text
    assert "Refined student first 25.3 48.1 97.7 k 56 s <second> 27.3 51.9 97.7 k 56 s" in page.text
    assert "Mean of 2 runs 26.3 ± 1.4 50.0 ± 2.7" in page.text
    assert "Setting first <second> seed 0 1" in page.text
    assert page.text.count("Distillation helped:") == 2
    assert "Supervised teacher first 2 1.0 50% 0.85 0.50 0.25 0.50 " in page.text
    assert "disc 0.60, ring 0.70" in page.text
    charts = page.attributes("svg")
    assert len(charts) == 2 * 7 and "AP of zero_shot_teacher on unseen" in str(charts[1]["aria-label"])
    lines = [path for path in page.attributes("path") if (path["class"] or "").startswith("line run")]
    assert len(lines) == 2 * 2 * 7 and {line["class"] for line in lines} == {"line run0"}  # one group, one colour
    assert {name for name, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "base", "a"} == set()


def test_one_folder_rewrites_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "The 2 worst validation images" in page.text
    # The disc matches at IoU 100 / 126, the ring at 1, and two are false: (100 / 126 + 1) / (2 + 1).
    assert "scene 1.png Quality 0.60: 0 of 2 objects missed, 2 false, 0 poorly outlined" in page.text
    assert "scene 2.png Quality 0.00: 2 of 2 objects missed, 0 false, 0 poorly outlined" in page.text
    assert page.text.index("scene 2.png Quality") < page.text.index("scene 1.png Quality")


def test_the_page_goes_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [str(a_run(tmp_path / name)) for name in "ab"]
    monkeypatch.chdir(tmp_path)
    assert main(runs) == 0
    assert (tmp_path / "comparison.html").exists()


def test_bad_input_gets_one_line_with_the_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other, empty = a_run(tmp_path / "run"), a_run(tmp_path / "other"), tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "file"
    file.write_text("")

    def said(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        return err.removeprefix("error: ").strip()

    gone = tmp_path / "gone"
    assert said(gone) == f"{gone}: no such folder; give the folder of a run, the --output of sskd_fast.run"
    assert said(run, file).startswith(f"{file}: is a file; give the folder of a run")
    assert said(empty) == (
        f"{empty}: no metrics.json, so no model of this run has been measured yet; finish a stage with "
        f"python -m sskd_fast.run --output {empty} --resume"
    )
    assert said(run, run) == f"{run}: the folder is given twice; give each run once"
    assert said(run, "--output", "x.html").startswith("--output needs several runs; leave it out")
    assert said(run, other, "--output", empty).startswith(f"--output {empty}: is a folder; give the name of a file")
    (other / "metrics.json").write_text("{")
    assert "other/metrics.json: not readable as JSON" in said(run, other) and "run the stage" in said(other)
    (other / "metrics.json").write_text("[]")
    assert "other/metrics.json: found a JSON list, expected a dict; remove it" in said(other)
    edit_text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text("a: [")
    assert "run/config.yaml: not readable as YAML" in said(run) and "restore the file" in said(run)
    (run / "config.yaml").write_text("- a")
    assert said(run).endswith("run/config.yaml: found a list, expected settings; restore the file")
    (run / "config.yaml").write_text(edit_text)
    (run / "predictions").mkdir()
    (run / "predictions" / "refined_student.json").write_text(json.dumps([RESULTS[0] | {"image_id": 9}]))
    assert said(run) == (
        f"{run}/predictions/refined_student.json: a result is on image 9, not among the 2 images of the ground truth; "
        "run the stage that writes it again"
    )


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "python -m sskd_fast.report runs/a runs/b runs/c --output abc.html" in capsys.readouterr().out
