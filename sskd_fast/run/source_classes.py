"""The choice of a foreign model's classes that count as the user's class, made on the labelled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from sskd_fast.data.derived import natural_detections
from sskd_fast.data.inventory import count_objects
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.evaluation import evaluate_masks
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.models.results_file import ResultsFile
from sskd_fast.run.given_results import check_results
from sskd_fast.settings import Config


def with_source_classes(config: Config, labeled: LabeledImages, say: Callable[[str], None]) -> Config:
    """The configuration with `teacher.foundation.source_classes` chosen.

    Unchanged if the teacher's results name no source classes, or if the settings already list those that count.
    Raises FoundationError if the results do not cover the labelled images or find nothing there, and what
    `check_results` raises.
    """
    foundation = config.teacher.foundation
    of_results = config.teacher.kind == "results" or config.teacher.warm_start == "results"
    if not of_results or not foundation.source_key or foundation.source_classes:
        return config
    model = ResultsFile(config.teacher)
    results = [
        {"image_id": record.image_id, **result}
        for record in labeled.records
        for result in model.results_of(*record.named_by)
    ]
    if not results:
        raise FoundationError(
            f"foundation.source_key: {model.place} says nothing of the labelled images, on which its classes are "
            "chosen; name those to take (teacher.foundation.source_classes)"
        )
    sizes = {record.image_id: labeled.size(index) for index, record in enumerate(labeled.records)}
    check_results(results, model.place, labeled.category_ids, sizes)
    limit = config.predict.max_detections or natural_detections(count_objects(labeled).counts)
    classes, ap = best_classes(results, labeled.ground_truth(), foundation.source_key, limit)
    if ap <= 0:
        raise FoundationError(
            f"foundation.source_key: no result of {model.place} finds an object of the {len(labeled)} labelled images, "
            "on which its classes are chosen; check the masks, or name the classes (teacher.foundation.source_classes)"
        )
    say(
        f"{foundation.source_key} {', '.join(classes)} of {model.place} are taken for the classes of the labels: AP "
        f"{ap:.1f} on the {len(labeled)} labelled images"
    )
    foundation = dataclasses.replace(foundation, source_classes=classes)
    return dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, foundation=foundation))


def best_classes(
    results: list[dict[str, Any]], truth: dict[str, Any], key: str, max_detections: int
) -> tuple[tuple[str, ...], float]:
    """The best source classes, by the field `key` of the results, and the mask AP of their results.

    Adds greedily the class that raises AP most, until none does.
    """
    left = sorted({str(r[key]) for r in results})
    chosen: list[str] = []
    best = 0.0
    while left:
        gains = {}
        for name in left:
            kept = {*chosen, name}
            found = [{k: v for k, v in r.items() if k != key} for r in results if str(r[key]) in kept]
            gains[name] = evaluate_masks(truth, found, max_detections=max_detections).ap
        name = max(left, key=lambda name: gains[name])
        if chosen and gains[name] <= best:
            break
        best = gains[name]
        chosen.append(name)
        left.remove(name)
    return tuple(chosen), best
