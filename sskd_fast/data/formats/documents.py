"""Finding and parsing of label files, and recognition of files in another format."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sskd_fast import scalars
from sskd_fast.data.errors import DataError, Problem, named
from sskd_fast.scalars import ScalarError

_FIELDS: dict[str, dict[str, type]] = {
    "labelme": {"shapes": list, "imagePath": str},
    "coco": {"images": list, "annotations": list, "categories": list},
}
_LONGEST_NAME = 255
# Formats without a reader, and how to convert them.
_DETECTRON2, _VIA = "Detectron2's list of images", "a project of VIA"
_FOREIGN = {
    _DETECTRON2: "write it with detectron2.data.datasets.convert_to_coco_json.",
    _VIA: "export its annotations from VIA in COCO's format.",
}


def label_files(place: Path, suffix: str, cure: str) -> list[Path]:
    """The file itself, or all files below a folder that end in `suffix`, sorted.  Raises DataError if none exist."""
    if place.is_file():
        return [place]
    found = sorted(
        path for path in place.rglob(f"*{suffix}") if not any(p.startswith(".") for p in path.relative_to(place).parts)
    )
    if not found:
        there = f"no file {suffix} in the folder" if place.is_dir() else "the file or folder does not exist"
        raise DataError([Problem(place, "", there, f"label files that end in {suffix}", cure)])
    return found


def read_json(path: Path, expected: str, cure: str) -> Any:
    """The content of a JSON file in UTF-8, 16 or 32, with or without a byte-order mark.

    Raises DataError if it is missing or malformed.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        problem = Problem(path, "", "the annotation file does not exist", expected, "Correct the path.")
        raise DataError([problem]) from None
    except IsADirectoryError:
        cure = "Name a file in it, or the format whose labels are folders with --format."
        raise DataError([Problem(path, "", "it is a folder", f"a file: {expected}", cure)]) from None
    except (OSError, ValueError, RecursionError) as error:
        found = f"the file is no valid JSON ({error})"
        raise DataError([Problem(path, "", found, expected, format_cure(path) or cure)]) from error


def stated_size(file: Path, item: str, height: object, width: object) -> tuple[int, int] | None:
    """The (height, width) that labels state for an image; None if they state none.  Raises DataError."""
    try:
        return scalars.size(height, width)
    except ScalarError as error:
        found = f"a height of {scalars.shown(height)} and a width of {scalars.shown(width)}"
        cure = "Export the labels again."
        raise DataError([Problem(file, item, found, f"pixels ({error.expected})", cure)]) from error


def image_name(file: Path, item: str, name: object) -> str:
    """The name that labels state for an image.  Raises DataError unless it is a valid file name."""
    try:
        stated = scalars.text(name)
    except ScalarError as error:
        cure = "State the name of its file."
        raise DataError([Problem(file, item, f"the image name is {error.found}", error.expected, cure)]) from error
    if PurePosixPath(stated).name in ("", ".."):
        found = f"the image name {stated[:40]!r}"
        raise DataError([Problem(file, item, found, "the name of a file, not of a folder", "Correct the name.")])
    longest = max(len(part.encode()) for part in re.split(r"[/\\]", stated))
    if longest > _LONGEST_NAME:
        found = f"the image name '{stated[:40]}...', which has a part of {longest} bytes"
        expected = f"at most {_LONGEST_NAME}, as in the names of files"
        raise DataError([Problem(file, item, found, expected, "Correct the name.")])
    return stated


def described(content: object) -> str:
    """A description of a JSON value for messages: its kind, and the missing or first keys of an object."""
    if isinstance(content, list):
        return "a JSON list"
    if not isinstance(content, dict) or not content:
        return "an empty JSON object" if content == {} else f"the JSON value {scalars.shown(content)}"
    for fields in _FIELDS.values():
        wrong = [
            f"{key!r} is {scalars.shown(content[key]) if key in content else 'missing'}"
            for key, kind in fields.items()
            if not isinstance(content.get(key), kind)
        ]
        if wrong and 2 * sum(key in content for key in fields) > len(fields):
            return f"a JSON object in which {' and '.join(wrong)}"
    return f"a JSON object with [{named([repr(key[:40]) for key in sorted(content)], 5)}]"


def format_cure(path: Path, content: object = None) -> str | None:
    """A cure if a path, or the JSON value read from it, looks like a certain format; None otherwise."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return "This looks like YOLO: --format yolo --root DIR, the folder of that file."
    listed = isinstance(content, list) and bool(content)
    first = content[0] if isinstance(content, list) and content else content
    name = "cvat" if path.suffix.lower() == ".xml" else _format_of(first) if isinstance(first, dict) else None
    if name in _FOREIGN:
        return f"This looks like {name}: {_FOREIGN[name]}"
    if name == "coco" and listed:
        return "This looks like a COCO object in a list: take the object out of the list."
    return f"This looks like another format: --format {name}." if name else None


def _format_of(content: Mapping[str, Any]) -> str | None:
    """The format of a JSON object, or of the first object in a list: a value of --format or a key of _FOREIGN."""
    for name, fields in _FIELDS.items():
        if all(isinstance(content.get(key), kind) for key, kind in fields.items()):
            return name
    tasks = isinstance(content.get("data"), dict) and content.keys() & {"annotations", "completions"}
    if tasks:
        return "label_studio"
    if "file_name" in content and isinstance(content.get("annotations"), list):
        return _DETECTRON2
    entry = next(iter(content.values()), None)
    of_via = isinstance(entry, dict) and {"filename", "regions"} <= entry.keys()
    return _VIA if of_via or "_via_img_metadata" in content else None
