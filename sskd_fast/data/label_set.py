"""The labels of one set with their image folder, as the checks process them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sskd_fast.data.coco_records import coco_records
from sskd_fast.data.copies import copies, same_pixels
from sskd_fast.data.errors import DataError, Findings, Problem
from sskd_fast.data.formats.table import Reader
from sskd_fast.data.image_files import image_records
from sskd_fast.data.mask_checks import check_annotations
from sskd_fast.data.orientation_checks import check_orientations
from sskd_fast.data.record_checks import CheckedFile, check_classes, check_image_files


@dataclass
class LabelSet:
    """Labels, their images, and the problems found in them.  checked: the result of `read`."""

    file: Path
    images: Path
    problems: list[Problem] = field(default_factory=list)
    checked: CheckedFile = field(init=False)

    def read(self, class_names: Sequence[str] | None, read: Reader, confine: bool, warnings: list[str]) -> CheckedFile:
        """Reads the records and finds their image files, without decoding anything."""
        self.checked, own = CheckedFile(self.file), Findings(self.problems, warnings)
        try:
            content = read(self.file, self.images, tuple(class_names or ()))
            own.warnings.extend(content.get("warnings", ()))
            self.checked.coco = coco_records(content, self.file, own)
            self.checked.images = image_records(self.checked.coco, self.images, own, confine=confine)
        except DataError as error:
            own.problems.extend(error.problems)
            own.warnings.extend(error.warnings)
        if self.checked.coco is not None:
            categories = sorted(self.checked.coco.categories.values(), key=lambda category: int(category["id"]))
            self.checked.class_names = [category["name"] for category in categories]
            check_classes(self.checked, class_names, own)
        return self.checked

    def examined(self, warnings: list[str], decode: bool) -> list[Problem]:
        """Opens the images and decodes the masks; returns all problems of the set."""
        own = Findings(self.problems, warnings)
        if self.checked.coco is not None:
            check_image_files(self.checked, own, decode)
            check_orientations(self.checked.file, list(self.checked.images.values()), own)
            check_annotations(self.checked, own)
            _warn_of_copies(self.checked, own)
        return self.problems


def check_paths(sets: Sequence[LabelSet], unlabeled: Path | None) -> None:
    """Raises DataError with all given paths that do not exist."""
    findings = Findings()
    for part in sets:
        if not part.file.exists():
            cure = f"Correct the path{_similar(part.file)}."
            findings.add(part.file, "", "the annotation file does not exist", "labels of the images", cure)
        elif not part.images.is_dir():
            _add_no_folder(part.images, f"the folder with the images of {part.file}", findings)
    if unlabeled is not None and not unlabeled.is_dir():
        _add_no_folder(unlabeled, "a folder of images", findings)
    if findings.problems:
        raise DataError(findings.problems)


def _add_no_folder(path: Path, expected: str, findings: Findings) -> None:
    if path.exists():
        findings.add(path, "", "it is a file", expected, f"Give the folder of the images, such as {path.parent}.")
    else:
        findings.add(path, "", "the folder does not exist", expected, f"Correct its path{_similar(path)}.")


def _similar(path: Path) -> str:
    """The end of a sentence that suggests the most similar path beside a missing one; "" if there is none."""
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, beside, 1, 0.6)
    return f" (perhaps {path.parent / close[0]})" if close else ""


def _warn_of_copies(checked: CheckedFile, findings: Findings) -> None:
    """Warns of image files in one set with the same content or pixels under different names."""
    found = copies(record.path for record in checked.images.values())
    if found:
        copy, first = next(iter(found.items()))
        findings.warnings.append(
            f"{checked.file}: {len(found)} of {len(checked.images)} images have the content of another one "
            f"({copy.name} that of {first.name}): splits keep them on one side, but they count twice."
        )
    resaved = {
        path: first
        for path, first in same_pixels(checked.pixels, checked.pixels).items()
        if path != first and path not in found
    }
    if resaved:
        copy, first = next(iter(resaved.items()))
        findings.warnings.append(
            f"{checked.file}: {len(resaved)} of {len(checked.images)} images show the pixels of another one in a file "
            f"of other bytes ({copy.name} those of {first.name}): they count twice, and splits may put them on both "
            "sides. Remove the copies."
        )
