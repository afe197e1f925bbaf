"""YOLO segmentation: data.yaml, and a text file per image with a line "class x1 y1 x2 y2 ..." per object, in [0, 1].

The format has neither holes nor several parts.  By convention, one polygon runs around all of them, joined by cuts of
zero width.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from sskd_fast import scalars
from sskd_fast.data.errors import DataError, Findings, Problem, named
from sskd_fast.data.formats import shapes
from sskd_fast.data.formats.collected import Collected
from sskd_fast.data.formats.contours import joined, outlines
from sskd_fast.data.formats.own_files import OwnFiles
from sskd_fast.data.formats.written import LabeledImage, labeled_images
from sskd_fast.data.formats.yolo_files import check_labels_exist, images_of
from sskd_fast.data.pixels import MISSING_IMAGE, image_size, in_threads
from sskd_fast.rle import MaskError, box_of_rle
from sskd_fast.scalars import ScalarError
from sskd_fast.yaml_text import from_yaml

_SLACK = 0.01
_NAMES_CURE = "Write `names:` as a list, or as `0: name` lines; put names such as yes, no, on or 1 in quotes."


def yolo_splits(root: Path) -> tuple[Path, Path]:
    """Resolves `train` and `val` of the data.yaml in a folder: folders of images, or text files that list them.

    `path` of data.yaml is looked for beside that file, then in the working directory.  `valid` replaces a missing
    `val`.  Raises DataError with all problems of data.yaml, including the class names.
    """
    file, content = _read_yaml(root)
    findings = Findings()
    try:
        _class_names(file, content)
    except DataError as error:
        findings.problems.extend(error.problems)
    # Roboflow's exports call it `valid`.
    validation = "valid" if content.get("val") is None and "valid" in content else "val"
    places = [_split(file, content, key, findings) for key in ("train", validation)]
    if findings.problems:
        raise DataError(findings.problems)
    return places[0], places[1]


def read_yolo(place: Path, images: Path, classes: Sequence[str] = ()) -> dict[str, Any]:
    """YOLO's labels as a COCO instances dict; category ids are class indices + 1.

    place: a folder of images with their labels, or a text file that lists images.  images: the folder of data.yaml,
    which names the classes; file names are relative to it.  The labels of .../images/a.jpg are .../labels/a.txt;
    without a folder `images`, a.txt beside it.  An empty or missing label file means an image without objects.
    Raises DataError with all problems.
    """
    file, content = _read_yaml(images)
    names = _class_names(file, content)
    collected = Collected(names)
    labels = images_of(place, images, collected.findings)
    for path, size in zip(labels, in_threads(_size, labels), strict=True):
        name = path.relative_to(images).as_posix() if path.is_relative_to(images) else str(path)
        if isinstance(size, list):
            collected.findings.problems.extend(size)
        elif collected.image(name, size, labels[path]) and os.path.exists(labels[path]):
            _read_labels(labels[path], name, size, names, collected)
    check_labels_exist(labels, collected.findings)
    return collected.content()


def _read_yaml(root: Path) -> tuple[Path, Mapping[str, Any]]:
    files = (
        [root / "data.yaml"] if (root / "data.yaml").is_file() else sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    )
    if len(files) != 1:
        found = f"{len(files)} YAML files ({named([f.name for f in files])})" if files else "no data.yaml"
        raise DataError([Problem(root, "", found, "the data.yaml of a YOLO data set", "Correct --root (data.root).")])
    try:
        content = from_yaml(files[0].read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        cure = "Correct the file."
        raise DataError([Problem(files[0], "", f"it cannot be read ({error})", "YAML", cure)]) from error
    if not isinstance(content, dict):
        found, expected = f"a YAML {type(content).__name__}", "the keys names, train and val"
        raise DataError([Problem(files[0], "", found, expected, "Write them.")])
    return files[0], content


def _class_names(file: Path, content: Mapping[str, Any]) -> list[str]:
    """The class names by index, from a list or a mapping of all indices."""
    names = content.get("names")
    listed = dict(enumerate(names)) if isinstance(names, list) else names if isinstance(names, dict) else {}
    by_index = {str(index): name for index, name in listed.items()}
    ordered = [by_index.get(str(index)) for index in range(len(by_index))]
    problems = []
    if not listed or not all(isinstance(name, str) and name for name in ordered):
        expected = "a list of names, or one for each class number from 0 without gaps"
        problems.append(Problem(file, "names", f"the value {names!r}", expected, _NAMES_CURE))
    twice = [name for name, count in Counter(name for name in ordered if isinstance(name, str)).items() if count > 1]
    if twice:
        problems.append(Problem(file, "names", f"{named(twice)} more than once", "different names", "Rename them."))
    if "nc" in content and not _is_count(content["nc"], len(listed)):
        cure = "Correct one of them, or remove `nc`."
        problems.append(Problem(file, "nc", f"{content['nc']} classes", f"{len(listed)}, as `names` has", cure))
    if problems:
        raise DataError(problems)
    return [str(name) for name in ordered]


def _is_count(value: object, count: int) -> bool:
    try:
        return scalars.integer(value) == count
    except ScalarError:
        return False


def _split(file: Path, content: Mapping[str, Any], key: str, findings: Findings) -> Path:
    value, root = content.get(key), content.get("path")
    if not isinstance(value, str):
        cure = "Give one folder, or a text file that lists the images of several."
        findings.add(file, key, f"the value {value!r}", "a folder of images or a text file that lists them", cure)
        return file
    # Some exports name splits by "../" relative to a folder below that of data.yaml.
    bases = [file.parent / str(root), Path(str(root))] if root else [file.parent]
    tried = [base / part for base in bases for part in (value, value.removeprefix("../"))]
    found = next((place for place in tried if os.path.exists(place)), None)
    if found is None:
        cure = f"Correct `{key}` or `path`; without `path`, it is relative to {file.name}."
        places = named(list(dict.fromkeys(tried)))
        findings.add(file, key, f"{value!r} is at none of {places}", "a folder of images", cure)
    return found or file


def _size(path: Path) -> tuple[int, int] | list[Problem]:
    if not os.path.isfile(path):
        cure = "Add the image, or take it out of the list."
        return [Problem(path, "", MISSING_IMAGE, "a readable image", cure)]
    try:
        return image_size(path)
    except DataError as error:
        return error.problems


def _read_labels(path: Path, file_name: str, size: tuple[int, int], names: Sequence[str], collected: Collected) -> None:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        collected.findings.add(path, "", f"it cannot be read ({error})", "a text file", "Replace the file.")
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        item = f"line {number}"
        label, *values = line.split()
        index = _class_index(label)
        if not 0 <= index < len(names):
            expected = f"one of the classes 0 to {len(names) - 1} of data.yaml"
            collected.findings.add(
                path, item, f"the class {label}", expected, "Correct it, or add the class to `names`."
            )
            continue
        drawn = collected.drawn(path, item, lambda values=values: _draw(values, *size))  # type: ignore[misc]
        if drawn is not None:
            collected.instance(file_name, names[index], [drawn], f"{path}: {item}")


def _class_index(text: str) -> int:
    """A class index, possibly written as 1.0 as some tools do; -1 for anything else."""
    value = _number(text)
    return int(value) if math.isfinite(value) and value == int(value) else -1


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _draw(values: Sequence[str], height: int, width: int) -> dict[str, Any]:
    expected = "x and y of at least 3 points"
    commas = [text for text in values if "," in text]
    if commas:
        cure = "Write a point in place of each decimal comma, and spaces between numbers."
        raise MaskError(f"the values {named(commas, 3)} with commas", "numbers from 0 to 1 such as 0.25", cure)
    if len(values) == 4:
        raise MaskError("a box (4 values)", expected, "Annotate masks: boxes alone cannot train instance segmentation.")
    if len(values) % 2 or len(values) < 6:
        cure = "Remove what is no coordinate, such as a confidence at the end, or annotate the object again."
        raise MaskError(f"{len(values)} values after the class", expected, cure)
    numbers = [_number(value) for value in values]
    wrong = [text for text, number in zip(values, numbers, strict=True) if not -_SLACK <= number <= 1 + _SLACK]
    if wrong:
        cure = "Divide x by the width and y by the height of the image."
        raise MaskError(f"the coordinates {named(wrong, 3)}", "numbers from 0 to 1", cure)
    inside = [min(max(number, 0.0), 1.0) for number in numbers]
    points = [(x * width, y * height) for x, y in zip(inside[::2], inside[1::2], strict=True)]
    return shapes.polygon(points, height, width)


def write_yolo(instances: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes data.yaml and labels/<image>.txt, with sub-folders; returns the files.

    instances: a COCO instances dict; class indices follow the order of the category ids.  Holes and parts are joined to
    one polygon by cuts of zero width; `read_yolo` restores the same pixels.  The format has no scores.  Put the images
    into `images` beside `labels`.  A data.yaml with the same classes is kept.  Raises DataError, and writes nothing,
    for crowd regions, or if a file exists that this function did not write, or that was edited since.
    """
    categories = sorted(instances["categories"], key=lambda category: int(category["id"]))
    names = [category["name"] for category in categories]
    index_of = {category["id"]: index for index, category in enumerate(categories)}
    images = labeled_images(instances)
    findings = Findings()
    own = OwnFiles(folder)
    if not _names_classes(folder / "data.yaml", names):
        content = {"train": "images", "val": "images", "names": dict(enumerate(names))}
        own.add(PurePosixPath("data.yaml"), yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    for image in images:
        for annotation in image.annotations:
            if annotation.get("iscrowd"):
                item = f"annotation {annotation.get('id')} of image {annotation['image_id']}"
                cure = "Leave it out, or write the format coco or labelme."
                findings.add("instances", item, "a crowd region", "single objects, as YOLO knows no others", cure)
        lines = [f"{index_of[a['category_id']]} {_line(image, a)}\n" for a in image.annotations]
        own.add(PurePosixPath("labels", image.file_name).with_suffix(".txt"), "".join(lines))
    if findings.problems:
        raise DataError(findings.problems)
    return own.write()


def _names_classes(file: Path, names: Sequence[str]) -> bool:
    """True if the data.yaml exists and names these classes."""
    try:
        return file.is_file() and _class_names(*_read_yaml(file.parent)) == list(names)
    except DataError:
        return False


def _line(image: LabeledImage, annotation: Mapping[str, Any]) -> str:
    mask, top, left = box_of_rle(annotation["segmentation"])
    corners = joined(outlines(mask)) + np.array([left, top])
    return " ".join(f"{x / image.width:.8g} {y / image.height:.8g}" for x, y in corners.tolist())
