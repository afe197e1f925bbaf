"""Checks of the classes and image files named in labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from sskd_fast.data.classes import spelling_variants
from sskd_fast.data.coco_records import CocoRecords
from sskd_fast.data.copies import pixel_hash
from sskd_fast.data.errors import DataError, Findings, Problem, named
from sskd_fast.data.pixels import image_size, in_threads, read_pixels
from sskd_fast.data.source import ImageRecord


@dataclass
class CheckedFile:
    """Labels as the checks process them.

    images: by id.  sizes: image id -> (height, width) that its masks must have.  class_names: in the order of the ids.
    coco: the records, for a COCO file.  pixels: path -> `pixel_hash` of the decoded images.
    """

    file: Path
    images: dict[int, ImageRecord] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    coco: CocoRecords | None = None
    pixels: dict[Path, str] = field(default_factory=dict)


def check_classes(checked: CheckedFile, class_names: Sequence[str] | None, findings: Findings) -> None:
    """Checks that all requested classes exist; warns of names that may mean the same class, and of gaps in ids."""
    missing = [name for name in class_names or () if name not in checked.class_names]
    if missing and checked.class_names:
        cure = "Add the categories (they may have no annotation), or correct the class names."
        found, expected = f"no category named {named(missing)}", f"all of {named(class_names or ())}"
        findings.add(checked.file, "categories", found, expected, cure)
    for spelt in spelling_variants(checked.class_names):
        if not set(spelt) <= set(class_names or ()):
            listed = named([repr(name) for name in spelt])
            findings.warnings.append(
                f"{checked.file}: {listed} count as {len(spelt)} classes; if they are one, name it alike in all labels."
            )
    ids = sorted(checked.coco.categories) if checked.coco is not None else []
    if ids and ids != list(range(ids[0], ids[0] + len(ids))):
        findings.warnings.append(
            f"{checked.file}: the {len(ids)} category ids run from {ids[0]} to {ids[-1]} with gaps; "
            f"they are mapped to classes 0 to {len(ids) - 1} and back in results."
        )


def check_image_files(checked: CheckedFile, findings: Findings, decode: bool) -> None:
    """Opens all images without a problem so far; fills `checked.sizes` and, with `decode`, `checked.pixels`.

    decode: decode the whole image.  Shows a progress bar on a terminal.
    """
    hashes: dict[Path, str] = {}
    known = {problem.file for problem in findings.problems}
    there = [record for record in checked.images.values() if record.path not in known]
    with tqdm(total=len(there), desc=f"checking images of {checked.file.name}", disable=None, leave=False) as bar:

        def examine(record: ImageRecord) -> tuple[int, int] | list[Problem]:
            try:
                if decode:
                    pixels = read_pixels(record.path, record.size)
                    hashes[record.path] = pixel_hash(pixels)
                    return pixels.shape[0], pixels.shape[1]
                return image_size(record.path, record.size)
            except DataError as error:
                return [replace(problem, item=f"image {record.image_id}") for problem in error.problems]
            finally:
                bar.update()

        outcomes = in_threads(examine, there)
    checked.pixels.update((record.path, hashes[record.path]) for record in there if record.path in hashes)
    for record, outcome in zip(there, outcomes, strict=True):
        stated = record.size
        if isinstance(outcome, list):
            findings.problems.extend(outcome)
        elif stated is not None and stated != outcome:
            found = f"the image is {outcome[0]} x {outcome[1]} pixels (height x width)"
            expected = f"{stated[0]} x {stated[1]}, as {checked.file} states"
            cure = "Correct `height` and `width` of its record, or use the image that was annotated."
            findings.add(record.path, f"image {record.image_id}", found, expected, cure)
        size = stated or (None if isinstance(outcome, list) else outcome)
        if size is not None:
            checked.sizes[record.image_id] = size
    for image_id, record in checked.images.items():
        if record.size is not None:
            checked.sizes.setdefault(image_id, record.size)
