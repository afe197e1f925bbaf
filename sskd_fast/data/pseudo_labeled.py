"""Images with a teacher's labels instead of their own, or without labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.masks import MaskLayers, pack_layers
from sskd_fast.data.pixels import ByteBudgetCache
from sskd_fast.data.source import ImageCollection
from sskd_fast.rle import MaskError, encode_segmentation


def unlabeled(base: ImageCollection, *, name: str = "") -> ImageCollection:
    """The images of `base` without labels: instances are None.  Decoded images are shared with `base`."""
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


class LabelsByImage(Protocol):
    """Labels looked up image by image, so that they need not all be in memory."""

    @property
    def categories(self) -> Collection[int]:
        """The COCO ids of the categories that occur."""
        ...

    def of_image(self, image_id: int) -> Sequence[Mapping[str, Any]]:
        """The COCO results of an image."""
        ...


class ListedLabels:
    """A COCO results list as labels by image; an image without results has none."""

    def __init__(self, results: Sequence[Mapping[str, Any]]) -> None:
        self.categories = {int(result["category_id"]) for result in results}
        self._results: dict[int, list[Mapping[str, Any]]] = {}
        for result in results:
            self._results.setdefault(result["image_id"], []).append(result)

    def of_image(self, image_id: int) -> Sequence[Mapping[str, Any]]:
        """The results of an image, in the order of the list."""
        return self._results.get(image_id, ())


class PseudoLabeled(ImageCollection):
    """The images of `base` with pseudo-labels and their scores instead of the labels of `base`.

    labels: a COCO results list [{"image_id", "category_id", "segmentation": RLE, "score"}, ...], or labels by image,
    read with the image.  A label with "iscrowd": 1 is an unsure region, which the losses ignore.  Results on images
    outside `base` are ignored.  category_ids: class index -> COCO id of the labels.  class_names: class names, by
    default those of `base`.  weighted: keep the scores as weights in training; otherwise all scores are 1.
    Raises DataError for an unknown category, and, when a mask is read, for one of another size.
    """

    def __init__(
        self,
        base: ImageCollection,
        labels: Sequence[Mapping[str, Any]] | LabelsByImage,
        category_ids: Sequence[int],
        *,
        class_names: Sequence[str] | None = None,
        name: str = "",
        weighted: bool = True,
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
        self._labels: LabelsByImage = ListedLabels(labels) if isinstance(labels, Sequence) else labels
        self._weighted = weighted
        unknown = sorted(set(self._labels.categories) - self._class_of.keys())
        if unknown:
            found, expected = f"results of the categories {unknown}", f"only {self.category_ids}"
            raise DataError([Problem(self._place(), "pseudo-labels", found, expected, "Label the images again.")])

    def _place(self) -> str:
        return self.name or str(self.images_dir)

    def mask_layers(self, index: int) -> MaskLayers:
        """The pseudo-labels of an image as id maps, decoded on first use."""
        return self.mask_cache.get(self.records[index].image_id, lambda: self._decode(index))

    def _decode(self, index: int) -> MaskLayers:
        image_id = self.records[index].image_id
        height, width = self.size(index)
        results = self._labels.of_image(image_id)
        try:
            encoded = [encode_segmentation(result["segmentation"], height, width) for result in results]
        except MaskError as error:
            problem = Problem(
                self._place(), f"pseudo-labels of image {image_id}", error.found, error.expected, error.cure
            )
            raise DataError([problem]) from error
        labels = [self._class_of[result["category_id"]] for result in results]
        scores = [float(result["score"]) if self._weighted else 1.0 for result in results]
        crowd = [bool(result.get("iscrowd", 0)) for result in results]
        return pack_layers(encoded, labels, scores, crowd, height, width)
