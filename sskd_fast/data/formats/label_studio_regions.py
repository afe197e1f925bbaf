"""Regions of Label Studio's annotations: results read strictly, joined by id, and drawn."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sskd_fast import scalars
from sskd_fast.data.errors import Findings, named
from sskd_fast.data.formats import shapes
from sskd_fast.data.formats.collected import Collected
from sskd_fast.data.formats.label_studio_brush import decode_brush
from sskd_fast.rle import MaskError
from sskd_fast.scalars import ScalarError, is_number, shown

AGAIN = 'Export the project as "JSON" again.'
_NO_OBJECTS = {"choices", "taxonomy", "textarea", "rating", "number", "datetime", "pairwise", "ranker", "relation"}
_MASKS = "Annotate masks: boxes alone cannot train instance segmentation. Remove what is no object."


@dataclass(frozen=True)
class Region:
    """A result of an annotation: a shape, its labels, or both.

    place: its name in messages.  id: shared by the results of one region; None if missing.  kind: its `type`.
    """

    place: str
    id: str | int | None
    kind: str
    value: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def labels(self) -> list[Any]:
        """The labels in this result."""
        names = self.value.get(self.kind, []) if self.kind.endswith("labels") else []
        return names if isinstance(names, list) else [names]

    @property
    def geometry(self) -> dict[str, Any]:
        """The fields of the value with the geometry of the region; empty if the result has only labels."""
        return {key: value for key, value in self.value.items() if not key.endswith("labels") and key != "closed"}


def objects(record: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The objects listed in a field of a record; [] if it is missing.  Raises ScalarError for any other content."""
    listed = record.get(key, [])
    if not isinstance(listed, list):
        raise ScalarError(f"`{key}` is {shown(listed)}", "a list of objects")
    for entry in listed:
        if not isinstance(entry, dict):
            raise ScalarError(f"`{key}` holds {shown(entry)}", "a list of objects")
    return listed


def regions_of(path: Path, item: str, annotation: Mapping[str, Any], findings: Findings) -> list[Region]:
    """The valid results of an annotation about objects. Each invalid one adds a problem."""
    found = []
    for number, record in enumerate(objects(annotation, "result")):
        try:
            region = _region(item, number, record)
        except ScalarError as error:
            findings.add(path, f"{item}, result[{number}]", error.found, error.expected, AGAIN)
            continue
        if region is not None:
            found.append(region)
    return found


def _region(item: str, number: int, record: Mapping[str, Any]) -> Region | None:
    kind, region_id, value = record.get("type"), record.get("id"), record.get("value", {})
    if not isinstance(kind, str):
        raise ScalarError(f"`type` is {shown(kind)}", "the type of the region as text")
    if kind in _NO_OBJECTS:
        return None
    if isinstance(region_id, bool) or not isinstance(region_id, (str, int, type(None))):
        raise ScalarError(f"`id` is {shown(region_id)}", "a text")
    if not isinstance(value, dict):
        raise ScalarError(f"`value` is {shown(value)}", "an object with the points or the RLE of the region")
    named_id = region_id is not None and region_id != ""
    place = f"{item}, {f'region {str(region_id)[:40]}' if named_id else f'result[{number}]'} ({kind[:40]})"
    return Region(place, region_id if named_id else None, kind, value, record)


def read_regions(path: Path, regions: Sequence[Region], name: str, size: tuple[int, int], into: Collected) -> None:
    """Adds the objects of an image. Regions with one id are one object, unless they are shapes with a label each."""
    for region, labels in _labelled_shapes(regions):
        if len(labels) != 1 or not isinstance(labels[0], str):
            found = f"not one label but {named(labels, 4)}" if labels else "not one label"
            cure = "Give the region one label, or remove it. Shapes that share an id need a label each."
            into.findings.add(path, region.place, found, "one", cure)
            continue
        drawn = into.drawn(path, region.place, lambda region=region: _draw(region, *size))  # type: ignore[misc]
        if drawn is not None:
            into.instance(name, labels[0], [drawn], f"{path}: {region.place}")


def _labelled_shapes(regions: Sequence[Region]) -> Iterator[tuple[Region, list[Any]]]:
    """Yields each shape with its labels: of all results with its id if it is their only shape, else its own."""
    by_id: dict[Hashable, list[Region]] = defaultdict(list)
    for number, region in enumerate(regions):
        by_id[("", number) if region.id is None else (type(region.id), region.id)].append(region)
    for results in by_id.values():
        drawn: dict[str, list[Region]] = defaultdict(list)
        for region in results:
            if region.geometry:
                drawn[json.dumps(region.geometry, sort_keys=True)].append(region)
        for same in list(drawn.values()) or [results]:
            labels = [label for region in (same if len(drawn) > 1 else results) for label in region.labels]
            yield same[0], [label for number, label in enumerate(labels) if label not in labels[:number]]


def _draw(region: Region, height: int, width: int) -> dict[str, Any]:
    _check_upright(region.record.get("image_rotation"))
    if "points" in region.value:
        points = region.value["points"]
        pairs = points if isinstance(points, list) else [points]
        if not all(isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) for pair in pairs):
            raise MaskError(f"the points {str(points)[:80]}", "pairs of percentages", AGAIN)
        return shapes.polygon([(x / 100 * width, y / 100 * height) for x, y in pairs], height, width)
    code = region.value.get("rle")
    if region.value.get("format") == "rle" and isinstance(code, list):
        colours = decode_brush(code, 4 * height * width).reshape(height, width, 4)
        return shapes.bitmap(colours[..., 3] > 0, 0, 0, height, width)
    raise MaskError(f"a region of type {region.kind}", "polygonlabels or brushlabels", _MASKS)


def _check_upright(rotation: object) -> None:
    try:
        upright = rotation is None or scalars.number(rotation) == 0
    except ScalarError as error:
        raise MaskError(f"`image_rotation` is {error.found}", "0 degrees", AGAIN) from error
    if not upright:
        cure = "Turn the image back in Label Studio, or turn the file itself and annotate that."
        raise MaskError(f"a region on an image turned by {rotation} degrees", "0 degrees", cure)


def in_shares(regions: Sequence[Region]) -> bool:
    """True if there are polygons and all lie between 0 and 1, so that they look like shares and not percentages."""
    listed = [region.value["points"] for region in regions if isinstance(region.value.get("points"), list)]
    values = [value for points in listed for pair in points if isinstance(pair, list) for value in pair]
    return bool(values) and all(is_number(value) and 0 <= value <= 1 for value in values)
