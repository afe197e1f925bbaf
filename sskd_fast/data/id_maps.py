"""Images with an annotation picture each, whose pixel values give instance and class.

Shape letters: H x W pixels, n instances.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.masks import MaskLayers
from sskd_fast.data.orientation import DECODING_ERRORS
from sskd_fast.data.pixels import any_size, image_size, in_threads
from sskd_fast.data.source import DEFAULT_CACHE_BYTES, ImageRecord
from sskd_fast.rle import MaskError


class IdMapImages(LabeledImages):
    """Images whose instances are pixel values of an annotation picture of the same size; subclasses define the values.

    label_files: image id -> annotation picture, which also states the image's size.  labels_dir, labels_pattern: the
    folder of the annotation pictures and the pattern of their names.
    name, stretch, cache_bytes: see ImageCollection.  A missing or faulty picture is reported when it is first read, or
    by `check_id_maps` beforehand.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        images_dir: Path,
        label_files: Mapping[int, Path],
        labels_dir: Path,
        labels_pattern: str,
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        name: str = "",
        stretch: bool = False,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self.label_files = dict(label_files)
        self.labels_dir = labels_dir
        self.labels_pattern = labels_pattern
        sizes = in_threads(_stated_size, [self.label_files[record.image_id] for record in records])
        super().__init__(
            [replace(record, size=size) for record, size in zip(records, sizes, strict=True)],
            images_dir,
            name=name,
            class_names=class_names,
            category_ids=category_ids,
            stretch=stretch,
            cache_bytes=cache_bytes,
        )

    @abstractmethod
    def read_labels(self, path: Path) -> MaskLayers:
        """The instances of an annotation picture.  Raises MaskError for values that the data set does not define."""

    def _decode(self, index: int) -> MaskLayers:
        record = self.records[index]
        path = self.label_files[record.image_id]
        try:
            return self.read_labels(path)
        except MaskError as error:
            item = f"image {record.image_id} ({record.file_name})"
            raise DataError([Problem(path, item, error.found, error.expected, error.cure)]) from error


def _stated_size(path: Path) -> tuple[int, int] | None:
    try:
        return image_size(path)
    except DataError:
        return None


def list_images(folder: Path, pattern: str, cure: str) -> list[Path]:
    """The files of a folder that match a pattern, sorted.  Raises DataError with the cure if there are none."""
    found = sorted(folder.glob(pattern))
    if not found:
        there = f"no file {pattern}" if folder.is_dir() else "the folder does not exist"
        raise DataError([Problem(folder, "", there, f"files {pattern}", cure)])
    return found


def read_id_map(path: Path) -> NDArray[Any]:
    """An annotation picture as stored, (H, W) or (H, W, channels).  Raises MaskError if it is missing or unreadable."""
    expected, cure = "a readable annotation picture", "Unpack the annotations of the data set again."
    try:
        with any_size, Image.open(path) as image:
            return np.asarray(image)
    except FileNotFoundError:
        raise MaskError("the annotation picture does not exist", expected, cure) from None
    except DECODING_ERRORS as error:
        raise MaskError(f"the annotation picture cannot be read ({error})", expected, cure) from error


def values_of(codes: NDArray[np.uint16]) -> NDArray[np.int64]:
    """The distinct values of a picture, in order."""
    present = np.zeros(1 << 16, dtype=np.bool_)
    present[codes.ravel()] = True
    return np.flatnonzero(present)


def layers_of(
    codes: NDArray[np.uint16], values: NDArray[np.int64], labels: NDArray[np.int64], crowd: NDArray[np.bool_]
) -> MaskLayers:
    """Makes an instance of the pixels (H, W) with each of n values, given its label and crowd flag."""
    table = np.zeros(1 << 16, dtype=np.uint8 if len(values) <= np.iinfo(np.uint8).max else np.uint16)
    table[values] = np.arange(1, len(values) + 1)
    return MaskLayers(
        ids=np.take(table, codes)[None],
        layer=np.zeros(len(values), dtype=np.int64),
        labels=labels.astype(np.int64),
        scores=np.ones(len(values), dtype=np.float32),
        crowd=crowd.astype(np.bool_),
    )
