"""Cityscapes in its official folders: leftImg8bit/<split>/<city>/*.png, and gtFine with *_gtFine_instanceIds.png."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sskd_fast.data.id_maps import IdMapImages, layers_of, list_images, read_id_map, values_of
from sskd_fast.data.masks import MaskLayers
from sskd_fast.data.source import DEFAULT_CACHE_BYTES, ImageRecord
from sskd_fast.rle import MaskError

# The classes with instance evaluation, and their label ids.
CLASSES = {
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
LAST_LABEL_ID = 33
PER_CLASS = 1000  # an instance's value is its label id times this, plus its number
_IMAGE, _LABELS = "_leftImg8bit.png", "_gtFine_instanceIds.png"
_CURE = (
    "Let data.root be the folder that holds leftImg8bit and gtFine, as leftImg8bit_trainvaltest.zip and "
    "gtFine_trainvaltest.zip unpack."
)


class Cityscapes(IdMapImages):
    """The fine annotations of a split ("train" or "val") with their eight thing classes.

    A group that annotators did not separate has the bare label id as its value.  It is a crowd region of its class, as
    in the official evaluation.  Caravans, trailers and everything else are background.  Category ids are label ids;
    each image has the field "city".  Raises DataError if the folders have no image.
    """

    def __init__(
        self, root: Path, split: str, *, name: str = "", stretch: bool = False, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        images, labels = root / "leftImg8bit" / split, root / "gtFine" / split
        records, label_files = [], {}
        for number, path in enumerate(list_images(images, f"*/*{_IMAGE}", _CURE), 1):
            place = path.relative_to(images)
            records.append(
                ImageRecord(number, place.as_posix(), images, extra={"city": path.parent.name}, numbered=True)
            )
            label_files[number] = labels / place.with_name(place.name.removesuffix(_IMAGE) + _LABELS)
        super().__init__(
            records,
            images,
            label_files,
            labels,
            f"*/*{_LABELS}",
            class_names=list(CLASSES),
            category_ids=list(CLASSES.values()),
            name=name or f"Cityscapes {split}",
            stretch=stretch,
            cache_bytes=cache_bytes,
        )

    def read_labels(self, path: Path) -> MaskLayers:
        """The instances of a *_gtFine_instanceIds.png.  Raises MaskError if its values are not instance ids."""
        picture = read_id_map(path)
        if picture.ndim != 2 or picture.dtype == np.uint8 or not 0 <= picture.max() < 1 << 16:
            raise MaskError(
                f"a picture of {picture.shape[2] if picture.ndim > 2 else 1} channels of {picture.dtype}",
                "one channel of 16 bits",
                "Use the *_gtFine_instanceIds.png files, not labelIds, color or instanceTrainIds.",
            )
        codes = picture.astype(np.uint16, copy=False)
        values = values_of(codes)
        label_ids = np.where(values < PER_CLASS, values, values // PER_CLASS)
        if label_ids.max() > LAST_LABEL_ID:
            raise MaskError(
                f"the value {int(values[label_ids > LAST_LABEL_ID][0])}",
                f"label ids up to {LAST_LABEL_ID}, or such an id times {PER_CLASS} plus the number of an instance",
                "Use the *_gtFine_instanceIds.png files, not instanceTrainIds.",
            )
        things = np.isin(label_ids, list(CLASSES.values()))
        values, label_ids = values[things], label_ids[things]
        return layers_of(codes, values, np.searchsorted(self.category_ids, label_ids), values < PER_CLASS)
