"""The precision that pseudo-labels reach against the target: `python -m benchmarks.calibration RUN...`.

A run's teachers label the unlabelled images with the thresholds of their fold models, applied to scores and by rank.
The hidden labels of these images, which are used for nothing else, give precision and recall.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from sskd_fast.method import STAGES
from sskd_fast.pseudo_labels import label_statistics, select_labels
from sskd_fast.run.checks import device_of
from sskd_fast.run.models import RunModels
from sskd_fast.run.results import RunResults
from sskd_fast.run.sources import target_sources
from sskd_fast.run.thresholds import Thresholds, cached_predictions
from sskd_fast.yaml_settings import load_config

# Shares in [0, 1]: precision and recall.
Reached = tuple[float, float]


def calibrations(run: Path) -> Iterator[tuple[str, str, Reached]]:
    """(teacher, "score" or "rank", precision and recall) for each teacher of a run whose images have hidden labels."""
    config = load_config([run / "config.yaml"])
    sources = target_sources(config, run)
    if sources.hidden_truth is None:
        raise SystemExit(f"{run}: its unlabelled images have no hidden labels; run on the embedded data set")
    models = RunModels(config, sources, RunResults(run, {}), device_of(config))
    settings, names = config.pseudo_labels, dict(zip(sources.labeled.category_ids, sources.classes, strict=True))
    limit = settings.labels_limit(models.sources.detections)
    for stage in (stage for stage in STAGES if stage.teaches):
        model = models.load(stage.name)
        raw = cached_predictions(models, model, stage.name, sources.unlabeled)
        by_rank = Thresholds.of(models, model, stage.name, raw)
        for kind, thresholds in (("score", replace(by_rank, of_folds=[])), ("rank", by_rank)):
            chosen = select_labels(
                raw,
                thresholds.at(settings.target_precision),
                nms_iou=settings.nms_iou,
                max_per_image=limit,
            )
            found = label_statistics(chosen, sources.unlabeled.image_ids, names, sources.hidden_truth)
            yield stage.name, kind, (found.precision or 0.0, found.recall or 0.0)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a Markdown table with a line for each run and teacher, and the mean distance from the target precision."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a folder in which stage adapt is done")
    print("| run, teacher | target precision | by score: precision, recall | by rank: precision, recall |")
    print("|---|---|---|---|")
    distances: dict[str, list[float]] = {"score": [], "rank": []}
    for run in parser.parse_args(argv).runs:
        wanted = load_config([run / "config.yaml"]).pseudo_labels.target_precision
        found: dict[str, dict[str, Reached]] = {}
        for teacher, kind, reached in calibrations(run):
            found.setdefault(teacher, {})[kind] = reached
            distances[kind].append(abs(reached[0] - wanted))
        for teacher, kinds in found.items():
            cells = " | ".join(f"{precision:.2f}, {recall:.2f}" for precision, recall in kinds.values())
            print(f"| {run.name}, {teacher.replace('_', ' ')} | {wanted:.2f} | {cells} |", flush=True)
    means = ", ".join(f"{fmean(of_kind):.3f} by {kind}" for kind, of_kind in distances.items())
    print(f"\nMean distance from the target precision: {means}")


if __name__ == "__main__":
    main()
