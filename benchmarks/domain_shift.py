"""A domain shift, cross-validated: `python -m benchmarks.domain_shift DATA --source modality=fluorescence ...`.

Teacher and student are first trained on the labels of a source domain. They get 98 % of them, or all but one group,
since a run needs unlabelled images. From these weights they start on a target domain with few labels. The target is
cross-validated over whole groups. Each fold is the validation set of one run, and the rest its training set, of which a
share has labels. Every baseline starts from the same weights as our models. DATA is a folder with
annotations/instances_*.json and images/.

With --source-groups N, N groups drawn at random are the source and the others the target: a teacher that has seen many
labelled images like those of the target. With --truth, only the student is trained, on the hidden true labels: the
upper bound for any teacher. Run the same command to resume. --only runs some folds. Once the source is trained, calls
for other folds can run beside it, started one after another. The summary has the folds of the last call, so the same
command without --only sums up all of them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sskd_fast import _process  # noqa: F401  # isort: split
from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.copies import same_content
from sskd_fast.data.splits import fold_ids
from sskd_fast.files import write_json
from sskd_fast.method import BASELINE, FINAL_STUDENTS, MATCHED_BASELINE
from sskd_fast.report.summary import seed_folder, write_summary
from sskd_fast.report.summary_pages import markdown
from sskd_fast.run.in_folder import run_in_folder
from sskd_fast.run.status import status_of
from sskd_fast.yaml_settings import load_config

_STUDENTS = (MATCHED_BASELINE, BASELINE, *FINAL_STUDENTS)
_ON_SOURCE = ("supervised_teacher", BASELINE)
# No student is taught on the source, so its fold models need not be good. Its student is a start, and needs no search.
_NO_FOLDS = ("pseudo_labels.folds=2", "pseudo_labels.fold_steps=0.01", "train.evaluations=0", "baseline.folds=0")


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


def fold_numbers(text: str) -> list[int]:
    """Parses "1,3" as numbers of folds. Raises argparse's error for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts) or len(set(map(int, parts))) < len(parts):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected different folds from 1 up, such as 1,3")
    return [int(part) for part in parts]


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


def parser_of_arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.domain_shift", description=__doc__)
    parser.add_argument("data", type=Path, help="a folder with annotations/ and images/")
    parser.add_argument("--source", type=Domain.of, metavar="FIELD=VALUE", help="images of the source; needs --target")
    parser.add_argument("--target", type=Domain.of, metavar="FIELD=VALUE", help="images of the target")
    parser.add_argument(
        "--source-groups", type=int, metavar="N", help="instead of both: N groups drawn at random, and the others"
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of settings")
    parser.add_argument("--output", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--folds", type=int, default=3, help="number of folds of the target (3)")
    parser.add_argument("--only", type=fold_numbers, metavar="N,N", help="these folds alone, numbered from 1 (all)")
    parser.add_argument("--labeled-fraction", type=float, default=0.1, help="of the target's training images (0.1)")
    parser.add_argument("--group", default="group", help="field of images that stay together (group)")
    parser.add_argument("--truth", action="store_true", help="upper bound: hidden true labels instead of a teacher's")
    parser.add_argument("--source-override", action="append", default=[], metavar="X=Y", help="for the source only")
    parser.add_argument("overrides", nargs="*", metavar="section.setting=value", help="any setting, for all runs")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Trains on the source, then on each fold of the target, and prints the summary over the folds."""
    parser = parser_of_arguments()
    a = parser.parse_intermixed_args(argv)
    if (a.source is None) != (a.target is None) or (a.source is None) == (a.source_groups is None):
        parser.error("expected --source with --target, or --source-groups alone")
    source, target = (a.source, a.target) if a.source else drawn_groups(a.data, a.source_groups, a.group)
    a.output.mkdir(parents=True, exist_ok=True)
    count = write_parts(a.data, a.output, source, target, a.folds, a.group)
    numbers = a.only or list(range(1, count + 1))
    if beyond := [number for number in numbers if not 1 <= number <= count]:
        parser.error(f"argument --only: found {beyond[0]}, expected folds from 1 to {count}")
    settings = [f"data.name={a.data.resolve().name}", f"data.images={a.data / 'images'}", f"data.group_key={a.group}",
                "data.stratify_key=''", "data.balance_key=''", *a.overrides]  # fmt: skip
    on_source = a.output / "source"
    labels = a.output / "source.json"
    own = [f"data.labeled={labels}", f"data.val={a.output / 'val_1.json'}", f"output={on_source}",
           f"data.labeled_fraction={source_share(labels, a.group)}", *_NO_FOLDS]  # fmt: skip
    run_in_folder(load_config([a.config], [*settings, *own, *a.source_override]), "all", True, only=_ON_SOURCE)
    below = a.output / ("truth" if a.truth else "runs")
    weights = {
        model: on_source / "checkpoints" / f"{stage}.safetensors"
        for model, stage in zip(("teacher", "student"), _ON_SOURCE, strict=True)
    }
    for position, number in enumerate(numbers, 1):
        own = [
            f"seed={number}",
            f"data.labeled={a.output / f'train_{number}.json'}",
            f"data.val={a.output / f'val_{number}.json'}",
            f"data.labeled_fraction={a.labeled_fraction}",
            f"output={seed_folder(below, number)}",
            *(f"{m}_weights={path}" for m, path in weights.items()),
            *(["pseudo_labels.truth=true", "train.semi_masks=1", "train.semi_fade=0"] if a.truth else []),
        ]
        run_in_folder(load_config([a.config], [*settings, *own]), "all", True, only=_STUDENTS if a.truth else ())
        print(markdown(write_summary(below, numbers[:position])), flush=True)


if __name__ == "__main__":
    sys.exit(status_of(main, again="the same command"))
