"""A teacher that consists of files: predictions made elsewhere, as COCO results."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from sskd_fast.models.pretrained import FoundationError
from sskd_fast.models.segmenter import ImageName, Segmenter
from sskd_fast.models.settings import ModelConfig
from sskd_fast.rle import MaskError, encode_segmentation
from sskd_fast.scalars import ScalarError, integer, shown
from sskd_fast.scalars import number as scalar_number
from sskd_fast.scalars import text as scalar_text

_FIELDS = ("category_id", "segmentation", "score")


class ResultsFile(Segmenter):
    """Predictions by image, read from COCO results files; it cannot be trained, and never looks at an image.

    A result belongs to an image by its "file_name" if it has one, else by its "image_id".  Raises FoundationError if a
    file cannot be read, or if results lack a field or a valid mask.
    """

    stride = 1.0

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.place = ", ".join(config.foundation.results_files)
        self.by_image: dict[int | str, list[dict[str, Any]]] = {}
        digest = hashlib.sha256(",".join(config.foundation.source_classes).encode())
        for name in config.foundation.results_files:
            digest.update(self._read(Path(name)))
        # Identifies these predictions in caches, as weights do for other models.
        self.register_buffer("digest", torch.tensor(list(digest.digest()), dtype=torch.uint8))

    def _read(self, path: Path) -> bytes:
        """Adds the results of a file that have a chosen source class; returns the file's content."""
        source = self.config.foundation
        try:
            content = path.read_bytes()
            results = json.loads(content)
        except (OSError, ValueError) as error:
            raise FoundationError(f"foundation.results: {path} cannot be read ({error}); give COCO results") from error
        if not isinstance(results, list):
            raise FoundationError(f"foundation.results: {path} holds a {type(results).__name__}, expected a list")
        for number, result in enumerate(results):
            if not isinstance(result, dict):
                raise FoundationError(
                    f"foundation.results: {path}: result {number} is {shown(result)}, expected an object"
                )
            key = "file_name" if "file_name" in result else "image_id"
            missing = {key, *_FIELDS, *([source.source_key] if source.source_key else [])} - set(result)
            if missing:
                raise FoundationError(f"foundation.results: {path}: result {number} lacks {', '.join(sorted(missing))}")
            if source.source_classes and str(result[source.source_key]) not in source.source_classes:
                continue
            place = f"{path}: result {number}"
            sound = result | _scalars(result, key, place) | {"segmentation": _compressed(result["segmentation"], place)}
            self.by_image.setdefault(sound[key], []).append(sound)
        return content

    def results_of(self, image_id: int | None, file_name: str) -> list[dict[str, Any]]:
        """The results of one image, by either of its names; empty if the files do not mention it."""
        fields = self._kept_fields
        found = [result for key in (file_name, image_id) if key is not None for result in self.by_image.get(key, ())]
        return [{name: result[name] for name in fields} for result in found]

    @property
    def _kept_fields(self) -> tuple[str, ...]:
        """Fields of a result to keep, including the source class if it is still to be chosen."""
        source = self.config.foundation
        return (*_FIELDS, source.source_key) if source.source_key and not source.source_classes else _FIELDS

    def check_images(self, images: Iterable[ImageName]) -> None:
        """Raises FoundationError if results match no image of a run, or several, since its sets may share ids.

        Also if results have ids that the run does not know, while it has images without ids and no result of them.
        """
        images = list(images)
        claims = Counter(key for image in images for key in image if key is not None and key in self.by_image)
        if self.by_image and images and not claims:
            raise FoundationError(
                f"foundation.results: {self.place} names none of the {len(images)} images of this data set: its first "
                f"is {next(iter(self.by_image))!r}, that of the data set {images[0][1]!r} ({_id_text(images[0])}); "
                "give every result the file_name of an image as the data set has it, or its image_id"
            )
        plain = [name for number, name in images if number is None]
        foreign = [key for key in self.by_image if isinstance(key, int) and key not in claims]
        if plain and foreign and not any(name in self.by_image for name in plain):
            raise FoundationError(
                f"foundation.results: {self.place} has results of the image_id {foreign[0]!r}, which no image of this "
                f"data set has, and none of its {len(plain)} images without ids, such as {plain[0]!r}; give results of "
                "these a file_name, or leave those of other images out"
            )
        twice = [key for key, count in claims.items() if count > 1]
        if twice:
            kind = "file_name" if isinstance(twice[0], str) else "image_id"
            raise FoundationError(
                f"foundation.results: {self.place}: the {kind} {twice[0]!r} stands for "
                f"{claims[twice[0]]} images of this data set; give every result a file_name that one image alone has"
            )

    def covers(self, images: Iterable[ImageName]) -> bool:
        """True if the files mention any of the images."""
        return any(key in self.by_image for image in images for key in image if key is not None)


def _id_text(image: ImageName) -> str:
    return "no id" if image[0] is None else f"id {image[0]}"


def _scalars(result: dict[str, Any], key: str, place: str) -> dict[str, Any]:
    """The image, class and score of a result, read strictly. Raises FoundationError if one cannot be read."""
    kinds: dict[str, Callable[[object], Any]] = {"category_id": integer, "score": scalar_number}
    kinds[key] = scalar_text if key == "file_name" else integer
    found = {}
    for name, read in kinds.items():
        try:
            found[name] = read(result[name])
        except ScalarError as error:
            raise FoundationError(f"foundation.results: {place}: `{name}` is {error}") from error
    if not 0 <= found["score"] <= 1:
        raise FoundationError(
            f"foundation.results: {place}: `score` is {found['score']:g}, expected a number from 0 to 1; divide "
            "percent by 100, or take the sigmoid of logits"
        )
    return found


def _compressed(segmentation: Any, place: str) -> dict[str, Any]:
    """A result's mask as compressed RLE with ASCII counts. Raises FoundationError if it is not RLE."""
    if isinstance(segmentation, list):
        raise FoundationError(
            f"foundation.results: {place} has a segmentation of polygons, expected RLE as COCO results have it; "
            "convert it with pycocotools.mask.frPyObjects and merge"
        )
    try:
        height, width = segmentation["size"]
        encoded = encode_segmentation(segmentation, height := integer(height), width := integer(width))
    except (MaskError, TypeError, ValueError, KeyError) as error:
        raise FoundationError(
            f"foundation.results: {place} has a segmentation that is no sound RLE ({error}); give results as COCO has "
            'them, {"size": [height, width], "counts": ...}'
        ) from error
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
