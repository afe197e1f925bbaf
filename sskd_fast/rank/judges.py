"""The two models of a run whose labels are compared: its adapted teacher and its last student."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sskd_fast.data.source import ImageCollection
from sskd_fast.method import FINAL_STUDENTS, STAGE
from sskd_fast.models.augmented import IDENTITY, Augmentation, augmentations
from sskd_fast.predictor import ModelError, Predictor, load
from sskd_fast.predictor.locate import checkpoint_of
from sskd_fast.pseudo_labels import calibrate_thresholds, select_labels
from sskd_fast.settings import Config
from sskd_fast.source_prediction import predict_source
from sskd_fast.yaml_settings import load_config

# The teacher that the students learn from.
TEACHER = str(STAGE[FINAL_STUDENTS[-1]].labels_from)


@dataclass(frozen=True)
class Judge:
    """A model that labels images like the run's pseudo-labels: by thresholds, NMS and a limit per image.

    thresholds: category id -> lowest score of a label.  views: augmentations over which predictions are averaged.
    """

    predictor: Predictor
    thresholds: Mapping[int, float]
    config: Config
    views: Sequence[Augmentation] = IDENTITY

    @property
    def stage(self) -> str:
        """The stage that trained the model."""
        return str(self.predictor.description.facts["stage"])

    def labels(self, source: ImageCollection, rows: Iterable[int]) -> list[dict[str, Any]]:
        """COCO results on images of a source that reach the thresholds."""
        p, limits = self.predictor, self.config.pseudo_labels
        raw = predict_source(p.model, p.inference, source, p.category_ids, rows, self.views)
        limit = limits.labels_limit(p.inference.max_detections)
        return select_labels(raw, self.thresholds, nms_iou=limits.nms_iou, max_per_image=limit)


def judges_of(run: Path, *, device: str, score: float | None = None) -> tuple[Judge, Judge]:
    """The adapted teacher, which labels as it did for the students, and the last student, without averaging over views.

    score: one threshold for both, instead of the run's.  Raises ModelError if the run lacks a model or thresholds.
    """
    if not (run / "config.yaml").is_file():
        raise ModelError(f"{run}: not the folder of a run, has no config.yaml; give one such as runs/embedded")
    config = load_config([run / "config.yaml"])
    if not config.teacher.trainable:
        raise ModelError(
            f"{run}: its teacher is a file of predictions, which cannot label other images; take a run whose teacher "
            "was fitted to them (teacher.warm_start=results)"
        )
    teacher, student = (load(checkpoint_of(run, stage), device=device) for stage in (TEACHER, None))
    views, flips = config.pseudo_labels, config.views
    averaged = augmentations(views.views, views.zooms, hflip=flips.hflip, vflip=flips.vflip, rot90=flips.rot90)
    if score is not None:
        both = dict.fromkeys(teacher.category_ids, score)
        return Judge(teacher, both, config, averaged), Judge(student, both, config)
    return (
        Judge(teacher, _kept_thresholds(run, teacher), config, averaged),
        Judge(student, _measured_thresholds(run, student, config), config),
    )


def _kept_thresholds(run: Path, teacher: Predictor) -> dict[int, float]:
    """The thresholds of the teacher's pseudo-labels, as its run calibrated them."""
    of_teacher = _read(run / "label_statistics.json").get(TEACHER, {}).get("thresholds", {})
    missing = [name for name in teacher.class_names if name not in of_teacher]
    if missing:
        raise ModelError(
            f"{run / 'label_statistics.json'}: has no threshold of the {STAGE[TEACHER].words} for {missing[0]}; give "
            "one for both models, --score 0.5"
        )
    return {i: float(of_teacher[n]) for i, n in zip(teacher.category_ids, teacher.class_names, strict=True)}


def _measured_thresholds(run: Path, student: Predictor, config: Config) -> dict[int, float]:
    """The student's thresholds, calibrated by the same rule on its predictions for the run's validation images."""
    labels = config.pseudo_labels
    found = _read(run / "predictions" / f"{student.description.facts['stage']}.json")
    return calibrate_thresholds(
        found, _read(run / "ground_truth.json"), target_precision=labels.target_precision, iou=labels.iou,
        floor=config.predict.score_floor, minimum_matches=labels.minimum_matches, shrink=labels.shrink, quiet=True,
    )  # fmt: skip


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = "the file is missing"
    except ValueError as error:
        found = f"the file is damaged ({error})"
    raise ModelError(f"{path}: {found}, needed for the thresholds; give one for both models, --score 0.5")
