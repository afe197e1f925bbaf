"""Summary of a study's table over its seeds: figures, differences, and the circumstances of the measurements."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sskd_fast.evaluation.comparison import gain_over_seeds
from sskd_fast.files import finite
from sskd_fast.report.numbers import is_number
from sskd_fast.report.summary import spread
from sskd_fast.study.figures import figures_of
from sskd_fast.study.parts import Part
from sskd_fast.study.tables import Row, Table

# Entries of one seed that have no mean.
_KEPT_APART = ("drawn", "images")
# Row name -> seed -> the part that measures it.
Parts = Mapping[str, Mapping[int, Part]]


def summarize(table: Table, rows: Sequence[Row], seeds: Sequence[int], parts: Parts, output: Path) -> dict[str, Any]:
    """The content of a study's JSON file.

    "table", "question", "reference"; "seeds"; "dataset" and numbers of images; "machines", "commits", "dates" of the
    measurements. "unfinished": pairs [row, seed] that are not measured yet. "rows": for each row, "name", "result",
    "settings", "folders" by seed, "figures": {key: {"mean", "sd", "by_seed"}}, and "difference". The last has the
    fields of `SeedGain` and "against", over the seeds that both rows have.
    """
    done = {
        row.name: {
            seed: part for seed, part in parts.get(row.name, {}).items() if seed in seeds and part.is_finished(output)
        }
        for row in rows
    }
    figures = {row.name: _figures(row, done[row.name], output) for row in rows}
    for row in rows:
        _add_step_cost(figures[row.name], figures.get(table.without_pixel, {}))
    unfinished = [[row.name, seed] for row in rows for seed in seeds if seed not in figures[row.name]]
    summed = [_row(table, row, done[row.name], figures, seeds, output) for row in rows if figures[row.name]]
    found = [part.folder(output) for by_seed in done.values() for part in by_seed.values()]
    content = {
        "table": table.name, "question": table.question, "reference": table.reference, "seeds": list(seeds),
        **_facts(found), "unfinished": unfinished, "rows": summed,
    }  # fmt: skip
    summary: dict[str, Any] = finite(content)
    return summary


def _figures(row: Row, parts: Mapping[int, Part], output: Path) -> dict[int, dict[str, Any]]:
    measured = {seed: figures_of(part.folder(output), row.result, part.config) for seed, part in parts.items()}
    return {seed: figures for seed, figures in measured.items() if figures is not None}


def _add_step_cost(figures: Mapping[int, dict[str, Any]], without: Mapping[int, Mapping[str, Any]]) -> None:
    """Adds "step_cost": the time of a step divided by that of a step without L_pxl."""
    for seed, own in figures.items():
        base = without.get(seed, {}).get("step_seconds")
        if is_number(base) and is_number(own.get("step_seconds")):
            own["step_cost"] = own["step_seconds"] / base


def _row(
    table: Table,
    row: Row,
    parts: Mapping[int, Part],
    figures: Mapping[str, Mapping[int, dict[str, Any]]],
    seeds: Sequence[int],
    output: Path,
) -> dict[str, Any]:
    own, against = figures[row.name], table.against(row)
    keys = dict.fromkeys(key for of_seed in own.values() for key in of_seed if key not in _KEPT_APART)
    summed: dict[str, Any] = {
        "name": row.name,
        "result": row.result,
        "settings": [*row.teacher, *row.student],
        "folders": {str(seed): str(part.folder(output).relative_to(output)) for seed, part in parts.items()},
        "figures": {key: spread([own.get(seed, {}).get(key) for seed in seeds]) for key in keys},
    }
    if against != row.name and (gain := difference(own, figures.get(against, {}))):
        summed["difference"] = {"against": against, **gain}
    return summed


def difference(own: Mapping[int, Mapping[str, Any]], other: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of `SeedGain` over the seeds that both rows have on the same images; empty if there are none."""
    shared = [seed for seed in own if seed in other and own[seed]["images"] == other[seed]["images"]]
    if not shared:
        return {}
    drawn = [np.array(own[seed]["drawn"]) - np.array(other[seed]["drawn"]) for seed in shared]
    same_images = len({own[seed]["images"] for seed in shared}) == 1
    return dataclasses.asdict(gain_over_seeds(drawn, same_images=same_images)) | {"seeds": shared}


def _facts(folders: Sequence[Path]) -> dict[str, Any]:
    """The data set, and the machines, commits and dates of the measurements."""
    facts: dict[str, Any] = {}
    for folder in folders:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        for key in ("dataset", "labeled_images", "unlabeled_images", "val_images"):
            known = facts.setdefault(key, [])
            known += [metrics[key]] if key in metrics and metrics[key] not in known else []
    finished = [json.loads((folder / "finished.json").read_text(encoding="utf-8")) for folder in folders]
    names = {"machine": "machines", "commit": "commits", "date": "dates"}
    return facts | {name: sorted({part[key] for part in finished}) for key, name in names.items()}
