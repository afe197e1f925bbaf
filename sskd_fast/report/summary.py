"""Summary of several seeds of one run: mean, spread and every seed's figures, and gains over seeds and images."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sskd_fast.evaluation import gain_over_seeds
from sskd_fast.evaluation.mask_resolution import Zoom
from sskd_fast.evaluation.pairs import Pair, compared_pairs, drawn_pairs
from sskd_fast.files import finite, write_json, write_text
from sskd_fast.method import ADAPTATION, BASELINES, FINAL_STUDENTS, ROW_ORDER
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.report.comparison import compared_runs, different_settings, validation_digest
from sskd_fast.report.numbers import is_number
from sskd_fast.report.run_folder import RunFolder, read_run
from sskd_fast.report.summary_pages import markdown, page
from sskd_fast.report.table import measured_rows, row_title
from sskd_fast.report.verdict import TEACHERS

# Figures of a row that get a mean and a spread.
FIGURES = (
    "ap", "ap50", "seconds", "cpu_seconds", "label_seconds", "steps", "labeled_seen", "unlabeled_seen",
)  # fmt: skip
FACTS = ("dataset", "labeled_images", "unlabeled_images", "val_images", "true_labels")


def seed_folder(folder: Path, seed: int) -> Path:
    """The run folder of one seed, below the folder that holds all seeds."""
    return folder / f"seed-{seed}"


def write_summary(folder: Path, seeds: Sequence[int] | None = None, unit: str = "seed") -> dict[str, Any]:
    """Writes summary.json, summary.md and summary.html from the seeds' run folders; returns the first's content.

    seeds: if None, the seeds in summary.json, and its unit.  unit: what a seed is called, "fold" if each is a part of
    a cross-validation.  Raises ValueError, naming the file, if a file cannot be read or a seed has no measured model.
    """
    if seeds is None:
        known = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        seeds, unit = known["seeds"], known.get("unit", unit)
    runs = {seed: read_run(seed_folder(folder, seed)) for seed in seeds}
    for run in runs.values():
        if not measured_rows(run.metrics):
            raise ValueError(f"{run.path / 'metrics.json'}: no measured model; resume with --seeds and --resume")
    summary: dict[str, Any] = finite(summarize(runs, unit))
    write_json(folder / "summary.json", summary)
    write_text(folder / "summary.md", markdown(summary))
    write_text(folder / "summary.html", page(summary))
    return summary


def summarize(runs: Mapping[int, RunFolder], unit: str = "seed") -> dict[str, Any]:
    """The content of summary.json; runs: seed -> its folder.  unit: what a seed is called.

    "rows": for each measured row "name", "title", "params" and FIGURES, each {"mean", "sd", "by_seed"}; sd is the
    sample standard deviation, null for one seed.  "gains": for each pair that all seeds have, "model", "against",
    "stride" (null: masks as predicted) and the fields of `SeedGain`.  "same_images": true if the seeds share their
    validation images.  "notes": reasons to doubt the figures.
    """
    compared = compared_runs(list(runs.values()))
    same_images = len({validation_digest(run) for run in compared}) == 1
    rows = {seed: measured_rows(run.metrics) for seed, run in runs.items()}
    names = [name for name in dict.fromkeys([*ROW_ORDER, *(n for r in rows.values() for n in r)])]
    first = next(iter(runs.values())).metrics
    return {
        "seeds": list(runs),
        "unit": unit,
        **{key: first[key] for key in FACTS if key in first},
        "same_images": same_images,
        "notes": _notes(runs, different_settings(compared), unit),
        "rows": [_row(name, rows) for name in names if any(name in of_seed for of_seed in rows.values())],
        "gains": _gains(runs, same_images),
    }


def _notes(runs: Mapping[int, RunFolder], different: Mapping[str, Sequence[str]], unit: str) -> list[str]:
    own = {"seed", "data.labeled", "data.val"} if unit == "fold" else {"seed"}
    names = [key for key in different if key not in own]
    notes = [f"The {unit}s differ in more than the {unit}: {', '.join(names)}."] if names else []
    if len(runs) == 1:
        notes.append(f"This is one {unit}: the interval is over images alone.")
    return notes


def _row(name: str, rows: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    found = [of_seed.get(name, {}) for of_seed in rows.values()]
    measured = next(row for row in found if row)
    figures = {
        key: spread([row.get(key) for row in found]) for key in FIGURES if any(is_number(row.get(key)) for row in found)
    }
    return {"name": name, "title": row_title(name, measured), "params": measured.get("params")} | figures


def spread(by_seed: Sequence[Any]) -> dict[str, Any]:
    """Mean and sample standard deviation (n - 1) of the known values; None if there are too few."""
    known = [float(value) for value in by_seed if is_number(value)]
    mean, sd = statistics.mean(known) if known else None, statistics.stdev(known) if len(known) > 1 else None
    return {"mean": mean, "sd": sd, "by_seed": list(by_seed)}


def summary_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of rows to compare, among the rows that all seeds have.

    The final student meets both supervised students, its teacher, the zero-shot teacher and itself before refinement.
    The adapted teacher meets the supervised one.  These pairs, without the zero-shot teacher, are compared in the views
    in which the teacher labels, too.  If the student was not measured in them, it meets the teacher as it labels.
    """
    student = next((name for name in FINAL_STUDENTS if name in names), None)
    teacher = next((name for name in TEACHERS if name in names), None)
    others = list(dict.fromkeys([*reversed(BASELINES), teacher, "zero_shot_teacher", *FINAL_STUDENTS]))
    if f"{student}_views" in names and teacher is not None:
        others[others.index(teacher)] = teacher.removesuffix("_views")
    pairs = [(student, other) for other in others if student and other and other != student]
    alike = [*((student, other) for other in others if other not in (student, "zero_shot_teacher")), ADAPTATION]
    pairs += [ADAPTATION, *((f"{model}_views", f"{other}_views") for model, other in alike)]
    return [pair for pair in pairs if set(pair) <= set(names)]


def _gains(runs: Mapping[int, RunFolder], same_images: bool) -> list[dict[str, Any]]:
    everywhere = [
        name
        for name in ROW_ORDER
        if all(name in measured_rows(r.metrics) and name in r.predictions and r.ground_truth for r in runs.values())
    ]
    if not everywhere:
        return []
    strides = {name: _row_stride(runs, name) for name in everywhere}
    pairs = compared_pairs(strides, summary_pairs(everywhere))
    drawn = [_drawn(run, strides, pairs) for run in runs.values()]
    gains = []
    for number, (model, against, stride) in enumerate(pairs):
        differences = [of_seed[number][0] - of_seed[number][1] for of_seed in drawn]
        gain = dataclasses.asdict(gain_over_seeds(differences, same_images=same_images))
        gains.append({"model": model, "against": against, "stride": stride} | gain)
    return gains


def _row_stride(runs: Mapping[int, RunFolder], name: str) -> float | None:
    """The stride of a row's masks; None if it is unknown or differs between seeds."""
    strides = {measured_rows(run.metrics)[name].get("stride") for run in runs.values()}
    return strides.pop() if len(strides) == 1 else None


def _zoom(run: RunFolder) -> Zoom:
    """The scale at which a run's models see images."""
    zoom, fit = float(run.metrics.get("zoom", 1.0)), run.metrics.get("fit")
    return zoom if fit is None else InferenceConfig(tile=(int(fit[0]), int(fit[1])), overlap=0, fit=True).zoom_of


def _drawn(run: RunFolder, strides: Mapping[str, float | None], pairs: Sequence[Pair]) -> list[Any]:
    assert run.ground_truth is not None, "_gains leaves out rows without ground truth"
    return drawn_pairs(
        run.ground_truth,
        run.predictions,
        strides,
        pairs,
        zoom=_zoom(run),
        max_detections=int(run.metrics.get("max_detections", 100)),
        group_key=str(run.settings.get("data", {}).get("group_key", "")),
    )
