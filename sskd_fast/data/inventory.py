"""Summary of a run's image sets in at most ten lines, for a first-time reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sskd_fast.data.copies import copies
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.image_folders import pages_words
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.source import ImageCollection


@dataclass(frozen=True)
class Objects:
    """Counts of the objects in labelled images.

    counts: objects per image, without crowd regions and masks without a pixel.  empty_masks: masks without a pixel.
    repeated: objects with the class and mask of another one in the same image.  areas: pixels of each object.
    """

    counts: tuple[int, ...]
    empty_masks: int = 0
    repeated: int = 0
    areas: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """The median number of objects per image; 0 without images."""
        return float(np.median(self.counts)) if self.counts else 0.0

    @property
    def most(self) -> int:
        """The largest number of objects on an image; 0 without images."""
        return max(self.counts, default=0)


def count_objects(source: LabeledImages) -> Objects:
    """Counts the objects of all images.  Raises DataError for a faulty mask."""
    counts, areas = list[int](), list[float]()
    empty = repeated = 0
    for index in range(len(source)):
        annotations = source.annotations(index)
        single = [(a["category_id"], a["segmentation"]["counts"]) for a in annotations if not a["iscrowd"]]
        counts.append(len(single))
        areas += [a["area"] for a in annotations if not a["iscrowd"]]
        empty += source.listed(index) - len(annotations)
        repeated += len(single) - len(set(single))
    return Objects(tuple(counts), empty, repeated, tuple(areas))


def inventory(
    sets: Mapping[str, ImageCollection], objects: Mapping[str, Objects], *, detections: int, queries: int
) -> list[str]:
    """The lines of the summary.  sets: by kind of image, "labelled" first.  objects: of the sets with labels.

    detections, queries: most objects that the model finds on an image, and looks for in a crop.
    """
    classes = _counted(len(sets["labelled"].class_names), "class", "classes")
    lines = [f"labelled images: {_set_words(objects['labelled'])} of {classes}"]
    lines.append(objects_words(objects, detections, queries))
    for name, source in list(sets.items())[1:]:
        found = objects.get(name)
        words = f"{len(source)}" if found is None else f"{_set_words(found)}, {found.most} at most on one"
        lines.append(f"{name} images: {words}")
    sources = list(sets.values())
    lines.append(_sizes_words([source.size(i) for source in sources for i in range(len(source))]))
    lines += [words for source in sources if isinstance(source, ImageFolder) for words in folder_words(source)]
    return lines + file_words(sources, objects["labelled"])


def objects_words(objects: Mapping[str, Objects], detections: int, queries: int) -> str:
    """A line on the objects per image and the most that a model finds; objects: as in `inventory`."""
    labeled, val = objects["labelled"], objects.get("validation")
    more = f", {val.most} on a validation image" if val is not None and val.most > labeled.most else ""
    return (
        f"objects on a labelled image: {labeled.median:g} in the median, {labeled.most} at most{more}; the model finds "
        f"up to {detections} (--max-detections) and looks for {queries} in each crop (--num-queries)"
    )


def folder_words(source: ImageFolder) -> list[str]:
    """A line on the skipped files of a folder; no line if there are none."""
    return [f"{source.images_dir}: {words}"] if (words := source.listing.passed_words) else []


def file_words(sources: Sequence[ImageCollection], objects: Objects) -> list[str]:
    """Lines on extra pages, masks without a pixel, and duplicates, if there are any."""
    paths = [record.path for source in sources for record in source.records]
    lines = [f"pages: {pages}"] if (pages := pages_words(paths)) else []
    if objects.empty_masks:
        lines.append(f"masks dropped: {_counted(objects.empty_masks, 'mask', 'masks')} without a pixel")
    doubles = len(copies(paths))
    if doubles or objects.repeated:
        files = _counted(doubles, "image file", "image files")
        drawn = _counted(objects.repeated, "object", "objects")
        lines.append(f"duplicates: {files} with the content of another one, {drawn} drawn twice")
    return lines


def _set_words(objects: Objects) -> str:
    empty = sum(not count for count in objects.counts)
    shown = f"{empty} without an object" if empty else "each with an object"
    return f"{len(objects.counts)}, {shown}; {_counted(sum(objects.counts), 'object', 'objects')}"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _sizes_words(sizes: Sequence[tuple[int, int]]) -> str:
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    small, middle, large = (f"{h} x {w}" for h, w in (ordered[0], ordered[len(ordered) // 2], ordered[-1]))
    if small == large:
        return f"size of every image (height x width): {small}"
    return f"sizes (height x width): {small} the smallest, {middle} in the median, {large} the largest"
