"""AP on labelled images against minutes, for several students: `python -m benchmarks.students CONFIG --output DIR`.

Each student is trained on the labelled images without one fold and tested on that fold. This is repeated for every
number of steps, each with its own full schedule. Validation images are not used, so this table may guide the choice of
a student. CONFIG is a run's config.yaml, which names the labelled images. Run the same command to resume.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from sskd_fast import _process  # isort: split

import torch

from sskd_fast.journal import Journal
from sskd_fast.method import BASELINE, STAGE
from sskd_fast.run.checks import device_of
from sskd_fast.run.folds import mask_ap, without_fold
from sskd_fast.run.models import RunModels
from sskd_fast.run.results import RunResults
from sskd_fast.run.sources import kept_folds, target_sources
from sskd_fast.run.training import Run, stage_training, train_model, training_state
from sskd_fast.train.progress import Log
from sskd_fast.yaml_settings import load_config

FULL = "student.backbone_levels=0"
# Students for photographs, as overrides of the run's settings.
STUDENTS = {
    "set prediction, whole backbone": (FULL, "student.kind=mask_transformer", "student.mask_width=32"),
    "dense, 2 levels, width 24": ("student.backbone_levels=2", "student.width=24"),
    "dense, 3 levels, width 48": ("student.backbone_levels=3", "student.width=48"),
    "dense, 4 levels, width 64": (),
    "dense, whole backbone, width 64": (FULL,),
    "dense, 4 levels, pasted instances": ("views.paste=0.5",),
    "dense, 4 levels, 192 px": ("views.size=192",),
}


@dataclass(frozen=True)
class Point:
    """A student after some steps: mean AP on the folds, mean CPU seconds of a training, and parameters."""

    student: str
    steps: int
    ap: float
    cpu_seconds: float
    params: int


def measured(settings: Path, output: Path, student: str, steps: Sequence[int], count: int) -> Iterator[Point]:
    """The points of a student in the order of `steps`, as means over `count` folds; settings: a YAML file."""
    overrides = STUDENTS[student]
    config = load_config([settings], [*overrides, f"output={output}"])
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    sources, log = target_sources(config, output), Log(output)
    current = Run(RunModels(config, sources, RunResults(output, {}), device_of(config)), log, resume=True)
    folds = kept_folds(config, sources.labeled, output / "splits", count)
    if not folds:
        raise SystemExit(f"{settings}: found one labelled image or group, expected two or more to make folds")
    with closing(log), Journal(output / f"{key_of(student)}.jsonl", " ".join(overrides)) as journal:
        for number in steps:
            rows = [_on_fold(current, student, number, fold, n, journal) for n, fold in enumerate(folds, 1)]
            ap, seconds = (fmean(row[name] for row in rows) for name in ("ap", "cpu_seconds"))
            yield Point(student, number, ap, seconds, rows[0]["params"])


def key_of(student: str) -> str:
    """A student's name as part of a file name."""
    return "".join(c if c.isalnum() else "_" for c in student)


def _on_fold(run: Run, student: str, steps: int, fold: Sequence[int], number: int, journal: Journal) -> dict[str, Any]:
    """The figures of a student trained without a fold and measured on it; read from the journal if already there."""
    key = {"steps": steps, "fold": number}
    for record in journal.records:
        if key.items() <= record.items():
            return record
    whole = stage_training(run.models, STAGE[BASELINE])
    part = without_fold(whole, fold, number, budget=replace(whole.budget, steps=steps))
    state = training_state(run, part, f"students_{key_of(student)}_{steps}_{number}")
    model, cost = train_model(run, part, f"{student}, {steps} steps, fold {number}", state)
    found = mask_ap(run.models, run.models.sources.labeled.subset(fold))(model)
    params = sum(parameter.numel() for parameter in model.parameters())
    record = key | found | {"cpu_seconds": cost.cpu_seconds, "params": params}
    journal.append([record])
    state.clear()
    return record


def table(points: Sequence[Point]) -> str:
    """The points as a Markdown table, one line for each student."""
    steps = sorted({point.steps for point in points})
    lines = ["| student | parameters | " + " | ".join(f"{n} steps: AP, CPU minutes" for n in steps) + " |"]
    lines.append("|---" * (2 + len(steps)) + "|")
    for student in dict.fromkeys(point.student for point in points):
        own = {point.steps: point for point in points if point.student == student}
        cells = [f"{own[n].ap:.1f}, {own[n].cpu_seconds / 60:.1f}" if n in own else "" for n in steps]
        params = next(iter(own.values())).params
        lines.append(f"| {student} | {params / 1e6:.2f} M | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the students, and writes OUTPUT/students.md after each point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.students", description=__doc__)
    parser.add_argument("config", type=Path, help="config.yaml of a run")
    parser.add_argument("--output", type=Path, required=True, help="folder for the measurements")
    parser.add_argument("--steps", default="100,200,400", help="numbers of steps, separated by commas (100,200,400)")
    parser.add_argument("--folds", type=int, default=2, help="how many (2)")
    parser.add_argument("--students", default=";".join(STUDENTS), help="names separated by semicolons (default: all)")
    arguments = parser.parse_args(argv)
    students = [name.strip() for name in arguments.students.split(";")]
    if unknown := [name for name in students if name not in STUDENTS]:
        parser.error(f"--students: found {unknown[0]!r}, expected some of {'; '.join(STUDENTS)}")
    steps = sorted(int(number) for number in arguments.steps.split(","))
    _process.keep_freed_memory()
    arguments.output.mkdir(parents=True, exist_ok=True)
    points: list[Point] = []
    for student in students:
        for point in measured(arguments.config, arguments.output, student, steps, arguments.folds):
            points.append(point)
            (arguments.output / "students.md").write_text(table(points), encoding="utf-8")
    print(table(points), end="")


if __name__ == "__main__":
    main()
