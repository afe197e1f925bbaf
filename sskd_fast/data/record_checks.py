"""Checks of the categories, the image records and the image files that a COCO annotation file names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sskd_fast.data.errors import DataError, Findings, Problem, named
from sskd_fast.data.pixels import image_size, in_threads, read_pixels


@dataclass
class CheckedFile:
    """What the checks of an annotation file know of it.

    records, paths, sizes: image id -> its record, its file, its (height, width).  class_names: in the order of the ids.
    """

    file: Path
    records: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    paths: dict[int, Path] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_categories(file: Path, categories: Sequence[Any], findings: Findings) -> dict[int, str]:
    """Checks the categories; returns id -> name of the sound ones, sorted by id."""
    names: dict[int, str] = {}
    for number, category in enumerate(categories):
        if (
            not isinstance(category, dict)
            or not _is_id(category.get("id"))
            or not isinstance(category.get("name"), str)
        ):
            found, expected = f"the record {category}", "an integer `id` and a `name`"
            findings.add(file, f"categories[{number}]", found, expected, "Correct the record.")
        elif category["id"] in names:
            found = f"its id is used by {names[category['id']]!r} and {category['name']!r}"
            cure = "Give one of them a new id, in its annotations too."
            findings.add(file, f"category {category['id']}", found, "an id of its own", cure)
        else:
            names[category["id"]] = category["name"]
    for name, count in Counter(names.values()).items():
        if count > 1:
            found = f"{count} categories have this name"
            findings.add(file, f"category {name!r}", found, "a name of its own", "Rename or merge them.")
    if not names:
        findings.add(file, "categories", "no category", "at least one", "Add the classes of the annotations.")
    ids = sorted(names)
    if ids and ids != list(range(ids[0], ids[0] + len(ids))):
        findings.warnings.append(
            f"{file}: the {len(ids)} category ids run from {ids[0]} to {ids[-1]} with gaps; "
            f"they are mapped to classes 0 to {len(ids) - 1} and back in results."
        )
    return {category_id: names[category_id] for category_id in ids}


def check_class_names(
    file: Path, present: Sequence[str], class_names: Sequence[str] | None, findings: Findings
) -> None:
    """Checks that every class asked for is there."""
    missing = [name for name in class_names or () if name not in present]
    if missing and present:
        cure = "Add the categories (they may have no annotation), or correct the class names."
        findings.add(
            file, "categories", f"no category named {named(missing)}", f"all of {named(class_names or ())}", cure
        )


def check_image_records(
    file: Path, folder: Path, images: Sequence[Any], checked: CheckedFile, findings: Findings
) -> None:
    """Checks the image records; fills the records and paths of `checked` with the sound ones."""
    first_use: dict[str, int] = {}
    for number, image in enumerate(images):
        if not isinstance(image, dict) or not _is_id(image.get("id")) or not isinstance(image.get("file_name"), str):
            found = f"the record {str(image)[:80]}"
            expected = "an object with an integer `id` and a `file_name`"
            findings.add(file, f"images[{number}]", found, expected, "Correct the record.")
            continue
        image_id, name = image["id"], image["file_name"]
        if image_id in checked.records:
            found = f"its id is used by {checked.records[image_id]['file_name']} and {name}"
            cure = "Number the images anew, in the annotations too."
            findings.add(file, f"image {image_id}", found, "an id of its own", cure)
            continue
        if name in first_use:
            findings.warnings.append(f"{file}: images {first_use[name]} and {image_id} are the same file, {name}.")
        first_use.setdefault(name, image_id)
        checked.records[image_id] = image
        checked.paths[image_id] = folder / name
    if not images:
        findings.add(file, "images", "no image", "at least one", "Add the images of the data set.")


def check_image_files(checked: CheckedFile, findings: Findings, decode: bool) -> None:
    """Opens every image; fills `checked.sizes` with what its masks are measured against."""

    def examine(image_id: int) -> tuple[int, int] | list[Problem]:
        path, stated = checked.paths[image_id], _stated_size(checked.records[image_id])
        try:
            if decode:
                height, width = read_pixels(path, stated).shape[:2]
                return height, width
            return image_size(path, stated)
        except DataError as error:
            return [replace(problem, item=f"image {image_id}") for problem in error.problems]

    for image_id, outcome in zip(checked.paths, in_threads(examine, checked.paths), strict=True):
        stated = _stated_size(checked.records[image_id])
        if isinstance(outcome, list):
            findings.problems.extend(outcome)
        elif stated is not None and stated != outcome:
            found = f"the image is {outcome[0]} x {outcome[1]} pixels (height x width)"
            expected = f"{stated[0]} x {stated[1]}, as {checked.file} states"
            cure = "Correct `height` and `width` of its record, or use the image that was annotated."
            findings.add(checked.paths[image_id], f"image {image_id}", found, expected, cure)
        size = stated or (None if isinstance(outcome, list) else outcome)
        if size is not None:
            checked.sizes[image_id] = size


def _stated_size(record: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = record.get("height"), record.get("width")
    return (int(height), int(width)) if height and width else None
