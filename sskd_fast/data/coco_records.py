"""The records of a COCO file with scalars read strictly, once, for training, evaluation and checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sskd_fast import scalars
from sskd_fast.data.errors import Findings, named
from sskd_fast.scalars import ScalarError

_RECORD = "Correct the record."
_NUMBER_ANEW = "Number the {kind} with integers, in the annotations too."


@dataclass
class CocoRecords:
    """Valid records of a COCO file.

    images, categories: by id.  An image has "id", "file_name", "size" (height, width) or None, and other fields as text
    under "extra".  An annotation has "id", "image_id", "category_id", "iscrowd" (bool), and "segmentation", "area" and
    "bbox" as in the file.  The last two are only compared with the mask.  An annotation's id may be text or None, since
    nothing refers to it.
    """

    file: str | Path
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    categories: dict[int, dict[str, Any]] = field(default_factory=dict)
    annotations: list[dict[str, Any]] = field(default_factory=list)


def coco_records(content: Mapping[str, Any], file: str | Path, findings: Findings) -> CocoRecords:
    """The valid records of a COCO instances dict; each invalid one adds a problem of `file` to `findings`.

    Annotations of an invalid image or category are left out without another problem.
    Ids that are integers as text are converted if no two of them become the same.
    """
    records = CocoRecords(file)
    _read_categories(content["categories"], records, findings)
    _read_images(content["images"], records, findings)
    refused = {
        kind: {stated for record in content[key] if (stated := _stated_id(record)) is not None and stated not in known}
        for kind, key, known in (("image", "images", records.images), ("category", "categories", records.categories))
    }
    for number, annotation in enumerate(content["annotations"]):
        read = _annotation(annotation, number, records, refused, findings)
        if read is not None:
            records.annotations.append(read)
    return records


def annotation_item(annotation: Mapping[str, Any]) -> str:
    """The name of a CocoRecords annotation in messages."""
    return f"annotation {str(annotation['id'])[:40]} of image {annotation['image_id']}"


class _Fields:
    """The fields of one record; unreadable ones are recorded as its problems."""

    def __init__(self, record: Mapping[str, Any], file: str | Path, item: str, findings: Findings) -> None:
        self.record, self.file, self.item, self.findings = record, file, item, findings
        self.sound = True

    def read(self, key: str, read: Callable[[Any], Any], cure: str = _RECORD) -> Any:
        """The field converted by `read`; None, with a problem, if that fails."""
        try:
            return read(self.record[key])
        except KeyError:
            self.fault(f"no `{key}`", "one in every record", cure)
        except ScalarError as error:
            self.fault(f"`{key}` is {error.found}", error.expected, cure)
        return None

    def fault(self, found: str, expected: str, cure: str) -> None:
        """Records a problem of the record."""
        self.sound = False
        self.findings.add(self.file, self.item, found, expected, cure)


def _is_object(record: object, records: CocoRecords, item: str, findings: Findings) -> bool:
    if not isinstance(record, dict):
        found = f"the record {str(record)[:80]}"
        findings.add(records.file, item, found, "an object with its fields", _RECORD)
    return isinstance(record, dict)


def _read_categories(listed: Sequence[Any], records: CocoRecords, findings: Findings) -> None:
    for number, category in enumerate(listed):
        item = f"categories[{number}]"
        if not _is_object(category, records, item, findings):
            continue
        fields = _Fields(category, records.file, item, findings)
        category_id = fields.read("id", scalars.integer, _NUMBER_ANEW.format(kind="categories"))
        name = fields.read("name", scalars.text)
        if not fields.sound:
            continue
        if category_id in records.categories:
            found = f"its id is used by {records.categories[category_id]['name']!r} and {name!r}"
            cure = "Give one of them a new id, in its annotations too."
            findings.add(records.file, f"category {category_id}", found, "an id of its own", cure)
            continue
        records.categories[category_id] = {**category, "id": category_id, "name": name}
    names = Counter(category["name"] for category in records.categories.values())
    for name, count in names.items():
        if count > 1:
            found = f"{count} categories have this name"
            findings.add(records.file, f"category {name!r}", found, "a name of its own", "Rename or merge them.")
    if not records.categories and not listed:
        findings.add(records.file, "categories", "no category", "at least one", "Add the classes of the annotations.")


def _read_images(listed: Sequence[Any], records: CocoRecords, findings: Findings) -> None:
    for number, image in enumerate(listed):
        if not _is_object(image, records, f"images[{number}]", findings):
            continue
        stated = image.get("file_name")
        item = f"images[{number}]" + (f" ({stated[:80]})" if isinstance(stated, str) and stated else "")
        fields = _Fields(image, records.file, item, findings)
        image_id = fields.read("id", scalars.integer, _NUMBER_ANEW.format(kind="images"))
        name = fields.read("file_name", scalars.text)
        size = _size(image, fields)
        if image_id is None or name is None:
            continue
        if image_id in records.images:
            found = f"its id is used by {records.images[image_id]['file_name']} and {name}"
            cure = "Renumber the images, in the annotations too."
            findings.add(records.file, f"image {image_id}", found, "an id of its own", cure)
            continue
        own = {"id": image_id, "file_name": name, "size": size, "extra": _extra(image)}
        records.images[image_id] = own
    if not listed:
        findings.add(records.file, "images", "no image", "at least one", "Add the images of the data set.")


def _size(image: Mapping[str, Any], fields: _Fields) -> tuple[int, int] | None:
    try:
        return scalars.size(image.get("height"), image.get("width"))
    except ScalarError as error:
        found = f"a height of {_stated(image, 'height')} and a width of {_stated(image, 'width')}"
        expected = f"pixels ({error.expected})"
        fields.fault(found, expected, "Correct them, or remove them: they are then read from the image.")
        return None


def _stated(record: Mapping[str, Any], key: str) -> str:
    return scalars.shown(record.get(key))


def _extra(image: Mapping[str, Any]) -> dict[str, str]:
    own = ("id", "file_name", "width", "height")
    return {key: str(value) for key, value in image.items() if key not in own and isinstance(value, (str, int, float))}


def _stated_id(record: object) -> int | str | None:
    """The id of a record, or a description of it if it cannot be read; None if it has none."""
    if not isinstance(record, dict) or "id" not in record:
        return None
    try:
        return scalars.integer(record["id"])
    except ScalarError as error:
        return error.found


def _annotation(
    annotation: object, number: int, records: CocoRecords, refused: Mapping[str, Set[int | str]], findings: Findings
) -> dict[str, Any] | None:
    """The fields of a valid annotation; None, with problems, for an invalid one."""
    if not isinstance(annotation, dict):
        found = f"the value {str(annotation)[:80]}"
        findings.add(records.file, f"annotations[{number}]", found, "an object", _RECORD)
        return None
    stated = annotation.get("id", f"at position {number}")
    of_image = f" of image {str(annotation['image_id'])[:40]}" if "image_id" in annotation else ""
    fields = _Fields(annotation, records.file, f"annotation {str(stated)[:40]}{of_image}", findings)
    annotation_id = _annotation_id(annotation.get("id"), fields)
    image_id = _reference("image", fields, records.images, refused["image"])
    category_id = _reference("category", fields, records.categories, refused["category"])
    crowd = (
        fields.read("iscrowd", scalars.flag, "Write 1 for a region of many objects, else 0.")
        if "iscrowd" in annotation
        else False
    )
    if not fields.sound or image_id is None or category_id is None:
        return None
    read = {"id": annotation_id, "image_id": image_id, "category_id": category_id, "iscrowd": crowd}
    return {**annotation, **read}


def _annotation_id(value: object, fields: _Fields) -> int | str | None:
    if value is None:
        return None
    try:
        return scalars.integer(value)
    except ScalarError as error:
        if isinstance(value, str):
            return value
        fields.fault(f"`id` is {error.found}", error.expected, _RECORD)
        return None


_REFERENCES = {
    "image": ("Remove the annotation or add the image.", "the id of one of its images"),
    "category": ("Correct its category_id or add the category.", "one of {known}"),
}


def _reference(kind: str, fields: _Fields, known: Mapping[int, Any], refused: Set[int | str]) -> int | None:
    """The id of the record that an annotation refers to; None if it is invalid.

    Adds a problem, unless that record itself has one.
    """
    cure, expected = _REFERENCES[kind]
    key = f"{kind}_id"
    if fields.record.get(key) is None:
        stated = f"`{key}` is null" if key in fields.record else f"no `{key}`"
        fields.fault(stated, expected.format(known=named(sorted(known))), cure)
        return None
    try:
        found = scalars.integer(fields.record[key])
    except ScalarError as error:
        if error.found not in refused:
            fields.fault(f"`{key}` is {error.found}", error.expected, cure)
        return None
    if found in known:
        return found
    if found not in refused and (known or kind == "image"):
        said = f"it names {kind} {found}, which the file does not list"
        fields.fault(said, expected.format(known=named(sorted(known))), cure)
    return None
