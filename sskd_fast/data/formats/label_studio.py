"""Label Studio's JSON export: polygons in percent of the image, brush strokes as its own run-length code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.data.formats import shapes
from sskd_fast.data.formats.collected import Collected
from sskd_fast.data.formats.documents import described, format_cure, label_files, read_json, stated_size
from sskd_fast.data.pixels import IMAGE_SUFFIXES, image_size
from sskd_fast.rle import MaskError

_OF_IMAGE = {"choices", "taxonomy", "textarea", "rating", "number", "datetime", "pairwise", "ranker"}
_MASKS = "Annotate masks: boxes alone cannot train instance segmentation. Remove what is no object."


def read_label_studio(place: Path, images: Path, classes: Sequence[str] = ()) -> dict[str, Any]:
    """Label Studio's labels as a COCO instances dict.

    place: the JSON export, or a folder of such files.  images: the folder of the images; each is looked for at the
    path of its task, by its name, and by its name without the eight characters that an upload puts before it.
     classes: names that get the first category ids.  Tasks without an annotation, and skipped ones, are left out; an
    annotation without a region is an image without objects; other text of a task becomes a field of its image record.
     Raises DataError with all problems: regions that are no masks, or several annotations of a task and not one
    marked as ground truth.
    """
    collected = Collected(classes)
    cure = 'Export the project as "JSON".'
    for path in label_files(place, ".json", cure):
        expected = "a list of tasks with data and annotations, as the export JSON has (JSON_MIN has no sizes)"
        try:
            tasks = read_json(path, expected, cure)
        except DataError as error:
            collected.findings.problems.extend(error.problems)
            continue
        fits = isinstance(tasks, list) and all(isinstance(t, dict) and isinstance(t.get("data"), dict) for t in tasks)
        if not fits:
            collected.findings.add(path, "", described(tasks), expected, format_cure(path, tasks) or cure)
            continue
        for task in tasks:
            try:
                _read_task(path, task, images, collected)
            except DataError as error:
                collected.findings.problems.extend(error.problems)
    return collected.content()


def _read_task(path: Path, task: Mapping[str, Any], images: Path, collected: Collected) -> None:
    item = f"task {task.get('id')}"
    annotation = _annotation(path, item, task)
    if annotation is None:
        return
    address, extra = _image_address(path, item, task["data"])
    file_name = _image_name(address, images)
    regions = [result for result in annotation.get("result", []) if result.get("type") not in _OF_IMAGE | {"relation"}]
    stated = {str((r.get("original_height"), r.get("original_width"))): r for r in regions}
    if len(stated) > 1:
        found = f"regions on images of the sizes {sorted(stated)}"
        raise DataError([Problem(path, item, found, "one size", "Annotate the image again.")])
    first: Mapping[str, Any] = next(iter(stated.values()), {})
    size = stated_size(path, item, first.get("original_height"), first.get("original_width")) or image_size(
        images / file_name
    )
    if collected.image(file_name, size, f"{path}: {item}", extra):
        _read_regions(path, item, regions, file_name, size, collected)


def _annotation(path: Path, item: str, task: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The one annotation of a task that counts, None if there is none."""
    made = [a for a in task.get("annotations", task.get("completions", [])) if not a.get("was_cancelled")]
    chosen = [a for a in made if a.get("ground_truth")] if len(made) > 1 else made
    if made and len(chosen) != 1:
        found = f"{len(made)} annotations, {len(chosen)} of them marked as ground truth"
        cure = "Mark one as ground truth in Label Studio, or delete the others."
        raise DataError([Problem(path, item, found, "one annotation that counts", cure)])
    return chosen[0] if chosen else None


def _image_address(path: Path, item: str, data: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Path of the image of a task, and the other fields of its data."""
    addresses = {key: _file_part(value) for key, value in data.items() if isinstance(value, str)}
    pictures = [key for key, address in addresses.items() if address.lower().endswith(IMAGE_SUFFIXES)]
    if len(pictures) != 1:
        found, cure = f"{len(pictures)} fields of data that name an image file", "Export tasks of one image each."
        raise DataError([Problem(path, item, found, "one", cure)])
    return addresses[pictures[0]], {key: value for key, value in data.items() if key not in pictures}


def _file_part(address: str) -> str:
    """The path of an address: of local storage (?d=path), of an upload, or of anything else."""
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")
    return local[0] if local else unquote(parts.path)


def _image_name(address: str, images: Path) -> str:
    relative = PurePosixPath(address.lstrip("/"))
    prefix, _, rest = relative.name.partition("-")
    uploaded = rest if len(prefix) == 8 and rest else relative.name
    names = [str(relative), *(str(PurePosixPath(*relative.parts[n:])) for n in range(1, len(relative.parts))), uploaded]
    inside = [name for name in names if ".." not in PurePosixPath(name).parts]
    return next((name for name in inside if (images / name).is_file()), relative.name)


def _read_regions(
    path: Path, item: str, regions: Sequence[Mapping[str, Any]], file_name: str, size: tuple[int, int], into: Collected
) -> None:
    labels = {region.get("id"): found for region in regions if (found := _label(region)) is not None}
    drawn_ids = set()
    for region in regions:
        place = f"{item}, region {region.get('id')} ({region.get('type')})"
        label = labels.get(region.get("id"))
        if label is None:
            into.findings.add(path, place, "not one label", "one", "Give the region one label, or remove it.")
        elif region.get("id") not in drawn_ids:  # a shape and its labels may be two results of one id
            drawn = into.drawn(path, place, lambda region=region: _draw(region, *size))  # type: ignore[misc]
            drawn_ids.add(region.get("id"))
            if drawn is not None:
                into.instance(file_name, label, [drawn], f"{path}: {place}")


def _label(region: Mapping[str, Any]) -> str | None:
    value, kind = region.get("value", {}), str(region.get("type"))
    names = value.get(kind) if kind.endswith("labels") else None
    return names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else None


def _draw(region: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    value, kind = region.get("value", {}), region.get("type")
    if region.get("image_rotation"):
        cure = "Turn the image back in Label Studio, or turn the file itself and annotate that."
        raise MaskError(f"a region on an image turned by {region['image_rotation']} degrees", "0 degrees", cure)
    if "points" in value:
        points = value["points"]
        pairs = [
            p for p in points if isinstance(p, list) and len(p) == 2 and all(isinstance(v, (int, float)) for v in p)
        ]
        if len(pairs) != len(points):
            raise MaskError(f"the points {str(points)[:80]}", "pairs of percentages", "Export the project again.")
        return shapes.polygon([(x / 100 * width, y / 100 * height) for x, y in pairs], height, width)
    if value.get("format") == "rle" and isinstance(value.get("rle"), list):
        colours = decode_brush(value["rle"], 4 * height * width).reshape(height, width, 4)
        return shapes.bitmap(colours[..., 3] > 0, 0, 0, height, width)
    raise MaskError(f"a region of type {kind}", "polygonlabels or brushlabels", _MASKS)


def decode_brush(code: Sequence[int], length: int) -> NDArray[np.uint8]:
    """Label Studio's run-length code as `length` bytes: the colours and opacity (RGBA) of the pixels, row by row.

    A stream of bits: the length (32), the bits of a value less one (5), four widths of run lengths less one (4 each),
    then blocks: 1 bit, set if one value is repeated; 2 bits for the width; the run's length less one; the value or
    values. Raises MaskError if it is malformed or of another length.
    """
    cure = "Use the image that was annotated, or export the project again."
    try:
        bits = _Bits(bytes(code))
        stated, value_bits = bits.read(32), bits.read(5) + 1
        widths = [bits.read(4) + 1 for _ in range(4)]
        if stated == length:
            return _decode_blocks(bits, value_bits, widths, length)
    except (TypeError, ValueError):
        raise MaskError("a brush stroke whose code cannot be read", "Label Studio's whole RLE", cure) from None
    raise MaskError(f"a brush stroke of {stated} bytes", f"{length}, four for each pixel of the image", cure)


class _Bits:
    """Whole numbers read from bytes, bit by bit, the highest first; ValueError past the end."""

    def __init__(self, code: bytes) -> None:
        self._text = "".join(f"{byte:08b}" for byte in code)
        self._at = 0

    def read(self, count: int) -> int:
        start, self._at = self._at, self._at + count
        if self._at > len(self._text):
            raise ValueError("the code ends early")
        return int(self._text[start : self._at], 2)


def _decode_blocks(bits: _Bits, value_bits: int, widths: Sequence[int], length: int) -> NDArray[np.uint8]:
    found = np.zeros(length, dtype=np.uint8)
    filled = 0
    while filled < length:
        repeated = bits.read(1)
        count = bits.read(widths[bits.read(2)]) + 1
        if filled + count > length:
            raise ValueError("a run passes the end")
        values = [bits.read(value_bits) for _ in range(1 if repeated else count)]
        found[filled : filled + count] = values
        filled += count
    return found
