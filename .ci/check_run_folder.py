"""Checks that the run folder of a finished main job is complete: `python .ci/check_run_folder.py FOLDER`."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from sskd_fast.method import COMPARISONS, FITTED, ROW_ORDER
from sskd_fast.train.cost import COST_KEYS

# The rows of a run whose teacher is not fitted to predictions first.
ROWS = [name for name in ROW_ORDER if name != FITTED]

FILES = (
    "config.yaml",
    "metrics.json",
    "details.json",
    "log.jsonl",
    "report.html",
    "ground_truth.json",
    "label_statistics.json",
)


def row_problems(folder: Path, metrics: dict[str, Any]) -> list[str]:
    """Problems of the rows of metrics.json and of their predictions."""
    rows = {row["name"]: row for row in metrics["rows"]}
    if [row["name"] for row in metrics["rows"]] != ROWS:
        found = [row["name"] for row in metrics["rows"]]
        return [f"metrics.json: rows {found}, expected {ROWS}"]
    problems = []
    for name, row in rows.items():
        for key in ("ap", "ap50"):
            if not (math.isfinite(row[key]) and 0 <= row[key] <= 100):
                problems.append(f"metrics.json: {name}: {key} is {row[key]}, expected a percentage")
        for key in ("params", "stride", *COST_KEYS):
            if not (math.isfinite(row.get(key, math.nan)) and row[key] >= 0):
                problems.append(f"metrics.json: {name}: {key} is {row.get(key)}, expected a number from 0 up")
        if not (folder / "predictions" / f"{name}.json").is_file():
            problems.append(f"predictions/{name}.json is missing")
    return problems


def gain_problems(details: dict[str, Any]) -> list[str]:
    """Problems of the gains of details.json: pairs of rows without one, or without an interval."""
    gains = {(gain["model"], gain["against"]): gain for gain in details.get("gains", []) if gain["stride"] is None}
    problems = [
        f"details.json: no gain of {pair[0]} against {pair[1]}"
        for pair in COMPARISONS
        if FITTED not in pair and pair not in gains
    ]
    for (model, against), gain in gains.items():
        if any(gain[key] is None for key in ("ap", "low", "high")):
            problems.append(f"details.json: the gain of {model} against {against} has no interval")
    return problems


def log_problems(log: Path) -> list[str]:
    """Problems of log.jsonl: lines that are not JSON objects, losses that are not finite, or no loss at all."""
    steps = 0
    for number, line in enumerate(log.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            return [f"log.jsonl: line {number} is not JSON: {error}"]
        if "loss" in record:
            steps += 1
            if not math.isfinite(record["loss"]):
                return [f"log.jsonl: line {number}: loss is {record['loss']}"]
    return [] if steps else ["log.jsonl: no line has a loss"]


def problems(folder: Path) -> list[str]:
    """Everything that is missing or wrong in a finished run's folder."""
    paths = {name: folder / name for name in FILES}
    absent = [name for name, path in paths.items() if not path.is_file() or path.stat().st_size == 0]
    if absent:
        return [f"{name} is missing or empty" for name in absent]
    found = row_problems(folder, json.loads((folder / "metrics.json").read_text()))
    found += gain_problems(json.loads((folder / "details.json").read_text()))
    found += log_problems(folder / "log.jsonl")
    if "</html>" not in (folder / "report.html").read_text():
        found.append("report.html ends before </html>")
    return found


def main() -> int:
    folder = Path(sys.argv[1])
    found = problems(folder)
    for problem in found:
        print(f"{folder}: {problem}", file=sys.stderr)
    if not found:
        print(f"{folder}: complete, {len(ROWS)} rows")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
