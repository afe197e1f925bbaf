"""LabelMe: one JSON file per image with polygons, rectangles, circles and masks; group_id joins parts of an object."""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.formats import shapes
from sskd_fast.data.formats.collected import Collected
from sskd_fast.data.formats.contours import is_hole, outlines
from sskd_fast.data.formats.documents import described, format_cure, image_name, label_files, read_json, stated_size
from sskd_fast.data.formats.groups import GroupId, Groups, group_id
from sskd_fast.data.formats.own_files import OwnFiles
from sskd_fast.data.formats.written import LabeledImage, labeled_images
from sskd_fast.data.orientation import DECODING_ERRORS
from sskd_fast.data.pixels import image_size
from sskd_fast.rle import MaskError, box_of_rle
from sskd_fast.scalars import ScalarError, is_number, shown

_DRAWN = {
    "polygon": shapes.polygon,
    "oriented_rectangle": shapes.polygon,
    "rotation": shapes.polygon,
    "rectangle": shapes.rectangle,
    "circle": shapes.circle,
}
_SAVE = "Save it with LabelMe again."
_VERSION = "5.5.0"


def read_labelme(place: Path, images: Path, classes: Sequence[str] = ()) -> dict[str, Any]:
    """LabelMe's labels as a COCO instances dict.

    place: a JSON file, or a folder searched recursively.  images: the folder of the images.  Each image is looked for
    at the JSON file's relative path, at its `imagePath`, and by name.  classes: names that get the first category ids.
    Shapes with the same label and group_id are one instance; without a group_id, each shape is one.  Raises DataError
    with all problems.
    """
    collected, groups = Collected(classes), Groups()
    for path in label_files(place, ".json", "Name the folder that LabelMe saved its JSON files in."):
        try:
            _read_file(path, place, images, collected, groups)
        except DataError as error:
            collected.findings.problems.extend(error.problems)
    collected.findings.warnings += groups.warnings(place)
    return collected.content()


def _read_file(path: Path, place: Path, images: Path, collected: Collected, groups: Groups) -> None:
    expected = 'LabelMe\'s JSON object with "shapes" and "imagePath"'
    cure = "Save it with LabelMe again, or take it out of the folder."
    content = read_json(path, expected, cure)
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("shapes"), list)
        or not isinstance(content.get("imagePath"), str)
    ):
        raise DataError([Problem(path, "", described(content), expected, format_cure(path, content) or cure)])
    file_name = _image_name(path, place, images, image_name(path, "imagePath", content["imagePath"]))
    size = stated_size(path, "", content.get("imageHeight"), content.get("imageWidth")) or image_size(
        images / file_name
    )
    if collected.image(file_name, size, path):
        groups.add(_read_shapes(path, content["shapes"], file_name, size, collected), path)


def _image_name(path: Path, place: Path, images: Path, image_path: str) -> str:
    """The image of a JSON file, relative to the image folder; if missing, the path where it is expected."""
    named = PureWindowsPath(image_path).as_posix()
    name = PurePosixPath(named).name
    beside = path.parent.relative_to(place) if place.is_dir() else Path()
    for candidate in (images / beside / name, path.parent / named, images / name):
        plain = Path(*candidate.parts) if ".." not in candidate.parts else candidate.resolve()
        for root in (images, images.resolve()):
            if plain.is_relative_to(root) and os.path.isfile(plain):
                return plain.relative_to(root).as_posix()
    return (beside / name).as_posix()


def _read_shapes(
    path: Path, listed: Sequence[Any], file_name: str, size: tuple[int, int], collected: Collected
) -> list[tuple[str, GroupId]]:
    """Adds the instances of an image; returns the label and group of each shape."""
    instances: dict[tuple[str, GroupId], list[tuple[dict[str, Any], Mapping[str, Any]]]] = {}
    grouped: list[tuple[str, GroupId]] = []
    for number, shape in enumerate(listed):
        item = f"shapes[{number}]"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            expected = "an object with a label, points and a shape_type"
            collected.findings.add(path, item, f"the value {str(shape)[:80]}", expected, _SAVE)
            continue
        label, named_item = shape["label"], f"{item} ({shape['label'][:80]})"
        drawn = collected.drawn(path, named_item, lambda shape=shape: _draw(shape, *size))  # type: ignore[misc]
        try:
            group = group_id(shape.get("group_id"))
        except ScalarError as error:
            cure = "Write null, or one number for the shapes of one object."
            collected.findings.add(path, named_item, error.found, error.expected, cure)
            continue
        grouped.append((label, group))
        if drawn is not None:
            instances.setdefault((label, item if group is None else group), []).append((drawn, shape))
    for (label, _), parts in instances.items():
        first = parts[0][1]
        score = {"score": first["score"]} if is_number(first.get("score")) else {}
        crowd = first.get("iscrowd", 0)  # read with those of COCO files
        collected.instance(file_name, label, [part for part, _ in parts], f"{path}: {label}", iscrowd=crowd, **score)
    return grouped


def _draw(shape: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    kind = shape.get("shape_type", "")
    if not isinstance(kind, str | None):
        raise MaskError(f"the shape_type {shown(kind)}", f"one of {', '.join([*_DRAWN, 'mask'])}", _SAVE)
    kind = (kind or "polygon").strip().lower()
    points = _points(shape.get("points"))
    if kind == "mask":
        mask = _decoded(shape.get("mask"))
        if len(points) != 2:
            found, expected = f"a mask with {len(points)} points", "the corners of its box"
            raise MaskError(found, expected, _SAVE)
        drawn = shapes.bitmap(mask, int(points[0][1]), int(points[0][0]), height, width)
        _check_box(mask, *points)
        return drawn
    if kind not in _DRAWN:
        cure = "Remove the shape, or annotate the object as a polygon or a mask."
        raise MaskError(f"a shape of type {kind}, which has no area", f"one of {', '.join([*_DRAWN, 'mask'])}", cure)
    return _DRAWN[kind](points, height, width)


def _check_box(mask: NDArray[np.bool_], first: tuple[float, float], last: tuple[float, float]) -> None:
    """Raises MaskError if a mask's size differs from its box by more than the one pixel that tools disagree on."""
    stated = [int(last[1]) - int(first[1]), int(last[0]) - int(first[0])]
    if any(not -1 <= side - box <= 2 for side, box in zip(mask.shape, stated, strict=True)):
        found = f"a mask of {mask.shape[0]} x {mask.shape[1]} pixels (height x width) from {first} to {last}"
        raise MaskError(found, f"{stated[0] + 1} x {stated[1] + 1}, as these corners state", _SAVE)


def _points(value: object) -> list[tuple[float, float]]:
    pairs: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) for pair in pairs):
        raise MaskError(f"the points {str(value)[:80]}", "pairs of numbers [x, y]", _SAVE)
    return [(float(x), float(y)) for x, y in pairs]


def _decoded(text: object) -> NDArray[np.bool_]:
    """Decodes the PNG of a mask shape to (h, w) bool."""
    expected = "a PNG picture in base64"
    if not isinstance(text, str) or not text:
        raise MaskError(f"a mask with no picture ({shown(text)})", expected, _SAVE)
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as picture:
            return np.asarray(picture.convert("L")) > 0
    except UnidentifiedImageError:
        raise MaskError("a mask that cannot be read (no picture)", expected, _SAVE) from None
    except (binascii.Error, *DECODING_ERRORS) as error:
        raise MaskError(f"a mask that cannot be read ({error})", expected, _SAVE) from error


def write_labelme(instances: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes one JSON file per image, named like the image, with sub-folders; returns the files.

    instances: a COCO instances dict; scores and iscrowd are stored as fields of the shapes.  A mask without holes
    becomes polygons with a common group_id, one with holes a shape of type mask; both restore the same pixels.  Put the
    files beside the images to open them in LabelMe.  Raises DataError, and writes nothing, if a file exists that this
    function did not write, or that was edited since.
    """
    own = OwnFiles(folder)
    for image in labeled_images(instances):
        content = {
            "version": _VERSION,
            "flags": {"sskd_fast": True},
            "shapes": [shape for number, a in enumerate(image.annotations, 1) for shape in _shapes(image, a, number)],
            "imagePath": PurePosixPath(image.file_name).name,
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        own.add(PurePosixPath(image.file_name).with_suffix(".json"), json.dumps(content, ensure_ascii=False, indent=1))
    return own.write()


def _shapes(image: LabeledImage, annotation: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    mask, top, left = box_of_rle(annotation["segmentation"])
    loops = outlines(mask)
    shared = {
        "label": annotation["category"],
        "group_id": number if len(loops) > 1 else None,
        "description": "",
        "flags": {},
        **{key: annotation[key] for key in ("score", "iscrowd") if annotation.get(key)},
    }
    if any(is_hole(loop, mask) for loop in loops):
        picture = io.BytesIO()
        Image.fromarray(mask).save(picture, "PNG")
        bottom, right = top + mask.shape[0] - 1, left + mask.shape[1] - 1
        text = base64.b64encode(picture.getvalue()).decode("ascii")
        box = [[left, top], [right, bottom]]
        return [{**shared, "group_id": None, "points": box, "shape_type": "mask", "mask": text}]
    return [
        {**shared, "points": (loop + np.array([left, top])).tolist(), "shape_type": "polygon", "mask": None}
        for loop in loops
    ]
