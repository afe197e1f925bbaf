"""Results of a run in its folder: paths of weights and labels, rows of figures, predictions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sskd_fast.data.labeled import LabeledImages
from sskd_fast.files import finite, write_json
from sskd_fast.method import ROW_ORDER, views_rows
from sskd_fast.report import read_figures
from sskd_fast.report.run_folder import cache_path
from sskd_fast.run.basis import Basis


@dataclass(frozen=True)
class Row:
    """One row of metrics.json.

    ap, ap50: in percent.  params: of the network.  stride: side, in pixels of the image as predicted, of a square with
    the area of a mask cell.  cost: of the stage's own training, the fields of `Cost`, or those that are known.  views:
    number of views that predictions are averaged over, 1 for the plain image.  official: figures of the data set's own
    evaluation if it has one.  made_with, measured_with: keys of the bases of the model and of its figures.
    """

    name: str
    ap: float
    ap50: float
    params: int
    stride: float
    cost: Mapping[str, float]
    views: int = 1
    official: Mapping[str, float] = field(default_factory=dict)
    made_with: str = ""
    measured_with: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The row as in metrics.json, rounded."""
        return {
            "name": self.name,
            "ap": round(self.ap, 3),
            "ap50": round(self.ap50, 3),
            "params": self.params,
            "stride": self.stride,
            **{key: round(value, 1) for key, value in self.cost.items()},
            **({"views": self.views} if self.views > 1 else {}),
            **{key: round(value, 3) for key, value in self.official.items()},
            **{key: value for key in ("made_with", "measured_with") if (value := getattr(self, key))},
        }


def spanning_rows(details: Mapping[str, Any]) -> dict[str, Any]:
    """The part of details.json that spans rows: gains of one over another, and ceilings of strides."""
    return {key: details[key] for key in ("gains", "ceilings") if key in details}


@dataclass(frozen=True)
class RunResults:
    """The files of a run's folder.  header: the facts of the run in metrics.json, besides its rows."""

    folder: Path
    header: Mapping[str, Any]

    def weights_path(self, stage: str) -> Path:
        """Finished weights of a stage."""
        return self.folder / "checkpoints" / f"{stage}.safetensors"

    def state_path(self, stage: str) -> Path:
        """Training state of an unfinished stage."""
        return self.folder / "checkpoints" / f"{stage}.state.pt"

    def fold_name(self, stage: str, number: int, count: int) -> str:
        """The name of fold model `number` of `count`, for its weights, state and predictions."""
        return f"folds/{stage}_fold_{number}_of_{count}"

    def labels_path(self, teacher: str) -> Path:
        """Pseudo-labels of a teacher."""
        return self.folder / "pseudo_labels" / f"{teacher}.json"

    def shards_path(self, teacher: str) -> Path:
        """The folder of a teacher's pseudo-labels in shards."""
        return self.folder / "pseudo_labels" / teacher

    def cache_path(self, model: str, images: str) -> Path:
        """The file with all predictions of a teacher or fold model; images: "labeled" or "unlabeled"."""
        return cache_path(self.folder, model, images)

    @property
    def baseline_path(self) -> Path:
        """The choice of the supervised student's steps and views."""
        return self.folder / "baseline.json"

    def predictions_path(self, stage: str) -> Path:
        """Predictions of a stage's model on the validation images."""
        return self.folder / "predictions" / f"{stage}.json"

    def keep_basis(self, basis: Basis) -> str:
        """Adds a basis to made_with.json; returns its key."""
        known = self._bases()
        if basis.key not in known:
            write_json(self.folder / "made_with.json", known | {basis.key: dataclasses.asdict(basis)})
        return basis.key

    def basis(self, key: str | None) -> Basis | None:
        """The basis of a key; None if it was not kept."""
        content = self._bases().get(key or "")
        return None if content is None else Basis(**content)

    def _bases(self) -> dict[str, Any]:
        path = self.folder / "made_with.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows measured so far."""
        return list(read_figures(self.folder)[0]["rows"])

    @property
    def details(self) -> dict[str, Any]:
        """The content of details.json: finer figures by row, and "gains" and "ceilings", which span rows."""
        return read_figures(self.folder)[1]

    def add_row(self, row: Row) -> None:
        """Puts a row into metrics.json, in the method's order; drops the gains of the row that it replaces."""
        gains = self.details.get("gains", [])
        kept = [gain for gain in gains if row.name not in (gain["model"], gain["against"])]
        if len(kept) < len(gains):
            self.write_details("gains", kept)
        rows = [known for known in self.rows if known["name"] != row.name] + [row.as_dict()]
        names = [*ROW_ORDER, *(known["name"] for known in rows if known["name"] not in ROW_ORDER)]
        self._write_rows(sorted(rows, key=lambda known: names.index(known["name"])), row.measured_with)

    def write_details(self, name: str, details: Mapping[str, Any] | list[Any]) -> None:
        """Puts finer figures of a row, or "gains" or "ceilings", into details.json; replaces earlier ones."""
        write_json(self.folder / "details.json", self.details | {name: finite(details)})

    def outdate(self, names: Collection[str]) -> None:
        """Removes rows, weights, predictions and training states of stages whose foundations are made again.

        The same goes for the rows that measure these stages' models in the views in which the teacher labels.
        """
        names = {*names, *views_rows(names)}
        for name in names:
            own = (self.state_path(name), self.weights_path(name), self.predictions_path(name))
            for path in (*own, *(self.folder / "checkpoints" / "folds").glob(f"{name}_*")):
                path.unlink(missing_ok=True)
        rows = self.rows
        if any(row["name"] in names for row in rows):
            now = read_figures(self.folder)[0].get("measured_with", "")
            self._write_rows([row for row in rows if row["name"] not in names], now)

    def _write_rows(self, rows: list[dict[str, Any]], measured_with: str) -> None:
        """Writes metrics.json; measured_with: key of the row measured last; rows with other keys do not compare."""
        now = {"measured_with": measured_with} if measured_with else {}
        write_json(self.folder / "metrics.json", {**self.header, **now, "rows": rows})

    def read_predictions(self, name: str) -> list[dict[str, Any]] | None:
        """The predictions that `write_predictions` wrote for a row; None if the file is missing."""
        path = self.predictions_path(name)
        return list(json.loads(path.read_text())) if path.exists() else None

    def write_predictions(self, name: str, results: list[dict[str, Any]], source: LabeledImages) -> None:
        """Writes predictions/<name>.json, and the ground truth to show beside them in the report."""
        write_json(self.predictions_path(name), results)
        images, folder = source.images_dir.resolve(), self.folder.resolve()
        within = images.is_relative_to(folder)  # stays true if the folder is moved
        truth = source.ground_truth() | {"images_dir": str(images.relative_to(folder) if within else images)}
        write_json(self.folder / "ground_truth.json", truth)

    def add_label_statistics(self, teacher: str, statistics: Mapping[str, Any]) -> None:
        """Adds the statistics of a teacher's pseudo-labels to label_statistics.json."""
        path = self.folder / "label_statistics.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, known | {teacher: dict(statistics)})
