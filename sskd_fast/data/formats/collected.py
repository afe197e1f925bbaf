"""Builder of a COCO instances dict: images, instances by class name, and all problems found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pycocotools.mask as coco_mask

from sskd_fast.data.errors import DataError, Findings
from sskd_fast.data.formats.shapes import union
from sskd_fast.rle import MaskError


@dataclass
class Collected:
    """Content collected by a reader.  classes: class names that come first, in this order; others follow sorted."""

    classes: Sequence[str] = ()
    findings: Findings = field(default_factory=Findings)
    _images: dict[str, dict[str, Any]] = field(default_factory=dict)
    _origins: dict[str, str] = field(default_factory=dict)
    _annotations: list[dict[str, Any]] = field(default_factory=list)

    def image(self, file_name: str, size: tuple[int, int], origin: str | Path, extra: Mapping[str, Any] = {}) -> bool:
        """Adds an image of (height, width); returns False, and adds a problem, if the image was added before.

        origin: the file or record that labels it.  extra: other fields of its record.
        """
        if file_name in self._images:
            found = f"it labels {file_name}, which {self._origins[file_name]} labels too"
            self.findings.add(origin, "", found, "one set of labels for an image", "Remove one of them.")
            return False
        height, width = size
        own = {"id": 0, "file_name": file_name, "width": width, "height": height}
        self._images[file_name] = {**extra, **own}
        self._origins[file_name] = str(origin)
        return True

    def instance(self, file_name: str, label: str, parts: Sequence[dict[str, Any]], origin: str, **fields: Any) -> None:
        """Adds an instance from the compressed RLE of its parts; origin: its name in messages."""
        encoded = union(parts)
        self._annotations.append(
            {
                "file_name": file_name,
                "label": label,
                "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")},
                "area": float(coco_mask.area(encoded)),
                "bbox": [float(value) for value in coco_mask.toBbox(encoded)],
                "iscrowd": 0,
                "origin": origin,
                **fields,
            }
        )

    def drawn(self, file: str | Path, item: str, draw: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """The mask from `draw`; None, with a problem of this file and item, if it raises MaskError."""
        try:
            return draw()
        except MaskError as error:
            self.findings.add(file, item, error.found, error.expected, error.cure)
            return None

    def content(self) -> dict[str, Any]:
        """The instances dict with images sorted by name, ids from 1, and `warnings` if there are any.

        Raises DataError with all problems.
        """
        if self.findings.problems:
            raise DataError(self.findings.problems, self.findings.warnings)
        images = [self._images[name] | {"id": number} for number, name in enumerate(sorted(self._images), 1)]
        image_ids = {image["file_name"]: image["id"] for image in images}
        further = {annotation["label"] for annotation in self._annotations} - set(self.classes)
        category_ids = {name: number for number, name in enumerate([*self.classes, *sorted(further)], 1)}
        annotations = [
            {
                "id": number,
                "image_id": image_ids[annotation.pop("file_name")],
                "category_id": category_ids[annotation.pop("label")],
                **annotation,
            }
            for number, annotation in enumerate(self._annotations, 1)
        ]
        categories = [{"id": number, "name": name} for name, number in category_ids.items()]
        warnings = {"warnings": self.findings.warnings} if self.findings.warnings else {}
        return {"images": images, "annotations": annotations, "categories": categories, **warnings}
