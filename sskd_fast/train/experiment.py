"""A run in its folder: where its files are, how models are built and applied, what has been measured so far."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from sskd_fast.data.errors import named
from sskd_fast.data.files import write_json
from sskd_fast.data.source import ImageCollection
from sskd_fast.models.augmented import IDENTITY, Augmentation, predict_views
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.inference import InferenceConfig, to_results
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.models.segmenter import ModelConfig, Segmenter
from sskd_fast.settings import Config
from sskd_fast.train.checkpoint import load_weights
from sskd_fast.train.sources import Sources
from sskd_fast.train.watch import Log

SHIPPED = Path(__file__).parent.parent / "weights"
ROW_ORDER = (
    "zero_shot_teacher", "supervised_teacher", "adapted_teacher",
    "supervised_student", "distilled_student", "refined_student",
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """One row of metrics.json: AP and AP50 in percent, parameters, training seconds, and the figures of the data set's
    own evaluation where it has one."""

    name: str
    ap: float
    ap50: float
    params: int
    seconds: float
    official: dict[str, float] = field(default_factory=dict)


@dataclass
class Experiment:
    """Everything a stage needs. resume: unfinished stages go on from their saved state, finished ones are kept."""

    config: Config
    folder: Path
    sources: Sources
    device: torch.device
    log: Log
    resume: bool = False

    def weights_path(self, stage: str) -> Path:
        """Finished weights of a stage."""
        return self.folder / "checkpoints" / f"{stage}.safetensors"

    def state_path(self, stage: str) -> Path:
        """Training state of an unfinished stage."""
        return self.folder / "checkpoints" / f"{stage}.state.pt"

    def foundation_weights(self, model: Literal["teacher", "student"]) -> Path | None:
        """The safetensors file a model starts from, None for none: a random start, or the weights that the model's own
        settings name.  FileNotFoundError where the file is absent."""
        value = self.config.teacher_weights if model == "teacher" else self.config.student_weights
        config: ModelConfig = getattr(self.config, model)
        if not value or (value == "embedded" and config.kind != "mask_transformer"):
            return None
        path = SHIPPED / f"{model}.safetensors" if value == "embedded" else Path(value)
        if not path.exists():
            raise FileNotFoundError(
                f"{model}_weights: {path} does not exist; give a safetensors file, 'embedded' or '' for none"
            )
        return path

    def build(self, model: Literal["teacher", "student"], *, weights: bool = True) -> Segmenter:
        """The teacher or the student for the run's classes and queries; weights: with those its settings name."""
        config: ModelConfig = getattr(self.config, model)
        config = dataclasses.replace(config, num_queries=self.sources.num_queries)
        built, s = build_segmenter(config, self.sources.classes, weights=weights), self.sources
        every = [r for part in (s.labeled, s.holdout, s.unlabeled, s.val) for r in part.records]
        built.check_images((record.image_id, record.file_name) for record in every)
        return built

    def load(self, stage: str) -> Segmenter:
        """The finished model of a stage; of a teacher that no stage can train, the teacher itself."""
        model = self.build("teacher" if stage.endswith("teacher") else "student", weights=False)
        if model.config.trainable:
            load_weights(model, self.weights_path(stage), self.sources.classes)
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @cached_property
    def inference(self) -> InferenceConfig:
        """How models are applied in this run: tiles of the training crop, where no other size is set."""
        p = self.config.predict
        size = p.tile if min(p.tile) else self.sources.views.size
        return InferenceConfig(
            tile=size, overlap=min(p.overlap, min(size) // 2), zoom=self.sources.zoom, score_floor=p.score_floor,
            nms_iou=p.nms_iou, max_detections=p.max_detections, batch=p.batch,
        )  # fmt: skip

    def predict(
        self,
        model: Segmenter,
        source: ImageCollection,
        indices: Iterable[int] | None = None,
        views: Sequence[Augmentation] = IDENTITY,
    ) -> list[dict[str, Any]]:
        """COCO results of the model on the images of a source, averaged over views of each."""
        results: list[dict[str, Any]] = []
        order = []
        ids = source.category_ids or self.sources.labeled.category_ids
        for index in range(len(source)) if indices is None else indices:
            known = model.results_of(source.records[index].image_id, source.records[index].file_name)
            results += known or []
            order += [index] if known is None else []
        foreign = sorted({result["category_id"] for result in results} - set(ids))
        if foreign:
            raise FoundationError(
                f"foundation.results: {model.config.foundation.results} has results of category {foreign[0]}; expected "
                f"the data set's own ids, {named(ids)}: map them, or leave those results out"
            )
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            found = predict_views(model, [source.image(i) for i in rows], self.inference, views)
            for i, detections in zip(rows, found, strict=True):
                results += to_results(detections, source.records[i].image_id, source.size(i), ids, self.sources.zoom)
        return results

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows measured so far."""
        path = self.folder / "metrics.json"
        return list(json.loads(path.read_text())["rows"]) if path.exists() else []

    def add_row(self, result: Results) -> None:
        """Puts a row into metrics.json, in the table's order."""
        rounded = {
            "name": result.name, "ap": round(result.ap, 3), "ap50": round(result.ap50, 3), "params": result.params,
            "seconds": round(result.seconds, 1), **{key: round(value, 3) for key, value in result.official.items()},
        }  # fmt: skip
        rows = [row for row in self.rows if row["name"] != result.name] + [rounded]
        names = [*ROW_ORDER, *(row["name"] for row in rows if row["name"] not in ROW_ORDER)]
        self._write_rows(sorted(rows, key=lambda row: names.index(row["name"])))

    def outdate(self, names: set[str]) -> None:
        """Takes the rows of stages out of metrics.json, and their unfinished training states out of the folder: what
        they build on is made anew."""
        for name in names:
            self.state_path(name).unlink(missing_ok=True)
        rows = self.rows
        if any(row["name"] in names for row in rows):
            self._write_rows([row for row in rows if row["name"] not in names])

    def _write_rows(self, rows: list[dict[str, Any]]) -> None:
        s = self.sources
        write_json(
            self.folder / "metrics.json",
            {
                "dataset": self.config.data.name, "seed": self.config.seed,
                "labeled_images": len(s.labeled) + len(s.holdout), "unlabeled_images": len(s.unlabeled),
                "val_images": len(s.val), "max_detections": self.config.predict.max_detections, "rows": rows,
            },
        )  # fmt: skip

    def read_predictions(self, name: str) -> list[dict[str, Any]] | None:
        """What `write_predictions` has written of a row; None where the file is there no more."""
        path = self.folder / "predictions" / f"{name}.json"
        return list(json.loads(path.read_text())) if path.exists() else None

    def write_predictions(self, name: str, results: list[dict[str, Any]]) -> None:
        """predictions/<name>.json and the ground truth that the report shows them against."""
        write_json(self.folder / "predictions" / f"{name}.json", results)
        val = self.sources.val
        write_json(
            self.folder / "ground_truth.json", val.ground_truth() | {"images_dir": str(val.images_dir.resolve())}
        )
