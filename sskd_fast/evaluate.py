"""`python -m sskd_fast.evaluate MODEL --val val.json --images DIR`: mask AP of a trained model on labelled images."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sskd_fast import _interrupt  # isort: split

if __name__ == "__main__":
    _interrupt.guard_start()

from tqdm import tqdm

from sskd_fast.arguments import at_least
from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.derived import detections_warnings
from sskd_fast.data.doctor import check_dataset
from sskd_fast.data.errors import DataError, Findings, named
from sskd_fast.data.formats.table import READERS
from sskd_fast.data.id_map_checks import check_id_maps
from sskd_fast.data.inventory import Objects
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.layouts import FOLDER_FORMATS, FORMATS, ROOTS
from sskd_fast.data.official_titles import OFFICIAL_TITLES
from sskd_fast.evaluation import evaluate_masks, official_figures, require_official
from sskd_fast.files import finite, write_json
from sskd_fast.models.checkpoint import CheckpointError
from sskd_fast.predictor import ModelError, Predictor, load
from sskd_fast.predictor.shared_classes import SharedClasses, difference_text, shared_classes
from sskd_fast.report.numbers import ap_text
from sskd_fast.screen import say
from sskd_fast.source_prediction import predict_source, source_groups

_EXAMPLE = "example: python -m sskd_fast.evaluate runs/cells --val val.json --images val --json figures.json"
_COLUMNS = {
    "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "small", "ap_medium": "medium", "ap_large": "large",
}  # fmt: skip


class EvaluateError(ValueError):
    """A model and labels with different classes, or labels without their images."""


def parser() -> argparse.ArgumentParser:
    """The command-line parser."""
    p = argparse.ArgumentParser(
        prog="python -m sskd_fast.evaluate",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("model", help="a run's folder, a checkpoint (.safetensors), or a hub id such as owner/name")
    p.add_argument("--stage", metavar="NAME", help="with a run's folder: stage of the model (default: last student)")
    p.add_argument("--val", type=Path, required=True, help="labels to measure on, or the folder of a whole data set")
    p.add_argument("--images", type=Path, metavar="DIR", help="folder of the images, unless --val is a whole data set")
    p.add_argument("--format", choices=FORMATS, default="coco", help="format of the labels (default: coco)")
    p.add_argument(
        "--confine", action="store_true", help="reject file names in labels that point outside the image folder"
    )
    p.add_argument("--ignore-unknown", action="store_true", help="measure only the classes that model and labels share")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one")
    p.add_argument(
        "--augment", action="store_true", help="average over flipped, turned and zoomed views, as the teacher labels"
    )
    p.add_argument("--batch", type=at_least(1), metavar="N", help="tiles per forward pass (default: as in training)")
    p.add_argument(
        "--max-detections", type=at_least(1), metavar="N", help="detections per image (default: as in training)"
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 with an error message if the model, data or classes do not fit."""
    arguments = parser().parse_args(argv)
    try:
        figures = measured(arguments)
        if arguments.json is not None:
            write_json(arguments.json, figures)
    except (ModelError, CheckpointError, DataError, EvaluateError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for message in figures["warnings"]:
        print(f"warning: {message}", file=sys.stderr)
    say(figures_text(figures))
    return 0


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a command line, in the form of its JSON file.

    Raises ModelError, CheckpointError, DataError, EvaluateError, or ImportError if the data set's official evaluation
    needs a missing package.
    """
    predictor = load(arguments.model, stage=arguments.stage, device=arguments.device)
    changes = {key: getattr(arguments, key) for key in ("batch", "max_detections")}
    predictor = predictor.with_inference(**{key: value for key, value in changes.items() if value is not None})
    predictor = predictor.with_views() if arguments.augment else predictor
    source = labeled_images(arguments, predictor)
    require_official(source)
    classes = shared_classes(predictor, source)
    if classes.differ and not (arguments.ignore_unknown and classes.ids):
        raise EvaluateError(_difference(arguments, predictor, source, classes))
    truth = restricted(source.ground_truth(), set(classes.ids.values()))
    results = predictions(predictor, source, classes)
    limit = predictor.inference.max_detections
    figures = finite(dataclasses.asdict(evaluate_masks(truth, results, max_detections=limit)))
    warnings = [f"{arguments.val}: {words}" for words in detections_warnings({"labelled": counted(truth)}, limit)]
    instances = Counter(a["category_id"] for a in truth["annotations"] if not a["iscrowd"])
    about = {
        "model": str(arguments.model),
        "stage": predictor.description.facts.get("stage"),
        "labels": str(arguments.val),
        "images": len(source),
        "views": len(predictor.views),
        "instances": {c["name"]: instances[c["id"]] for c in truth["categories"]},
        "ignored": {"model": list(classes.model_only), "labels": list(classes.labels_only)},
        "warnings": warnings,
    }
    own = {} if classes.differ else finite(official_figures(source, results))
    return about | figures | own


def labeled_images(arguments: argparse.Namespace, predictor: Predictor) -> LabeledImages:
    """The labelled images to measure on, checked.

    Raises DataError with every problem found, and EvaluateError if the folder of images is not given.
    """
    format, place, stretch = arguments.format, arguments.val, predictor.description.stretch
    kind = FOLDER_FORMATS.get(format)
    if kind is not None:
        source = kind(place, "val", stretch=stretch)
        findings = Findings()
        check_id_maps(source, findings, decode=False)
        if findings.problems:
            raise DataError(findings.problems)
        return source
    images = arguments.images
    if images is None:
        if format not in ROOTS or not place.is_dir():
            raise EvaluateError(f"--val {place}: give the folder of its images, --images DIR")
        files = ROOTS[format](place)
        place, images = files.val, files.val_images
    # A format without a list of classes takes the model's, as validation labels take those of the training labels.
    content = READERS[format](place, images, predictor.class_names)
    check_dataset(place, images, decode=False, read=lambda *_: content, confine=arguments.confine)
    return CocoInstances(content, images, name=str(place), stretch=stretch, confine=arguments.confine)


def _difference(
    arguments: argparse.Namespace, predictor: Predictor, source: LabeledImages, classes: SharedClasses
) -> str:
    cure = (
        f"rename them, or measure the shared ones ({len(classes.ids)}) with --ignore-unknown"
        if classes.ids
        else "none is shared: give labels of the classes that the model was trained on, under the same names"
    )
    return f"{difference_text(arguments.val, source, arguments.model, predictor, classes)}: {cure}"


def restricted(truth: dict[str, Any], category_ids: set[int]) -> dict[str, Any]:
    """A COCO instances dict reduced to these categories and their annotations. All images stay."""
    categories = [c for c in truth["categories"] if c["id"] in category_ids]
    annotations = [a for a in truth["annotations"] if a["category_id"] in category_ids]
    return truth | {"categories": categories, "annotations": annotations}


def predictions(predictor: Predictor, source: LabeledImages, classes: SharedClasses) -> list[dict[str, Any]]:
    """COCO results on all images for the shared classes, with the category ids of the labels."""
    found: list[dict[str, Any]] = []
    with tqdm(total=len(source), desc="images", disable=None) as bar:
        for rows in source_groups(source):
            found += predict_source(
                predictor.model, predictor.inference, source, predictor.category_ids, rows, predictor.views
            )
            bar.update(len(rows))
    return [r | {"category_id": classes.ids[r["category_id"]]} for r in found if r["category_id"] in classes.ids]


def counted(truth: dict[str, Any]) -> Objects:
    """The number of objects in each image of a COCO instances dict, without crowd regions."""
    counts = Counter(a["image_id"] for a in truth["annotations"] if not a["iscrowd"])
    return Objects(tuple(counts[image["id"]] for image in truth["images"]))


def figures_text(figures: dict[str, Any]) -> str:
    """The figures as two text tables: over all classes, and class by class."""
    instances = figures["instances"]
    stage = f" ({figures['stage'].replace('_', ' ')})" if figures["stage"] else ""
    views = f", {figures['views']} views of each" if figures["views"] > 1 else ""
    lines = [
        f"{figures['model']}{stage} on {figures['images']} images of {figures['labels']}{views}: "
        f"{sum(instances.values())} instances; mask AP in percent, {figures['max_detections']} detections per image",
        *_ignored(figures["ignored"]),
        "",
        "".join(f"{title:>8}" for title in _COLUMNS.values()),
        "".join(f"{ap_text(figures[key]):>8}" for key in _COLUMNS),
        "",
    ]
    width = max(len(name) for name in ["class", *instances])
    lines.append(f"{'class':{width}}  instances      AP")
    lines += [f"{n:{width}}  {count:9}{ap_text(figures['per_class'].get(n)):>8}" for n, count in instances.items()]
    for judge, titles in OFFICIAL_TITLES.items():
        if judge in figures:
            lines += ["", ", ".join(f"{title} {ap_text(figures[judge][key])}" for key, title in titles.items())]
    return "\n".join(lines)


def _ignored(ignored: dict[str, list[str]]) -> list[str]:
    words = {"model": "classes of the model without labels", "labels": "labelled classes that the model does not know"}
    return [f"left out, {words[side]}: {named(names, 20)}" for side, names in ignored.items() if names]


if __name__ == "__main__":
    sys.exit(main())
