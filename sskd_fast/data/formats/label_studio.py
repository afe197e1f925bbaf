"""Label Studio's JSON export: tasks with one image and one valid annotation each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from sskd_fast.data.errors import DataError, Findings, Problem, named
from sskd_fast.data.formats.collected import Collected
from sskd_fast.data.formats.documents import described, format_cure, image_name, label_files, read_json, stated_size
from sskd_fast.data.formats.label_studio_regions import AGAIN, Region, in_shares, objects, read_regions, regions_of
from sskd_fast.data.image_folders import IMAGE_SUFFIXES
from sskd_fast.data.pixels import image_size
from sskd_fast.scalars import ScalarError

_CURE = 'Export the project as "JSON".'


def read_label_studio(place: Path, images: Path, classes: Sequence[str] = ()) -> dict[str, Any]:
    """Label Studio's labels as a COCO instances dict.

    place: the JSON export, or a folder of such files.  images: the folder of the images.  Each image is looked for by
    the path in its task, by its name, and by its name without the eight-character prefix of uploads.
    classes: names that get the first category ids.  Tasks that are skipped or not annotated are left out with a
    warning.  An annotation without regions is an image without objects.  Other text of a task becomes a field of its
    image record.  Raises DataError with all problems.  They are regions that are not masks, no annotated task, or
    several annotations of a task if not exactly one is marked as ground truth.
    """
    collected = Collected(classes)
    left_out: Counter[str] = Counter()
    total = 0
    for path in label_files(place, ".json", _CURE):
        tasks = _tasks(path, collected.findings)
        total += len(tasks)
        regions = [region for task in tasks for region in _read_task(path, task, images, collected, left_out)]
        if in_shares(regions):
            found, cure = "all points lie between 0 and 1", "Multiply them by 100: they seem to be shares of the image."
            collected.findings.add(path, "", found, "percent of the width and the height, from 0 to 100", cure)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    if total and left_out.total() == total:
        cure = "Annotate the tasks, or submit their predictions as annotations, and export the project again."
        collected.findings.add(place, "", f"no task with an annotation ({reasons})", "at least one", cure)
    elif left_out:
        collected.findings.warnings.append(f"{place}: {left_out.total()} of {total} tasks are left out: {reasons}.")
    return collected.content()


def _tasks(path: Path, findings: Findings) -> list[Mapping[str, Any]]:
    """The valid tasks of a file. Each invalid one is a problem; if none is valid, the file is."""
    expected = "a list of tasks with data and annotations, as the export JSON has (JSON_MIN has no sizes)"
    try:
        content = read_json(path, expected, _CURE)
    except DataError as error:
        findings.problems.extend(error.problems)
        return []
    listed = content if isinstance(content, list) else []
    sound = [isinstance(task, dict) and isinstance(task.get("data"), dict) for task in listed]
    if not any(sound) and content != []:
        findings.add(path, "", described(content), expected, format_cure(path, content) or _CURE)
        return []
    for number, (task, fits) in enumerate(zip(listed, sound, strict=True)):
        if not fits:
            findings.add(path, f"tasks[{number}]", described(task), "an object with data and annotations", AGAIN)
    return [task for task, fits in zip(listed, sound, strict=True) if fits]


def _read_task(
    path: Path, task: Mapping[str, Any], images: Path, collected: Collected, left_out: Counter[str]
) -> list[Region]:
    """Adds the image and objects of a task, or a reason to `left_out`; returns its regions."""
    item = f"task {str(task.get('id'))[:40]}"
    try:
        annotation = _annotation(path, item, task, left_out)
        if annotation is None:
            return []
        address, extra = _image_address(path, item, task["data"])
        file_name = _image_name(address, images)
        regions = regions_of(path, item, annotation, collected.findings)
        size = _size(path, item, regions) or image_size(images / file_name)
    except ScalarError as error:
        collected.findings.add(path, item, error.found, error.expected, AGAIN)
        return []
    except DataError as error:
        collected.findings.problems.extend(error.problems)
        return []
    if collected.image(file_name, size, f"{path}: {item}", extra):
        read_regions(path, regions, file_name, size, collected)
    return regions


def _annotation(path: Path, item: str, task: Mapping[str, Any], left_out: Counter[str]) -> Mapping[str, Any] | None:
    """The annotation of a task to use; None, with the reason in `left_out`, if there is none."""
    listed = objects(task, "annotations" if "annotations" in task else "completions")
    made = [a for a in listed if not a.get("was_cancelled")]
    if not made:
        predicted = "with predictions only" if task.get("predictions") else "without an annotation"
        left_out["skipped" if listed else predicted] += 1
        return None
    chosen = [a for a in made if a.get("ground_truth")] if len(made) > 1 else made
    if len(chosen) != 1:
        found = f"{len(made)} annotations, {len(chosen)} of them marked as ground truth"
        cure = "Mark one as ground truth in Label Studio, or delete the others."
        raise DataError([Problem(path, item, found, "one annotation that counts", cure)])
    return chosen[0]


def _size(path: Path, item: str, regions: Sequence[Region]) -> tuple[int, int] | None:
    """The (height, width) that the regions state for their image; None if they state none."""
    stated = [
        stated_size(path, region.place, region.record.get("original_height"), region.record.get("original_width"))
        for region in regions
    ]
    sizes = sorted({size for size in stated if size is not None})
    if len(sizes) > 1:
        found = f"regions on images of the sizes {named(sizes)}"
        raise DataError([Problem(path, item, found, "one size", "Annotate the image again.")])
    return sizes[0] if sizes else None


def _image_address(path: Path, item: str, data: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The path of a task's image, and the other fields of its data."""
    addresses = {key: _file_part(value) for key, value in data.items() if isinstance(value, str)}
    pictures = [key for key, address in addresses.items() if address.lower().endswith(IMAGE_SUFFIXES)]
    if len(pictures) != 1:
        found, cure = f"{len(pictures)} fields of data that name an image file", "Export tasks of one image each."
        raise DataError([Problem(path, item, found, "one", cure)])
    address = image_name(path, item, addresses[pictures[0]])
    return address, {key: value for key, value in data.items() if key not in pictures}


def _file_part(address: str) -> str:
    """The path in an address: of local storage (?d=path), an upload, or another URL; "" for other text."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    local = parse_qs(parts.query).get("d")
    return local[0] if local else unquote(parts.path)


def _image_name(address: str, images: Path) -> str:
    relative = PurePosixPath(address.lstrip("/"))
    prefix, _, rest = relative.name.partition("-")
    uploaded = rest if len(prefix) == 8 and rest else relative.name
    names = [str(relative), *(str(PurePosixPath(*relative.parts[n:])) for n in range(1, len(relative.parts))), uploaded]
    inside = [name for name in names if ".." not in PurePosixPath(name).parts]
    return next((name for name in inside if os.path.isfile(images / name)), relative.name)
