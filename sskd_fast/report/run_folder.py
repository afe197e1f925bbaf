"""The content of a run's folder so far, read for the report; any part may still be missing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sskd_fast.yaml_text import from_yaml


@dataclass(frozen=True)
class RunFolder:
    """The files of a run's folder.

    metrics: metrics.json.  log: the lines of log.jsonl.  ground_truth: a COCO dict of the validation images to show.
    predictions: row name -> COCO results.  statistics: teacher -> label statistics.  details: row name -> AP75, AP by
    size, by class and by group of images.  Also "gains" -> differences between rows with their intervals, and
    "ceilings" -> AP of perfect masks by stride.  configuration: the text of config.yaml.
    """

    path: Path
    metrics: dict[str, Any]
    log: list[dict[str, Any]]
    ground_truth: dict[str, Any] | None
    predictions: dict[str, list[dict[str, Any]]]
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    configuration: str = ""

    @property
    def images_dir(self) -> Path:
        """The folder of the validation images; a relative path is relative to the run folder."""
        return self.path / str((self.ground_truth or {}).get("images_dir", ""))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run, empty if config.yaml is missing. Raises ValueError if it is not a mapping."""
        file = self.path / "config.yaml"
        try:
            tree = from_yaml(self.configuration) or {}
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{file}: not readable as YAML ({reason}); restore the file") from error
        if not isinstance(tree, dict):
            raise ValueError(f"{file}: found a {type(tree).__name__}, expected settings; restore the file")
        return tree

    def teacher_predictions(self, teacher: str) -> list[dict[str, Any]]:
        """All predictions of a teacher on the unlabelled images, from cache/; empty if the file is missing."""
        return list((_read_json(cache_path(self.path, teacher, "unlabeled"), dict) or {}).get("results", []))

    def teacher_labels(self, teacher: str) -> list[dict[str, Any]]:
        """A teacher's labels and, with "iscrowd": 1, its unsure regions; empty if the file is missing."""
        content = _read_json(self.path / "pseudo_labels" / f"{teacher}.json", (dict, list)) or []
        # Earlier versions wrote a bare list.
        return list(content["annotations"] if isinstance(content, dict) else content)


def cache_path(folder: Path, model: str, images: str) -> Path:
    """The file with all predictions of a teacher or fold model; images: "labeled" or "unlabeled"."""
    return folder / "cache" / images / f"{model}.json"


def read_run(path: Path, *, predictions: bool = True) -> RunFolder:
    """Read the files that exist; a torn last line of the log is left out.

    predictions: also read the predictions on the validation images, the largest part of a folder.

    Raises ValueError, naming the file, if the path is not a folder or a JSON file cannot be read.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: expected the folder of a run")
    configuration = path / "config.yaml"
    metrics, details = read_figures(path)
    files = sorted((path / "predictions").glob("*.json")) if predictions else []
    return RunFolder(
        path=path,
        metrics=metrics,
        log=read_log(path),
        ground_truth=_read_json(path / "ground_truth.json", dict),
        predictions={file.stem: _read_json(file, list) for file in files},
        statistics=_read_json(path / "label_statistics.json", dict) or {},
        details=details,
        configuration=configuration.read_text(encoding="utf-8") if configuration.exists() else "",
    )


def read_figures(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """metrics.json and details.json of a run's folder, empty if missing; raises ValueError like `read_run`."""
    return _read_json(path / "metrics.json", dict) or {"rows": []}, _read_json(path / "details.json", dict) or {}


def _read_json(path: Path, kind: type | tuple[type, ...]) -> Any:
    """The content of a JSON file, None if it does not exist. Raises ValueError unless the content is of type `kind`."""
    if not path.exists():
        return None
    cure = "remove it and run the stage that writes it again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); {cure}") from error
    if not isinstance(content, kind):
        kinds = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{path}: found a JSON {type(content).__name__}, expected a {kinds}; {cure}")
    return content


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line that is still being written is left out."""
    path = folder / "log.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(
                    f"{path}, line {number}: not readable as JSON ({error}); remove the line and try again"
                ) from error
    return records
