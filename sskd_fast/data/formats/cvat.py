"""CVAT's own export, "CVAT for images 1.1": XML with polygons and masks; group_id joins the parts of an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.formats import shapes
from sskd_fast.data.formats.collected import Collected
from sskd_fast.data.formats.documents import image_name, label_files, stated_size
from sskd_fast.data.formats.groups import GroupId, Groups, group_id
from sskd_fast.rle import MaskError

_FORMAT = 'the XML of "CVAT for images 1.1"'
_CURE = 'Export the task as "CVAT for images 1.1", or name another format with --format.'
_CORRECT = "Export the task again."
_OF_IMAGE = {"tag"}


def read_cvat(place: Path, images: Path, classes: Sequence[str] = ()) -> dict[str, Any]:
    """CVAT's labels as a COCO instances dict.

    place: annotations.xml, or a folder with such files.  images: the folder to which image names are relative.
    classes: names that get the first category ids; the labels of the XML follow in its order.  Shapes with the same
    label and group_id are one instance; other attributes of an image (subset, task_id) become fields of its record.
    Raises DataError with all problems, including boxes, lines, points and tracks; image tags are ignored.
    """
    roots = {}
    collected, groups = Collected(list(classes)), Groups()
    for path in label_files(place, ".xml", "Name the annotations.xml of the export; unpack the archive first."):
        try:
            roots[path] = _root(path)
        except DataError as error:
            collected.findings.problems.extend(error.problems)
    listed = [label.text or "" for root in roots.values() for label in root.iterfind("meta//labels/label/name")]
    collected.classes = list(dict.fromkeys([*classes, *listed]))
    for path, root in roots.items():
        for image in root.iterfind("image"):
            try:
                _read_image(path, image, collected, groups)
            except DataError as error:
                collected.findings.problems.extend(error.problems)
    collected.findings.warnings += groups.warnings(place)
    return collected.content()


def _root(path: Path) -> ElementTree.Element:
    try:
        root = ElementTree.parse(path).getroot()
    except (LookupError, ValueError) as error:
        found, cure = f"an encoding that cannot be read ({error})", "Save the file as UTF-8, as its first line says."
        raise DataError([Problem(path, "", found, f"{_FORMAT} in UTF-8", cure)]) from error
    except (OSError, ElementTree.ParseError) as error:
        raise DataError([Problem(path, "", f"the file is no valid XML ({error})", _FORMAT, _CURE)]) from error
    track = root.find("track")
    if root.tag != "annotations" or track is not None:
        found = f"XML with {root.tag} at its root" if track is None else "tracks, as CVAT for video has them"
        raise DataError([Problem(path, "", found, _FORMAT, _CURE)])
    return root


def _read_image(path: Path, image: ElementTree.Element, collected: Collected, groups: Groups) -> None:
    item = f"image {image.get('id')} ({str(image.get('name'))[:80]})"
    name = image_name(path, item, image.get("name"))
    size = stated_size(path, item, image.get("height"), image.get("width"))
    if size is None:
        found = f"a height of {image.get('height')} and a width of {image.get('width')}"
        collected.findings.add(path, item, found, "pixels", _CORRECT)
        return
    extra = {key: value for key, value in image.attrib.items() if key not in ("id", "name", "width", "height")}
    if not collected.image(name, size, f"{path}: {item}", extra):
        return
    instances: dict[tuple[str, GroupId], list[dict[str, Any]]] = {}
    grouped = []
    for number, element in enumerate(image):
        if element.tag in _OF_IMAGE:
            continue
        label = element.get("label", "")
        shape = f"{item}, {element.tag} {number} ({label})"
        drawn = collected.drawn(path, shape, lambda element=element: _draw(element, *size))  # type: ignore[misc]
        group = group_id(element.get("group_id")) or None  # CVAT numbers groups from 1
        grouped.append((label, group))
        if drawn is not None:
            instances.setdefault((label, f"number {number}" if group is None else group), []).append(drawn)
    groups.add(grouped, f"{path}: {item}")
    for (label, group), parts in instances.items():
        collected.instance(name, label, parts, f"{path}: {item}: {label} {group}")


def _draw(element: ElementTree.Element, height: int, width: int) -> dict[str, Any]:
    if not element.get("label"):
        raise MaskError("a shape without a label", "the label of the object", _CORRECT)
    if element.tag == "polygon":
        return shapes.polygon(_points(element.get("points", "")), height, width)
    if element.tag == "mask":
        return _draw_mask(element.attrib, height, width)
    cure = "Annotate masks: boxes alone cannot train instance segmentation. Remove what is no object."
    raise MaskError(f"a shape of type {element.tag}", "polygon or mask", cure)


def _points(text: str) -> list[tuple[float, float]]:
    try:
        return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split(";"))]
    except ValueError:
        raise MaskError(f"the points {text[:80]!r}", 'pairs "x,y;x,y;..."', _CORRECT) from None


def _draw_mask(attributes: Mapping[str, str], height: int, width: int) -> dict[str, Any]:
    """Draws a mask from run lengths along the rows of a box, alternating outside and inside."""
    try:
        top, left, rows, columns = (int(attributes.get(key, "")) for key in ("top", "left", "height", "width"))
        runs = np.array([int(run) for run in attributes.get("rle", "").split(",")], dtype=np.int64)
    except (ValueError, OverflowError):
        raise MaskError("a mask whose numbers cannot be read", "rle, left, top, width and height", _CORRECT) from None
    within = 0 <= rows <= height and 0 <= columns <= width and 0 <= runs.min() <= runs.max() <= rows * columns
    if not within or runs.sum() != rows * columns:
        found, expected = f"run lengths that cover {runs.sum()} pixels", f"{rows} x {columns}, the mask's own box"
        raise MaskError(found, expected, _CORRECT)
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return shapes.bitmap(inside.reshape(rows, columns), top, left, height, width)
