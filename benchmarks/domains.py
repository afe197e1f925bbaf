"""The parts of a domain shift: label files of a source, and of the folds of a target, from one COCO data set."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.copies import same_content
from sskd_fast.data.splits import fold_ids
from sskd_fast.files import write_json


@dataclass(frozen=True)
class Domain:
    """The images whose field has a value: "modality=fluorescence"."""

    field: str
    value: str

    @classmethod
    def of(cls, text: str) -> Domain:
        """Parses FIELD=VALUE from the command line. Raises argparse's error for other text."""
        field, equals, value = text.partition("=")
        if not (field and equals and value):
            raise argparse.ArgumentTypeError(f"found {text!r}, expected FIELD=VALUE, such as modality=fluorescence")
        return cls(field, value)

    def __contains__(self, image: Mapping[str, Any]) -> bool:
        return str(image.get(self.field)) == self.value

    def __str__(self) -> str:
        return f"{self.field}={self.value}"


@dataclass(frozen=True)
class Groups:
    """The images of some groups; `field` names the group of an image."""

    field: str
    names: frozenset[Any]

    def __contains__(self, image: Mapping[str, Any]) -> bool:
        return image.get(self.field) in self.names

    def __str__(self) -> str:
        return f"{len(self.names)} groups"


def drawn_groups(data: Path, count: int, field: str) -> tuple[Groups, Groups]:
    """`count` groups of a data set, drawn at random, always the same ones, and the others.

    Raises SystemExit if an image has no group, if a source of fewer than two groups or a target of fewer than three
    would be left, or if both have the same image file.
    """
    images = read_all(data)["images"]
    if missing := [image["file_name"] for image in images if field not in image]:
        raise SystemExit(f"--group: {missing[0]} has no field {field!r}; expected every image to name its group")
    found = {image[field] for image in images}
    names = sorted(found, key=str)
    if not 2 <= count <= len(names) - 3:
        raise SystemExit(
            f"--source-groups: found {count} of {len(names)} groups, expected at least 2 and at least 3 others"
        )
    source = Groups(field, frozenset(random.Random(0).sample(names, count)))
    target = Groups(field, frozenset(found - source.names))
    parts = [[data / "images" / image["file_name"] for image in images if image in part] for part in (source, target)]
    for copy, original in same_content(*parts).items():
        raise SystemExit(f"{copy} is the same file as {original}, in another group; expected copies in one group")
    return source, target


def read_all(data: Path) -> dict[str, Any]:
    """Merge all annotation files of a data set, with new ids for images and annotations."""
    whole: dict[str, Any] = {"images": [], "annotations": []}
    for file in sorted((data / "annotations").glob("instances_*.json")):
        part = json.loads(file.read_text(encoding="utf-8"))
        ids = {image["id"]: len(whole["images"]) + n for n, image in enumerate(part["images"], 1)}
        whole["images"] += [image | {"id": ids[image["id"]]} for image in part["images"]]
        first = len(whole["annotations"]) + 1
        whole["annotations"] += [
            a | {"id": first + n, "image_id": ids[a["image_id"]]} for n, a in enumerate(part["annotations"])
        ]
        whole["categories"] = part["categories"]
    if not whole["images"]:
        raise SystemExit(f"{data / 'annotations'}: no image in instances_*.json; give the folder of a COCO data set")
    return whole


def part_of(whole: Mapping[str, Any], image_ids: Iterable[int]) -> dict[str, Any]:
    """The part of the data set with these images."""
    kept = set(image_ids)
    return {
        "images": [image for image in whole["images"] if image["id"] in kept],
        "annotations": [a for a in whole["annotations"] if a["image_id"] in kept],
        "categories": whole["categories"],
    }


def write_parts(
    data: Path, output: Path, source: Domain | Groups, target: Domain | Groups, folds: int, group: str
) -> int:
    """Writes source.json, and train_N.json and val_N.json for each fold of the target. Returns the number of folds.

    A fold has whole groups. A group with images of both domains is left out of the source.
    """
    whole = read_all(data)
    ids = {
        name: [i["id"] for i in whole["images"] if i in domain]
        for name, domain in (("source", source), ("target", target))
    }
    for name, domain in (("source", source), ("target", target)):
        if not ids[name]:
            raise SystemExit(f"--{name} {domain}: none of {len(whole['images'])} images has it")
    groups = {image["id"]: image.get(group, image["id"]) for image in whole["images"]}
    of_target = {groups[i] for i in ids["target"]}
    write_json(output / "source.json", part_of(whole, (i for i in ids["source"] if groups[i] not in of_target)))
    write_json(output / "target.json", part_of(whole, ids["target"]))
    images = CocoInstances(output / "target.json", data / "images", name="target")
    parts = fold_ids(images, folds, seed=0, group_key=group)
    for number, fold in enumerate(parts, 1):
        write_json(output / f"val_{number}.json", part_of(whole, fold))
        write_json(output / f"train_{number}.json", part_of(whole, set(ids["target"]) - set(fold)))
    return len(parts)


def source_share(source: Path, group: str) -> float:
    """The share of the source's images that keep their labels: 98 %, or all but one group."""
    images = json.loads(source.read_text(encoding="utf-8"))["images"]
    groups = len({image.get(group, image["id"]) for image in images})
    return min(0.98, (groups - 1) / groups)
