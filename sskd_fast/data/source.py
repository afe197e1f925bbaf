"""The common interface of all image sets, labelled or not: a protocol, and the collection that implements it.

Shape letters: H x W pixels of an image, h x w of a window, n instances.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.instances import Instances, Sample
from sskd_fast.data.masks import MaskLayers
from sskd_fast.data.pixels import ByteBudgetCache, image_size, read_pixels, stored_pixels

DEFAULT_CACHE_BYTES = 1 << 30


class ImageSource(Protocol):
    """A set of images (labelled, pseudo-labelled or plain) that views and batches are drawn from."""

    name: str
    class_names: list[str]
    category_ids: list[int]

    @property
    def image_ids(self) -> list[int]:
        """The ids of the images, in order."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The whole image with its instances."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of an image, without decoding it."""
        ...

    def window(
        self,
        index: int,
        top: int,
        left: int,
        height: int,
        width: int,
        *,
        size: tuple[int, int] | None = None,
    ) -> Sample:
        """A crop of an image, optionally resized, with the instances that touch it."""
        ...


_NO_FIELDS: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a set: id, file, size if the annotations state it, and other fields as text.

    numbered: True if the image had no id and was given a number here, which nothing outside the set can refer to.
    Some 200 bytes, for sets of millions of images. Records share the objects for the folder and the absence of fields.
    A path, which is larger than all the rest, is made when it is asked for.
    """

    image_id: int
    file_name: str
    folder: Path
    size: tuple[int, int] | None = None
    extra: Mapping[str, str] = field(default_factory=lambda: _NO_FIELDS)
    numbered: bool = False

    @property
    def named_by(self) -> tuple[int | None, str]:
        """The names of the image in predictions made elsewhere: its id, None if it is `numbered`, and its file."""
        return None if self.numbered else self.image_id, self.file_name

    @property
    def path(self) -> Path:
        """The file; its path may continue into an archive."""
        return self.folder / self.file_name


class ImageCollection(Dataset[Sample]):
    """Images on disk, cached in memory once decoded; without labels unless a subclass adds them.

    images_dir: the folder of the files.  class_names, category_ids: class index -> name, COCO id.
    stretch: percentile stretch of each image (`stretch_intensity`), for microscopy.  cache_bytes: memory for decoded
    images, and as much again for masks.  Copies made by `subset` share the caches.  `decoded`: a folder that caches
    decoded images (`stored_pixels`), None for none.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        images_dir: Path,
        *,
        name: str = "",
        class_names: Sequence[str] = (),
        category_ids: Sequence[int] = (),
        stretch: bool = False,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self.records = list(records)
        self.images_dir = Path(images_dir)
        self.name = name
        self.class_names = list(class_names)
        self.category_ids = list(category_ids)
        self.stretch = stretch
        self.pixel_cache: ByteBudgetCache[NDArray[np.uint8]] = ByteBudgetCache(cache_bytes)
        self.mask_cache: ByteBudgetCache[MaskLayers] = ByteBudgetCache(cache_bytes)
        self.decoded: Path | None = None
        self._sizes: dict[int, tuple[int, int]] = {}

    @property
    def image_ids(self) -> list[int]:
        """The ids of the images, in order."""
        return [record.image_id for record in self.records]

    @property
    def file_names(self) -> list[str]:
        """The names of the image files relative to `images_dir`, in order."""
        return [record.file_name for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of an image, from its annotations or else from the header of its file."""
        record = self.records[index]
        return record.size or self._size_in_file(record)

    def _size_in_file(self, record: ImageRecord) -> tuple[int, int]:
        if record.image_id not in self._sizes:
            self._sizes[record.image_id] = image_size(record.path)
        return self._sizes[record.image_id]

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """The decoded image, (H, W) grey or (H, W, 3) RGB uint8; do not write to it."""
        record = self.records[index]
        return self.pixel_cache.get(record.path, lambda: self._read(record))

    def _read(self, record: ImageRecord) -> NDArray[np.uint8]:
        size = record.size or self._size_in_file(record)
        if self.decoded is None:
            return read_pixels(record.path, size, stretch=self.stretch)
        return stored_pixels(self.decoded, record.path, size, stretch=self.stretch)

    def image(self, index: int) -> Tensor:
        """The whole image without its instances, (3, H, W) uint8 RGB."""
        return image_tensor(self.pixels(index))

    def mask_layers(self, index: int) -> MaskLayers | None:
        """The instances of an image as id maps; None if the set has no labels."""
        return None

    def __getitem__(self, index: int) -> Sample:
        """The whole image with its instances.  Raises IndexError past the end."""
        return self.window(index, 0, 0, *self.size(index))

    def window(
        self,
        index: int,
        top: int,
        left: int,
        height: int,
        width: int,
        *,
        size: tuple[int, int] | None = None,
    ) -> Sample:
        """A crop of an image with the instances that touch it, in the order of the annotations.

        top, left, height, width: in pixels of the image.  size: (h, w) to resize the crop to: bilinear with
        antialiasing for the image, nearest for the masks.  Raises ValueError if the window is empty or leaves the
        image.
        """
        record = self.records[index]
        full_height, full_width = self.size(index)
        if not (0 <= top < top + height <= full_height and 0 <= left < left + width <= full_width):
            raise ValueError(
                f"image {record.image_id} ({record.file_name}): window of {height} x {width} at ({top}, {left}); "
                f"expected one within its {full_height} x {full_width} pixels"
            )
        crop = self.pixels(index)[top : top + height, left : left + width]
        layers = self.mask_layers(index)
        instances = None
        if layers is not None:
            rows, columns = _grid(top, height, size and size[0]), _grid(left, width, size and size[1])
            instances = _instances(layers, rows, columns)
        return Sample(image_tensor(crop, size), instances, record.image_id, record.file_name, record.extra)

    def image_field(self, key: str) -> list[str]:
        """The field `key` of all image records, as text.  Raises DataError if an image lacks it."""
        for record in self.records:
            if key not in record.extra:
                known = ", ".join(sorted(record.extra)) or "none"
                item = f"image {record.image_id} ({record.file_name})"
                cure = f"Use one of its fields ({known}), or add {key!r} to every image record."
                found, expected = f"has no field {key!r}", "the same fields in every image record"
                raise DataError([Problem(self.name or self.images_dir, item, found, expected, cure)])
        return [record.extra[key] for record in self.records]

    def subset(self, image_ids: Iterable[int]) -> Self:
        """The set restricted to these images, in this order.  Raises ValueError for an unknown id."""
        by_id = {record.image_id: record for record in self.records}
        wanted = list(image_ids)
        unknown = [image_id for image_id in wanted if image_id not in by_id]
        if unknown:
            raise ValueError(
                f"{self.name or self.images_dir}: {len(unknown)} image ids that are not in the set: {unknown[:5]}; "
                f"expected ids of its {len(self)} images. Was the list of ids drawn from another annotation file?"
            )
        chosen = copy.copy(self)
        chosen.records = [by_id[image_id] for image_id in wanted]
        return chosen


def _grid(start: int, length: int, out: int | None) -> NDArray[np.int64] | slice:
    """The source pixels at the centres of `out` pixels that cover [start, start + length)."""
    if out is None or out == length:
        return slice(start, start + length)
    return start + ((2 * np.arange(out, dtype=np.int64) + 1) * length) // (2 * out)


def image_tensor(crop: NDArray[np.uint8], size: tuple[int, int] | None = None) -> Tensor:
    """Converts (h, w) or (h, w, 3) uint8 to a (3, h', w') uint8 tensor that shares no memory with the crop."""
    pixels = torch.from_numpy(crop if crop.ndim == 3 else crop[..., None]).permute(2, 0, 1)
    if size is not None and size != crop.shape[:2]:
        pixels = functional.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
    if pixels.shape[0] == 1:
        pixels = pixels.expand(3, -1, -1)
    return pixels.clone(memory_format=torch.contiguous_format)


def _instances(layers: MaskLayers, rows: NDArray[np.int64] | slice, columns: NDArray[np.int64] | slice) -> Instances:
    kept, masks = layers.window(rows, columns)
    return Instances(
        masks=torch.from_numpy(masks),
        labels=torch.from_numpy(layers.labels[kept]),
        scores=torch.from_numpy(layers.scores[kept]),
        crowd=torch.from_numpy(layers.crowd[kept]),
    )
