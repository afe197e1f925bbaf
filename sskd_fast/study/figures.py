"""Figures of one row and one seed, read from the run folder that measured it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sskd_fast.evaluation import evaluate_touching
from sskd_fast.evaluation.comparison import drawn_ap
from sskd_fast.evaluation.pairs import image_groups
from sskd_fast.files import finite, write_json
from sskd_fast.method import STAGE
from sskd_fast.models.checkpoint import read_metadata
from sskd_fast.report.numbers import is_number
from sskd_fast.report.run_folder import read_figures, read_log
from sskd_fast.run.basis import lineage
from sskd_fast.run.dry_run import model_cost
from sskd_fast.run.stages import labelled_by
from sskd_fast.settings import Config

# Diagnostics of L_pxl in the training log, averaged over the last quarter of a stage.
DIAGNOSTICS = ("margin", "fnr", "fnr_foreground", "fnr_background", "pxl_gradient_share")
_OF_ROW = ("ap", "ap50", "params", "stride", "seconds", "cpu_seconds", "label_seconds", "labeled_seen")
_OF_DETAILS = ("ap75", "ap_small", "ap_medium", "ap_large")


def figures_of(folder: Path, result: str, config: Config) -> dict[str, Any] | None:
    """Figures of a stage's model in a finished run folder; None if the model is not measured there.

    The figures of metrics.json and details.json, and DIAGNOSTICS.  "touching_ap": AP of objects that touch.  "steps"
    and "step_seconds": the number of steps and the median step.  "chain_steps": of all stages of the model itself,
    without those of the models that label for it.  "total_seconds": of the model's own training and all
    those it builds on.  "gflops": for a crop.  "map_stride": of the embeddings.  "drawn": AP on the images and on
    bootstrap draws of them.  "images": a hash of the images.  Computed once, then kept in the folder.
    """
    kept = folder / "figures" / f"{result}.json"
    if not kept.exists():
        metrics, details = read_figures(folder)
        row = next((row for row in metrics["rows"] if row["name"] == result), None)
        if row is None or not is_number(row["ap"]):
            return None
        figures = {key: row[key] for key in _OF_ROW if key in row}
        figures |= {key: details[result][key] for key in _OF_DETAILS}
        figures |= training_figures(folder, result) | {"total_seconds": total_seconds(folder, result, config)}
        figures["chain_steps"] = chain_steps(folder, result)
        figures |= cost_figures(folder, result, config) | quality_figures(folder, result, config)
        if "stride" in figures:
            figures["map_stride"] = figures["stride"] * 2 ** getattr(config, STAGE[result].model).embedding_level
        write_json(kept, finite(figures) | {"drawn": figures["drawn"]})
    content: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return content


def training_figures(folder: Path, stage: str) -> dict[str, float]:
    """Steps, seconds per step and diagnostics of a stage's own training; empty if it was not trained."""
    weights = folder / "checkpoints" / f"{stage}.safetensors"
    if not weights.exists():
        return {}
    lines = [line for line in read_log(folder) if line.get("stage") == stage and "fold" not in line and "loss" in line]
    late = [line for line in lines if line["step"] > 0.75 * line["steps"]]
    means = {
        name: statistics.fmean(values)
        for name in DIAGNOSTICS
        if (values := [line[name] for line in late if is_number(line.get(name))])
    }
    steps = {"steps": float(read_metadata(weights)["facts"]["steps"])}
    return {**steps, "step_seconds": statistics.median(map(step_seconds, lines)), **means} if lines else steps


def step_seconds(line: Mapping[str, Any]) -> float:
    """Seconds of a step: the sum of the mean times of its parts in a line of the log."""
    return sum(value for name, value in line.items() if name.startswith("seconds_") and is_number(value))


def chain_steps(folder: Path, result: str) -> float:
    """Steps of all stages of a model, without those of the models that label for it."""
    weights = (folder / "checkpoints" / f"{stage}.safetensors" for stage in lineage(result, "none"))
    return float(sum(read_metadata(path)["facts"]["steps"] for path in weights if path.exists()))


def total_seconds(folder: Path, result: str, config: Config) -> float:
    """Seconds of all trainings that a stage's model builds on, and of making the pseudo-labels they learn from."""
    teacher = "none" if config.pseudo_labels.truth else config.pseudo_labels.teacher
    chain = lineage(result, teacher)
    weights = {name: path for name in chain if (path := folder / "checkpoints" / f"{name}.safetensors").exists()}
    labellers = {labelled_by(STAGE[name], teacher).labels_from or "" for name in weights}
    labelling = label_seconds(folder)
    trained = sum(float(read_metadata(path)["facts"]["seconds"]) for path in weights.values())
    return trained + sum(labelling.get(labeller, 0.0) for labeller in labellers)


def label_seconds(folder: Path) -> dict[str, float]:
    """Teacher -> seconds of labelling, fold models included, in the first part that labelled."""
    path = folder / "cache" / "label_seconds.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def keep_label_seconds(folder: Path, teacher: str) -> None:
    """Records the seconds of labelling in a run folder, beside the predictions that later parts share.

    Later parts do not label again, so their own figure would be too low.
    """
    known = label_seconds(folder)
    for row in read_figures(folder)[0]["rows"]:
        labeller = labelled_by(STAGE[row["name"]], teacher).labels_from if row["name"] in STAGE else None
        if labeller is not None and row.get("label_seconds"):
            known.setdefault(labeller, row["label_seconds"])
    if known:
        write_json(folder / "cache" / "label_seconds.json", known)


def cost_figures(folder: Path, result: str, config: Config) -> dict[str, float]:
    """GFLOPs for a crop; empty if the model is not a network."""
    kind = STAGE[result].model
    same = [stage for stage in STAGE.values() if stage.model == kind]
    files = [path for stage in same if (path := folder / "checkpoints" / f"{stage.name}.safetensors").exists()]
    if not files:
        return {}
    described = read_metadata(files[0])
    queries = int(described["model"]["num_queries"])
    cost = model_cost(dataclasses.replace(config, num_queries=queries), kind, described["inference"]["tile"])
    return {"gflops": cost["flops"] / 1e9}


def quality_figures(folder: Path, result: str, config: Config) -> dict[str, Any]:
    """AP of touching objects, AP on bootstrap draws of the images, and a hash of the images."""
    truth = json.loads((folder / "ground_truth.json").read_text(encoding="utf-8"))
    results = json.loads((folder / "predictions" / f"{result}.json").read_text(encoding="utf-8"))
    limit = int(read_figures(folder)[0]["max_detections"])
    (drawn,) = drawn_ap(truth, [results], max_detections=limit, groups=image_groups(truth, config.data.group_key))
    images = {key: value for key, value in truth.items() if key != "images_dir"}
    return {
        "touching_ap": evaluate_touching(truth, results, max_detections=limit).ap,
        "drawn": [round(float(ap), 4) for ap in drawn],
        "images": hashlib.sha256(json.dumps(images, sort_keys=True).encode()).hexdigest(),
    }
