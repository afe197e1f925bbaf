"""YOLO's images from a folder or a list, and their label files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sskd_fast.data.errors import DataError, Findings, Problem, named
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.formats.documents import image_name
from sskd_fast.data.image_folders import HIDDEN, OTHER, SECOND_LINK, Listing

_LABELS = ".txt"
# Suffixes of other files that data sets of this format have beside their images.
_BESIDE = (_LABELS, ".cache", ".csv", ".db", ".html", ".ini", ".json", ".md", ".npy", ".xml", ".yaml", ".yml", ".zip")


def images_of(place: Path, root: Path, findings: Findings) -> dict[Path, Path]:
    """Maps images, from a folder or a text file that lists them, to label files, which may be missing.

    root: the folder of data.yaml.  Problems: invalid file names, images that share a label file, and label files of a
    folder without an image.  A warning names skipped files of the folder that may be images.
    """
    if place.is_file():
        return _labels_of(_listed_images(place, root, findings), findings)
    listing = ImageFolder(place).listing
    labels = _labels_of([place / name for name in listing.names], findings)
    passed = _perhaps_images(listing)
    if words := passed.passed_words:
        findings.warnings.append(f"{place}: {words}. Convert what is an image to PNG.")
    _check_images_exist(place, labels, passed, findings)
    return labels


def _perhaps_images(listing: Listing) -> Listing:
    """The skipped files of a listing that may be images and were not left out on purpose."""
    others = [name for name in listing.passed.get(OTHER, []) if not name.lower().endswith(_BESIDE)]
    passed = {reason: names for reason, names in listing.passed.items() if reason not in (HIDDEN, SECOND_LINK, OTHER)}
    return Listing(passed=passed | ({OTHER: others} if others else {}))


def _listed_images(place: Path, root: Path, findings: Findings) -> list[Path]:
    try:
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        found, expected = f"it cannot be read ({error})", "a text file that lists images"
        raise DataError([Problem(place, "", found, expected, "Correct data.yaml.")]) from error
    paths = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        try:
            image_name(place, f"line {number}", line)
        except DataError as error:
            findings.problems.extend(error.problems)
            continue
        tried = [base / line for base in (root, place.parent, Path())]
        paths.append(next((path for path in tried if os.path.isfile(path)), tried[0]))
    return paths


def label_path(image: Path) -> Path:
    """The label file of an image: its path with the last folder `images` replaced by `labels`."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(_LABELS)


def _labels_of(paths: Sequence[Path], findings: Findings) -> dict[Path, Path]:
    """Maps images to label files; adds a problem for images that share one."""
    wanted = {path: label_path(path) for path in paths}
    spelt = {label.with_suffix(_LABELS): label for label in _label_files({label.parent for label in wanted.values()})}
    labels: dict[Path, Path] = {}
    owner: dict[Path, Path] = {}
    for path, label in wanted.items():
        if owner.setdefault(label, path) != path:
            found = f"the images {owner[label].name} and {path.name} share it"
            findings.add(label, "", found, "one image a label file", "Rename one of the images and its labels.")
        else:
            labels[path] = spelt.get(label, label)
    return labels


def _label_files(folders: Iterable[Path]) -> list[Path]:
    """The label files in folders, also with an upper-case suffix; those with the usual suffix come last."""
    files = [path for folder in folders if os.path.isdir(folder) for path in folder.iterdir()]
    return sorted(path for path in files if path.suffix.lower() == _LABELS)


def _check_images_exist(place: Path, labels: Mapping[Path, Path], passed: Listing, findings: Findings) -> None:
    known = set(labels.values())
    unread = {label_path(place / name): name for names in passed.passed.values() for name in names}
    for label in sorted(label_path(place / "any.png").parent.rglob("*")):
        if label.suffix.lower() != _LABELS or label in known or label.name.lower() == "classes.txt":
            continue
        name = unread.get(label.with_suffix(_LABELS))
        found, cure = "it has no image", "Add the image, or remove the label file."
        if name is not None:
            found, cure = f"it has no image that is read, but {name}", "Convert the image to PNG."
        findings.add(label, "", found, f"one of the same name below {place}", cure)


def check_labels_exist(labels: Mapping[Path, Path], findings: Findings) -> None:
    """Warns of images without a label file; adds a problem if no image has one."""
    missing = [path.name for path, label in labels.items() if not os.path.exists(label)]
    folder = next(iter(labels.values()), Path()).parent
    if missing and len(missing) == len(labels):
        cure = "Put the labels beside a folder called `images`, into one called `labels`."
        findings.add(folder, "", "no label file of any image", "a text file for each", cure)
    elif missing:
        findings.warnings.append(
            f"{folder}: {len(missing)} of {len(labels)} images have no label file ({named(missing)}) and count as "
            f"images without objects, as YOLO defines it."
        )
