"""Label files found and parsed, and the format that a file of another one looks like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sskd_fast import scalars
from sskd_fast.data.errors import DataError, Problem
from sskd_fast.scalars import ScalarError


def label_files(place: Path, suffix: str, cure: str) -> list[Path]:
    """The file itself, or the files of a folder and those below it that end in `suffix`, sorted; DataError if none."""
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
    """The content of a JSON file in UTF-8, 16 or 32, with a byte-order mark or without; DataError if it is missing or
    malformed."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        problem = Problem(path, "", "the annotation file does not exist", expected, "Correct the path.")
        raise DataError([problem]) from None
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


def described(content: object) -> str:
    """The kind of a JSON value, for messages."""
    return f"a JSON object with {sorted(content)}" if isinstance(content, dict) else f"a JSON {type(content).__name__}"


def format_cure(path: Path, content: object = None) -> str | None:
    """A cure if a path, or the JSON value read from it, is the sign of a certain format; None otherwise."""
    first = content[0] if isinstance(content, list) and content else content
    keys = set(first) if isinstance(first, dict) else set()
    if path.suffix.lower() == ".xml":
        name = "cvat"
    elif path.suffix.lower() in (".yaml", ".yml"):
        return "This looks like YOLO: --format yolo --root DIR, the folder of that file."
    elif {"shapes", "imagePath"} <= keys:
        name = "labelme"
    elif "data" in keys and keys & {"annotations", "completions"}:
        name = "label_studio"
    elif {"images", "annotations", "categories"} <= keys:
        name = "coco"
    else:
        return None
    return f"This looks like another format: --format {name}."
