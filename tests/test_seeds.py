"""Several seeds of one run: arguments, the summary of their folders, and the command from end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_folders import AP, RESULTS, Page, make_run, metrics_of, old_row, result

from sskd_fast.evaluation import compare_masks
from sskd_fast.files import write_text
from sskd_fast.method import words_of
from sskd_fast.report.__main__ import main as report
from sskd_fast.report.numbers import difference_text
from sskd_fast.report.summary import summary_pairs, write_summary
from sskd_fast.run.__main__ import main

REFINED, BEST = "refined_student", "supervised_student"
GOOD = [result(image, category, *where, 0.9) for image in (1, 2) for category, where in ((1, (12, 12)), (2, (30, 40)))]


def seeds_in(folder: Path, aps: list[float], **facts: Any) -> Path:
    """Run folders of seeds 0, 1, ... with these AP of the refined student, which predicts the ground truth."""
    for seed, ap in enumerate(aps):
        run = make_run(folder / f"seed-{seed}")
        (run / "config.yaml").write_text(f"seed: {seed}\nlr: 0.1\noutput: {run}\n")
        (run / "metrics.json").write_text(json.dumps(metrics_of({**AP, REFINED: ap}, seed=seed, **facts)))
        (run / "predictions" / f"{REFINED}.json").write_text(json.dumps(GOOD))
    return folder


def test_the_summary_has_mean_spread_and_every_seed(tmp_path: Path) -> None:
    folder = seeds_in(tmp_path, [24.0, 26.0, 31.0])
    summary = write_summary(folder, [0, 1, 2])
    assert summary == json.loads((folder / "summary.json").read_text())
    rows = {row["name"]: row for row in summary["rows"]}
    assert list(rows) == list(AP) and rows[REFINED]["ap"] == {"mean": 27.0, "sd": 3.606, "by_seed": [24.0, 26.0, 31.0]}
    assert rows[BEST]["ap"]["sd"] == 0 and rows[REFINED]["steps"]["mean"] == 100
    assert summary["same_images"] is True and summary["notes"] == []
    gains = {(gain["against"], gain["stride"]): gain for gain in summary["gains"]}
    teacher, in_views = "adapted_teacher", [f"{name}_views" for name in (BEST, "matched_student", "adapted_teacher")]
    refining = ("distilled_student_views", None)
    assert [key for key in gains] == [
        (BEST, None), ("matched_student", None), (teacher, None), (teacher, 4.0), ("zero_shot_teacher", None),
        ("zero_shot_teacher", 4.0), ("distilled_student", None), ("supervised_teacher", None),
        *((row, None) for row in in_views), (in_views[-1], 4.0), refining, ("supervised_teacher_views", None),
    ]  # fmt: skip
    models = [REFINED] * 7 + [teacher] + [f"{REFINED}_views"] * 5 + [f"{teacher}_views"]
    assert [gain["model"] for gain in summary["gains"]] == models
    run = folder / "seed-0"
    alone = compare_masks(json.loads((run / "ground_truth.json").read_text()), GOOD, RESULTS)
    found = gains[BEST, None]
    assert found["by_seed"] == [pytest.approx(alone.ap, abs=1e-3)] * 3 and found["sd"] == 0
    assert (found["low"], found["high"]) == pytest.approx((alone.low, alone.high), abs=1e-3)


def test_a_student_meets_the_teacher_that_there_is_in_equal_views() -> None:
    plain = ["supervised_teacher", BEST, "distilled_student"]
    in_views = [f"{name}_views" for name in plain]
    assert summary_pairs([*plain, *in_views]) == [
        ("distilled_student", BEST), ("distilled_student", "supervised_teacher"),
        ("distilled_student_views", f"{BEST}_views"), ("distilled_student_views", "supervised_teacher_views"),
    ]  # fmt: skip
    assert summary_pairs([*plain, in_views[0]]) == [
        ("distilled_student", BEST), ("distilled_student", "supervised_teacher_views"),
    ]  # fmt: skip


def test_the_summary_in_words_and_tables(tmp_path: Path) -> None:
    folder = seeds_in(tmp_path, [24.0, 26.0])
    write_summary(folder, [0, 1])
    text = (folder / "summary.md").read_text()
    assert text.startswith(
        "# shapes: seeds 0, 1\n\nThe refined student reaches 25.0 ± 1.4 AP over 2 seeds, trained on 200"
    )
    assert "(the same images for all seeds)" in text
    assert (
        "| model | AP | seed 0 | seed 1 | AP50 | parameters | training | CPU time | labelling | steps | images" in text
    )
    assert (
        "| Refined student | 25.0 ± 1.4 | 24.0 | 26.0 | 47.5 ± 2.7 | 97.7 k | 56 s | 100 s | 0 s | 100 | 800 |" in text
    )
    assert "| refined student, as the teacher labels - adapted teacher, as it labels at stride 4 |" in text
    same = "0.0 AP (0.0 to 0.0; t 0.0 to 0.0; no difference shown)"
    assert f" The adapted teacher: {same} against the supervised teacher. The refined student, as the teacher" in text
    assert "against the supervised teacher;" not in text and "| adapted teacher - supervised teacher |" in text
    page = Page((folder / "summary.html").read_text())
    assert "Refined student 25.0 ± 1.4 24.0 26.0" in page.text and "Differences" in page.text
    assert (
        f"<p>The adapted teacher: {same} against the supervised teacher.</p>" in (folder / "summary.html").read_text()
    )
    assert {name for name, _ in page.elements} & {"script", "link", "a"} == set()


def test_the_summary_says_what_it_cannot_show(tmp_path: Path) -> None:
    folder = seeds_in(tmp_path, [24.0, 26.0])
    (folder / "seed-1" / "config.yaml").write_text("seed: 1\nlr: 0.2\n")
    truth = json.loads((folder / "seed-1" / "ground_truth.json").read_text())
    truth["images"][0]["file_name"] = "another.png"
    (folder / "seed-1" / "ground_truth.json").write_text(json.dumps(truth))
    summary = write_summary(folder, [0, 1])
    assert summary["notes"] == ["The seeds differ in more than the seed: lr."] and not summary["same_images"]
    old = metrics_of({}) | {"rows": [old_row(name, AP[name]) for name in (BEST, REFINED)]}
    for seed in (0, 1):
        (folder / f"seed-{seed}" / "metrics.json").write_text(json.dumps(old))
    summary = write_summary(folder, [0])
    assert summary["notes"] == ["This is one seed: the interval is over images alone."]
    assert [(gain["against"], gain["stride"]) for gain in summary["gains"]] == [(BEST, None)]
    assert "| model | AP | seed 0 | AP50 | parameters | training |\n" in (folder / "summary.md").read_text()
    (folder / "seed-0" / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"seed-0/metrics\.json: no measured model; resume with --seeds and --resume"):
        write_summary(folder, [0])


def test_without_ground_truth_there_are_no_gains_and_splits_tell_the_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = seeds_in(tmp_path, [24.0, 26.0])
    for seed in (0, 1):
        (folder / f"seed-{seed}" / "ground_truth.json").unlink()
        write_text(folder / f"seed-{seed}" / "splits" / "val.txt", "1\n2\n")
    summary = write_summary(folder, [0, 1])
    assert summary["gains"] == [] and summary["same_images"] is True
    words = "No gains yet: every seed needs a measured student and a measured model to compare it with."
    text = (folder / "summary.md").read_text()
    assert f"# shapes: seeds 0, 1\n\n{words}\n\n| model | AP |" in text and "| difference |" not in text
    page = Page((folder / "summary.html").read_text())
    assert words in page.text and "Differences" not in page.text
    assert report([str(folder)]) == 0
    said = capsys.readouterr().out
    assert words in said and "Refined student" in said and "over seeds and images" not in said
    write_text(folder / "seed-1" / "splits" / "val.txt", "1\n3\n")
    assert write_summary(folder, [0, 1])["same_images"] is False


def test_gains_that_the_images_show_and_the_seeds_alone_do_not_are_called_so(tmp_path: Path) -> None:
    folder = seeds_in(tmp_path, [24.0, 26.0])
    (folder / "seed-1" / "predictions" / f"{REFINED}.json").write_text(json.dumps(GOOD[:3]))
    gain = write_summary(folder, [0, 1])["gains"][0]
    assert gain["low"] > 0 and gain["t_low"] < 0 < gain["t_high"]
    t = f"t {difference_text(gain['t_low'])} to {difference_text(gain['t_high'])}"
    assert f"; {t}; not shown by the seeds alone) against the {words_of(BEST)};" in (folder / "summary.md").read_text()


def test_report_rewrites_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = seeds_in(tmp_path / "three", [24.0, 26.0])
    write_summary(folder, [0, 1])
    (folder / "summary.html").unlink()
    assert report([str(folder)]) == 0
    said = capsys.readouterr().out
    assert "Refined student" in said and said.endswith(f"\n{folder / 'summary.html'}\n")
    assert (folder / "summary.html").exists()
    other = shutil.copytree(folder / "seed-0", tmp_path / "other")
    assert report([str(folder), str(other)]) == 2
    assert f"{folder}: holds several seeds; give it alone, or give its folders three/seed-N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "0,1", "--seed", "2"], "--seeds: does not go with --seed; leave one of them out"),
        (["--seeds", "0,1", "seed=2"], "--seeds: does not go with --seed; leave one of them out"),
        (["--seeds", "0,1", "--dry-run"], "--seeds: does not go with --dry-run"),
        (["--seeds", "0,1", "--stage", "pretrain"], "--seeds: does not go with --stage pretrain"),
        (["--seeds", "0,1", "train.lr=fast"], "train.lr: found 'fast', expected float"),
        (
            ["--seeds", "3,1", "teacher_weights=nowhere.safetensors"],
            f"error: seed 3: teacher_weights: {Path('nowhere.safetensors').resolve()} does not exist",
        ),
    ],
)
def test_errors_name_the_argument_or_the_seed(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["data.embedded_labeled=8", "data.embedded_unlabeled=4", "data.embedded_val=4"]
    assert main(["--output", str(tmp_path / "run"), *arguments, *tiny]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "run" / "summary.json").exists()


def test_seeds_are_different_numbers_in_a_folder_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("1,1", "1,x", "-1", ""):
        with pytest.raises(SystemExit):
            main([f"--seeds={text}"])
        assert f"found {text!r}, expected different whole numbers from 0 up, such as 0,1,2" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert main(["--seeds", "0,1", "--output", str(tmp_path)]) == 2
    assert f"--seeds: {tmp_path} holds a run itself" in capsys.readouterr().err


@pytest.mark.slow
def test_each_of_two_seeds_gives_the_same_run_as_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "two"
    settings = [
        "--preset", "smoke", "--max-steps", "3", "data.embedded_labeled=8", "data.embedded_unlabeled=8",
        "data.embedded_val=6", "train.threads=1",
    ]  # fmt: skip
    assert main(["--seeds", "4,7", "--output", str(folder), *settings]) == 0
    said = capsys.readouterr()
    assert "seed 4 (1 of 2)" in said.err and str(folder / "summary.html") in said.out
    assert main(["--seed", "7", "--output", str(tmp_path / "alone"), *settings]) == 0

    def figures(run: Path) -> list[tuple[float, float]]:
        return [(row["ap"], row["ap50"]) for row in json.loads((run / "metrics.json").read_text())["rows"]]

    assert figures(folder / "seed-7") == figures(tmp_path / "alone") != figures(folder / "seed-4")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seeds"] == [4, 7] and not summary["same_images"]
    capsys.readouterr()
    assert main(["--seeds", "4,7", "--output", str(folder), "--resume", *settings]) == 0
    kept = capsys.readouterr().err
    assert "seed 4 (1 of 2) is finished, kept" in kept and "seed 7 (2 of 2) is finished, kept" in kept
    assert json.loads((folder / "summary.json").read_text()) == summary
