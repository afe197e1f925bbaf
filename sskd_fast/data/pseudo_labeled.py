"""Images with the labels of a teacher in place of their own, or with none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.masks import MaskLayers, pack_layers
from sskd_fast.data.pixels import ByteBudgetCache
from sskd_fast.data.source import ImageCollection
from sskd_fast.rle import MaskError, encode_segmentation


def unlabeled(base: ImageCollection, *, name: str = "") -> ImageCollection:
    """The images of `base` without its labels: every sample has instances None.  Decoded images are shared with it."""
    plain = ImageCollection(
        base.records,
        base.images_dir,
        name=name or base.name,
        class_names=base.class_names,
        category_ids=base.category_ids,
        stretch=base.stretch,
    )
    plain.pixel_cache, plain.decoded = base.pixel_cache, base.decoded
    return plain


class PseudoLabeled(ImageCollection):
    """The images of `base` with the instances of a COCO results list and their scores; labels of `base` are not seen.

    results: [{"image_id", "category_id", "segmentation": RLE, "score"}, ...]; one with "iscrowd": 1 is an unsure
    region, neither object nor background; results of images outside `base` are ignored, images without a result have no
    instance.  category_ids: class index -> COCO id of the results.  class_names: their names, by default those of
    `base`.  Raises DataError for an unknown category, and for a mask of another size when it is read.
    """

    def __init__(
        self,
        base: ImageCollection,
        results: Sequence[Mapping[str, Any]],
        category_ids: Sequence[int],
        *,
        class_names: Sequence[str] | None = None,
        name: str = "",
    ) -> None:
        super().__init__(
            base.records,
            base.images_dir,
            name=name or base.name,
            class_names=base.class_names if class_names is None else class_names,
            category_ids=category_ids,
            stretch=base.stretch,
        )
        self.pixel_cache, self.decoded = base.pixel_cache, base.decoded
        self.mask_cache = ByteBudgetCache(base.mask_cache.budget)
        self._class_of = {category_id: index for index, category_id in enumerate(self.category_ids)}
        self._results: dict[int, list[Mapping[str, Any]]] = {record.image_id: [] for record in self.records}
        unknown = sorted({result["category_id"] for result in results} - self._class_of.keys())
        if unknown:
            found, expected = f"results of the categories {unknown}", f"only {self.category_ids}"
            raise DataError([Problem(self._place(), "pseudo-labels", found, expected, "Label the images anew.")])
        for result in results:
            if result["image_id"] in self._results:
                self._results[result["image_id"]].append(result)

    def _place(self) -> str:
        return self.name or str(self.images_dir)

    def mask_layers(self, index: int) -> MaskLayers:
        """The pseudo-labels of an image as id maps, decoded at first use."""
        return self.mask_cache.get(self.records[index].image_id, lambda: self._decode(index))

    def _decode(self, index: int) -> MaskLayers:
        image_id = self.records[index].image_id
        height, width = self.size(index)
        results = self._results[image_id]
        try:
            encoded = [encode_segmentation(result["segmentation"], height, width) for result in results]
        except MaskError as error:
            problem = Problem(
                self._place(), f"pseudo-labels of image {image_id}", error.found, error.expected, error.cure
            )
            raise DataError([problem]) from error
        labels = [self._class_of[result["category_id"]] for result in results]
        scores = [float(result["score"]) for result in results]
        crowd = [bool(result.get("iscrowd", 0)) for result in results]
        return pack_layers(encoded, labels, scores, crowd, height, width)
