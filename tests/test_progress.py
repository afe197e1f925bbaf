"""The log of a run in training, and its warnings."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sskd_fast.losses.objective import ObjectiveOutput
from sskd_fast.train.progress import Log, Progress


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path)
    yield log
    log.close()


def lines(log: Log) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.path.read_text(encoding="utf-8").splitlines()]


def warnings(log: Log) -> list[str]:
    return [line["message"] for line in lines(log) if line.get("event") == "warning"] if log.path.exists() else []


def output(loss: float, **parts: float) -> ObjectiveOutput:
    return ObjectiveOutput(torch.tensor(loss, requires_grad=True), {n: torch.tensor(v) for n, v in parts.items()})


def follow(progress: Progress, outputs: list[ObjectiveOutput], start: int = 0, total: int | None = None) -> None:
    progress.begin(start, total or start + len(outputs))
    for step, out in enumerate(outputs, start):
        progress.step(step, out, torch.tensor(0.5), 1e-3 * (step + 1), {"data": 0.25, "forward": 0.5})
    progress.end()


def test_every_few_steps_a_line_of_means(log: Log) -> None:
    progress = Progress(log, "adapted_teacher", "stage 2", 2, {})
    follow(progress, [output(float(i), sup_class=2.0 * i, fnr=math.nan if i == 1 else 0.1) for i in range(5)])
    records = lines(log)
    assert [r["step"] for r in records] == [2, 4, 5]
    assert all(r["stage"] == "adapted_teacher" and r["steps"] == 5 for r in records)
    assert [r["loss"] for r in records] == [0.5, 2.5, 4.0]
    assert [r["sup_class"] for r in records] == [1.0, 5.0, 8.0]
    assert [r["fnr"] for r in records] == pytest.approx([0.1, 0.1, 0.1])
    assert [r["lr"] for r in records] == pytest.approx([2e-3, 4e-3, 5e-3])
    assert all(r["grad_norm"] == 0.5 and r["seconds_data"] == 0.25 and r["seconds_forward"] == 0.5 for r in records)
    assert 0 < records[0]["seconds"] < records[-1]["seconds"]


def test_a_resumed_stage_goes_on_counting(log: Log) -> None:
    follow(Progress(log, "s", "s", 2, {}), [output(1.0)] * 3, start=3, total=6)
    assert [(r["step"], r["steps"]) for r in lines(log)] == [(4, 6), (6, 6)]


def test_ap_of_a_fold_model_is_an_event_of_its_own(log: Log) -> None:
    progress = Progress(log, "s", "s", 10, {}, fold=2)
    progress.begin(0, 10)
    progress.measured(4, {"ap": 12.5, "ap50": 30.0})
    progress.end()
    assert lines(log) == [{"stage": "s", "fold": 2, "step": 5, "event": "eval", "ap": 12.5, "ap50": 30.0}]


def test_measuring_does_not_count_as_training_time(log: Log) -> None:
    progress = Progress(log, "s", "s", 1, {})
    progress.begin(0, 2)
    with progress.paused():
        first = torch.rand(400, 400)
        for _ in range(50):
            first = (first @ first).clamp(0, 1)
    before = progress.cost.seconds
    progress.step(0, output(1.0), torch.tensor(0.0), 0.1, {})
    progress.end()
    assert progress.cost.seconds - before < 0.02


def test_the_log_stays_json_with_numbers_that_are_not_finite(log: Log) -> None:
    log.write({"stage": "s", "step": 1, "a": math.nan, "b": math.inf, "c": 1.0})
    text = log.path.read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert lines(log) == [{"stage": "s", "step": 1, "a": None, "b": None, "c": 1.0}]


def test_tensorboard_gets_the_numbers(log: Log, tmp_path: Path) -> None:
    follow(Progress(log, "s", "s", 1, {}), [output(1.0)])
    log.close()
    events = list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1
    assert b"s/loss" in events[0].read_bytes()


def test_without_tensorboard_a_run_is_logged_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    log = Log(tmp_path)
    said = "no TensorBoard files are written, since tensorboard is missing: pip install tensorboard\n"
    assert capsys.readouterr().err == said
    follow(Progress(log, "s", "s", 1, {}), [output(1.0)])
    log.close()
    assert len(lines(log)) == 1 and [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_part_that_dwarfs_another_is_named_once(log: Log) -> None:
    progress = Progress(log, "s", "s", 2, {"sup_mask": 5.0, "pxl": 0.1, "sup_dice": 5.0})
    follow(progress, [output(1.0, sup_mask=9.0, pxl=1.0, sup_dice=2.0)] * 8)
    messages = warnings(log)
    assert messages == ["sup_mask weighs 450 times pxl: the smaller one hardly trains; change its weight"]


def test_parts_within_a_hundred_times_of_each_other_are_fine(log: Log) -> None:
    progress = Progress(log, "s", "s", 2, {"sup_mask": 5.0, "pxl": 0.1})
    follow(progress, [output(1.0, sup_mask=1.0, pxl=1.0, sup_dice=1e6)] * 8)
    assert warnings(log) == []


def test_the_first_steps_do_not_count(log: Log) -> None:
    progress = Progress(log, "s", "s", 2, {"sup_mask": 5.0, "pxl": 0.1})
    even, uneven = output(1.0, sup_mask=1.0, pxl=1.0), output(1.0, sup_mask=900.0, pxl=1.0)
    follow(progress, [uneven, uneven, even, even, even, even])
    assert warnings(log) == []


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_stage_and_is_logged(log: Log, loss: float) -> None:
    progress = Progress(log, "refined_student", "s", 5, {})
    with pytest.raises(FloatingPointError, match=rf"refined_student: the loss is {loss} at step 2; lower train\.lr"):
        follow(progress, [output(1.0), output(1.0), output(loss), output(1.0)])
    progress.end()
    assert warnings(log) == [f"the loss is {loss} at step 2: lower train.lr or raise train.warmup"]
    assert lines(log)[0]["step"] == 3 and lines(log)[0]["stage"] == "refined_student"


def test_instances_without_a_query_are_named(log: Log) -> None:
    follow(Progress(log, "s", "s", 2, {}), [output(1.0, sup_matched=0.0)] * 6)
    messages = warnings(log)
    assert len(messages) == 1
    assert "no instance is matched to a query" in messages[0] and "num_queries" in messages[0]


def test_some_matched_instances_are_enough(log: Log) -> None:
    follow(Progress(log, "s", "s", 2, {}), [output(1.0, sup_matched=m) for m in (0.0, 1.0, 0.5, 0.0)])
    assert warnings(log) == []


def test_messages_are_printed_above_the_live_line(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    log.say("stage 1 of 6: done")
    follow(Progress(log, "s", "my title", 1, {}), [output(1.0, sup_matched=0.0)] * 2)
    printed = capsys.readouterr()
    assert "stage 1 of 6: done\n" in printed.err and "my title" in printed.err
    assert "warning (s): no instance is matched" in printed.err
    assert printed.out == ""


def test_step_holds_no_graph(log: Log) -> None:
    """Nothing that is kept for the means may keep the step's graph alive."""
    progress = Progress(log, "s", "s", 100, {})
    progress.begin(0, 100)
    x = torch.ones(3, requires_grad=True)
    loss: Tensor = (x * 2).sum()
    progress.step(0, ObjectiveOutput(loss, {"sup_class": loss * 1}), torch.tensor(1.0), 0.1, {})
    progress.end()
    assert all(isinstance(value, float) for value in progress._sums.values())
