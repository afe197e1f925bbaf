"""Prediction image by image with a journal, so that an interrupted command continues where it stopped.

A record of the journal is a group of images that were predicted together, one dict each.  It has "file_name", and
"problem" if the image could not be read.  Otherwise it has "height", "width" and "results", and "video" and "frame" for
a frame.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from sskd_fast import __version__
from sskd_fast.data.errors import DataError
from sskd_fast.data.formats.coco import complete_coco
from sskd_fast.files import write_atomically
from sskd_fast.journal import Journal
from sskd_fast.predict.drawing import draw
from sskd_fast.predict.inputs import Inputs, Picture
from sskd_fast.predictor import Predictor
from sskd_fast.pseudo_labels import cache_key
from sskd_fast.source_prediction import groups


@dataclass(frozen=True)
class Work:
    """All that the predictions depend on.  model: as the user named it.

    score: lowest score written and drawn.  drawings: folder of the overlays, None for none.
    """

    model: str
    predictor: Predictor
    inputs: Inputs
    score: float
    drawings: Path | None

    @property
    def key(self) -> str:
        """A hash of the weights, settings and files."""
        model, path = self.predictor.model, Path(self.model)
        # An exported file holds its own weights: .onnx, or .bin beside .xml.
        files = [file.stat() for file in (path, path.with_suffix(".bin")) if file.is_file()]
        description = dataclasses.replace(self.predictor.description, figures={}, facts={})
        settings = {
            "description": dataclasses.asdict(description), "views": len(self.predictor.views),
            "score": self.score, "drawn": self.drawings is not None,
            "device": next(model.parameters()).device.type, "version": __version__, "every": self.inputs.every,
            "model": [(file.st_size, file.st_mtime_ns) for file in files],
            "folder": str(self.inputs.folder), "files": self.inputs.stamps(),
        }  # fmt: skip
        return cache_key(model.state_dict(), settings)

    def go_on(self, journal: Journal) -> list[dict[str, Any]]:
        """Predicts the images missing from the journal, with a progress bar; returns all records in order.

        An unreadable image is named on stderr.
        """
        records = [image for group in journal.records for image in group["images"]]
        for record in records:
            _name_problem(record)
        with tqdm(total=self.inputs.count(), initial=len(records), unit="image", disable=None) as bar:
            rest = itertools.islice(self.inputs, len(records), None)
            for group in groups(self._read(rest), _pixels):
                found = self._predict(group)
                journal.append([{"images": found}])
                records += found
                bar.update(len(found))
        return records

    def _read(self, pictures: Iterator[Picture]) -> Iterator[tuple[Picture, Tensor | DataError]]:
        for picture in pictures:
            try:
                yield picture, self.predictor.read_image(picture.load())
            except DataError as error:
                yield picture, error

    def _predict(self, group: Sequence[tuple[Picture, Tensor | DataError]]) -> list[dict[str, Any]]:
        """The records of a group. Its overlays are drawn first."""
        found = iter(self.predictor.find([image for _, image in group if isinstance(image, Tensor)]))
        records = []
        for picture, image in group:
            record: dict[str, Any] = {"file_name": picture.file_name, **picture.origin}
            if isinstance(image, Tensor):
                prediction = next(found).above(self.score)
                record |= {"height": prediction.size[0], "width": prediction.size[1]}
                record["results"] = prediction.to_coco(0)
                if self.drawings is not None:
                    drawn = draw(image, prediction)
                    write_atomically(self.drawings / picture.overlay, partial(drawn.save, format="PNG"))
            else:
                record["problem"] = str(image)
                _name_problem(record)
            records.append(record)
        return records


def _pixels(pair: tuple[Picture, Tensor | DataError]) -> int:
    return pair[1][0].numel() if isinstance(pair[1], Tensor) else 0


def _name_problem(record: dict[str, Any]) -> None:
    if "problem" in record:
        tqdm.write(f"skipped {record['problem']}", file=sys.stderr)


def coco_of(records: Sequence[dict[str, Any]], work: Work) -> dict[str, Any]:
    """The records of readable images as a COCO instances dict whose annotations are also COCO results."""
    predictor = work.predictor
    stage = predictor.description.facts.get("stage", "")
    numbered = [(number, record) for number, record in enumerate(records, 1) if "results" in record]
    keys = ("file_name", "height", "width", "video", "frame")
    found = [{**result, "image_id": number} for number, record in numbered for result in record["results"]]
    info = {
        "description": "Instances found by sskd_fast",
        "model": work.model,
        "stage": stage,
        "version": __version__,
        "score": work.score,
        "images_dir": str(work.inputs.folder),
    }
    images = [{"id": number, **{k: record[k] for k in keys if k in record}} for number, record in numbered]
    classes = zip(predictor.category_ids, predictor.class_names, strict=True)
    return complete_coco(images, found, [{"id": category, "name": name} for category, name in classes], info)
