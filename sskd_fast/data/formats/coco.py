"""COCO files: reading and writing of instances, and writing of results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pycocotools.mask as coco_mask

from sskd_fast.data.coco import read_annotations
from sskd_fast.data.errors import DataError, Findings
from sskd_fast.data.formats.own_files import OwnFiles


def read_coco(place: Path, images: Path, classes: Sequence[str] = ()) -> dict[str, Any]:
    """The content of a COCO instances file, which lists its own images and classes; see `read_annotations`."""
    return read_annotations(place)


def complete_coco(
    images: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]],
    info: Mapping[str, Any],
) -> dict[str, Any]:
    """COCO results as a COCO instances dict for other tools: annotations with id, bbox, area, iscrowd and score.

    images: records with id, file_name, height and width.  results: with compressed RLE.  info: file names are relative
    to its "images_dir".
    """
    annotations = [
        {
            "id": number,
            "iscrowd": 0,
            **result,
            "bbox": coco_mask.toBbox(result["segmentation"]).tolist(),
            "area": int(coco_mask.area(result["segmentation"])),
        }
        for number, result in enumerate(results, 1)
    ]
    return {"info": dict(info), "images": list(images), "annotations": annotations, "categories": list(categories)}


def write_coco(instances: Mapping[str, Any], path: Path) -> list[Path]:
    """Writes a COCO instances file with scores; returns its path in a list.

    Raises DataError if a file exists there that this function did not write, or that was edited since.
    """
    content = {**instances, "annotations": [_plain(annotation) for annotation in instances["annotations"]]}
    return _write(path, content)


def write_coco_results(instances: Mapping[str, Any], path: Path) -> list[Path]:
    """Writes a COCO results file: image_id, category_id, segmentation, score, and iscrowd if set, of all annotations.

    Raises DataError if an annotation has no score; otherwise like `write_coco`.
    """
    findings = Findings()
    for annotation in instances["annotations"]:
        if "score" not in annotation:
            item = f"annotation {annotation.get('id')} of image {annotation.get('image_id')}"
            findings.add("instances", item, "no score", "one, as results have", "Write it with the format coco.")
    if findings.problems:
        raise DataError(findings.problems)
    keys = ("image_id", "category_id", "segmentation", "score")
    return _write(
        path,
        [
            {**{key: _plain(a)[key] for key in keys}, **({"iscrowd": 1} if a.get("iscrowd") else {})}
            for a in instances["annotations"]
        ],
    )


def _plain(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """An annotation for JSON, with the counts of compressed RLE as text."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping) and isinstance(segmentation["counts"], bytes):
        segmentation = {**segmentation, "counts": segmentation["counts"].decode("ascii")}
    return {**annotation, "segmentation": segmentation}


def _write(path: Path, content: Any) -> list[Path]:
    own = OwnFiles(path.parent)
    own.add(PurePosixPath(path.name), json.dumps(content, ensure_ascii=False))
    return own.write()
