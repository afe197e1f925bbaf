"""FLOPs of the paper's student by part, and of the fast student, as docs/paper.md states them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.models import table
from benchmarks.student_flops import CROP, by_part, rows
from sskd_fast.run.dry_run import model_cost
from sskd_fast.settings import check_settings
from sskd_fast.yaml_settings import load_config

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "paper.md").read_text(encoding="utf-8")


def test_the_encoders_share_is_that_of_its_formula_and_the_page_has_all_shares() -> None:
    pytest.importorskip("timm")
    parts = by_part(load_config([], [], "paper"), CROP)
    width, layers, patches = 384, 12, 37 * 74
    tokens = patches + 1
    assert parts["encoder: products of attention"] == layers * 4 * tokens**2 * width
    dense = layers * 24 * tokens * width**2 + 2 * patches * 3 * 14**2 * width
    assert parts["encoder"] == parts["encoder: products of attention"] + dense
    assert parts["DPT head: its finest level"] < parts["DPT head"] and parts["mask decoder"] > 0
    for row in rows():
        assert f"| {' | '.join(row)} |" in PAGE, row
    whole = sum(flops for name, flops in parts.items() if ":" not in name)
    assert f"| **the preset, on a crop of 512 x 1024** | {whole / 1e9:.0f} |" in PAGE


def test_the_fast_student_costs_what_the_page_says() -> None:
    pytest.importorskip("timm")
    config = load_config([], [], "fast")
    check_settings(config)
    assert config.student.tile == config.teacher.tile == (0, 0) and config.views.fit and config.predict.fit
    cost = model_cost(config, "student", config.views.sides)
    row = f"| of `--preset fast` | 384 x 384 | {cost['flops'] / 1e9:.0f} | {cost['params'] / 1e6:.1f} |"
    assert row in PAGE


def test_one_model_has_a_table_without_a_comparison() -> None:
    student = {"params": 26_800_000, "flops": 70_000_000_000, "seconds": 1.0, "fastest": 0.5, "slowest": 2.0}
    assert table({"student": student}).splitlines() == [
        "|  | student |",
        "|---|---|",
        "| parameters, M | 26.8 |",
        "| GFLOPs | 70 |",
        "| CPU seconds | 1.00 (0.50 to 2.00) |",
    ]
    both = table({"student": student, "teacher": student | {"params": 268_000_000, "seconds": 3.0}}).splitlines()
    assert both[0] == "|  | student | teacher |  |" and both[2].endswith("| 268.0 | 10.0 times |")
    assert both[4].endswith("| 3.0 times |")
