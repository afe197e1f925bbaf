"""The comparison of students on labelled images: AP against minutes, resumable, without validation images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import students
from sskd_fast.yaml_settings import dump_yaml, load_config

TINY = ["student_weights=''", "data.embedded_labeled=6", "data.embedded_unlabeled=4", "data.embedded_val=4"]


def test_students_are_compared_on_folds_of_the_labelled_images(tmp_path, monkeypatch, capsys) -> None:
    rows = {"narrow": ("student.width=16", "student.heads=1"), "dense": ("student.kind=dense", "student.width=16")}
    monkeypatch.setattr(students, "STUDENTS", rows)
    config, output = tmp_path / "config.yaml", tmp_path / "students"
    config.write_text(dump_yaml(load_config([], TINY, "smoke")))
    call = [str(config), "--output", str(output), "--steps", "2,1"]
    students.main([*call, "--students", "narrow; dense"])
    shown = capsys.readouterr().out
    header, _, narrow, dense = shown.splitlines()
    assert header == "| student | parameters | 1 steps: AP, CPU minutes | 2 steps: AP, CPU minutes |"
    assert narrow.startswith("| narrow | 0.0") and dense.startswith("| dense | 0.12 M | ")
    assert shown == (output / "students.md").read_text()
    journal = output / "narrow.jsonl"
    _, *records = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [(r["steps"], r["fold"]) for r in records] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert all(r["cpu_seconds"] > 0 and 0 <= r["ap"] <= 100 for r in records)
    assert not list((output / "checkpoints").rglob("*.pt"))
    written = {path: path.read_bytes() for path in output.glob("*.jsonl")}
    students.main(call)
    assert capsys.readouterr().out == shown
    assert {path: path.read_bytes() for path in output.glob("*.jsonl")} == written


def test_an_unknown_student_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        students.main(["config.yaml", "--output", str(tmp_path), "--students", "big"])
    assert "--students: found 'big', expected some of set prediction, whole backbone; " in capsys.readouterr().err
