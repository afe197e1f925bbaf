"""`python -m sskd_fast.export MODEL --format onnx`: export a trained model and verify that it predicts the same."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from sskd_fast import _interrupt  # isort: split

if __name__ == "__main__":
    _interrupt.guard_start()

from torch import Tensor

from sskd_fast.data.coco import CocoInstances, read_annotations
from sskd_fast.data.doctor import check_dataset
from sskd_fast.data.errors import DataError
from sskd_fast.data.folder import ImageFolder
from sskd_fast.data.labeled import LabeledImages
from sskd_fast.data.source import ImageCollection
from sskd_fast.exported import Exported, ExportError, Parity, Precision, export_onnx, export_openvino, parity_report
from sskd_fast.exported.exported import require_model
from sskd_fast.exported.file_description import check_suffix, files_of
from sskd_fast.exported.parity import TOLERANCE, report_of
from sskd_fast.folder_lock import FolderLock
from sskd_fast.models.checkpoint import CheckpointError
from sskd_fast.predictor import ModelError, Predictor, load
from sskd_fast.predictor.shared_classes import difference_text, shared_classes
from sskd_fast.report.run_folder import RunFolder, read_run
from sskd_fast.report.unlabeled_images import unlabeled_images
from sskd_fast.screen import say

EXPORTERS = {"onnx": (export_onnx, ".onnx"), "openvino": (export_openvino, ".xml")}
_EXAMPLE = "example: python -m sskd_fast.export runs/cells --format onnx --precision fp16"
# Images that calibrate int8; more change little.
_CALIBRATION = 40


def parser() -> argparse.ArgumentParser:
    """The command-line parser."""
    p = argparse.ArgumentParser(prog="python -m sskd_fast.export", description=__doc__, epilog=_EXAMPLE)
    p.add_argument("model", help="a run's folder, a checkpoint (.safetensors), or a hub id such as owner/name")
    p.add_argument("--stage", metavar="NAME", help="with a run's folder: stage of the model (default: last student)")
    p.add_argument("--format", choices=tuple(EXPORTERS), default="onnx", help="format of the file (default: onnx)")
    p.add_argument(
        "--precision", choices=get_args(Precision), default="fp32", help="precision of the network (default: fp32)"
    )
    p.add_argument(
        "--output", type=Path, metavar="FILE", help="file to write (default: exported/STAGE.PRECISION.onnx of the run)"
    )
    p.add_argument("--val", type=Path, metavar="JSON", help="COCO instances to compare on (default: the run's)")
    p.add_argument("--images", type=Path, metavar="DIR", help="folder of the images of --val")
    p.add_argument(
        "--calibration", type=Path, metavar="DIR", help="training images that calibrate int8 (default: the run's)"
    )
    p.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help=f"allowed change of mask AP (default: {TOLERANCE})"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    1 if the file's mask AP differs by more than the tolerance. 2 with an error message if the model or images do not
    fit. Else 0.
    """
    arguments = parser().parse_args(argv)
    try:
        path, parity = export(arguments)
    except (ModelError, CheckpointError, DataError, ExportError, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say(parity_text(path, parity))
    return 0 if parity.passes else 1


def export(arguments: argparse.Namespace) -> tuple[Path, Parity]:
    """Writes the exported file and its report beside it; returns the file's path and the report.

    The file is named NAME.failed until it passes the comparison, and keeps that name if it fails.  So an earlier file
    that passed is never overwritten by one that fails.  If the file goes to the run's folder, that folder is locked.
    Raises ModelError, CheckpointError, DataError, ExportError, ImportError, OSError or ValueError.
    """
    model = Path(arguments.model)
    own = model.is_dir() and (arguments.output is None or model.resolve() in arguments.output.resolve().parents)
    with FolderLock(model) if own else contextlib.nullcontext():
        return _export(arguments)


def _export(arguments: argparse.Namespace) -> tuple[Path, Parity]:
    predictor = load(arguments.model, stage=arguments.stage, device="cpu")
    require_model(predictor.model)
    write, suffix = EXPORTERS[arguments.format]
    path = arguments.output or default_path(Path(arguments.model), predictor, arguments.precision, suffix)
    check_suffix(path, suffix)
    source = validation_images(arguments, predictor)
    calibration = calibration_images(arguments, predictor) if arguments.precision == "int8" else []
    unproven = path.with_name(f"{path.stem}.failed{suffix}")
    report_of(unproven).unlink(missing_ok=True)
    exported: Exported = write(
        predictor.model, predictor.description, unproven, precision=arguments.precision, calibration=calibration
    )
    parity = parity_report(predictor.model, exported, source, predictor.inference, arguments.tolerance)
    written = _renamed(unproven, path) if parity.passes else unproven
    parity.write(written)
    return written, parity


def _renamed(old: Path, new: Path) -> Path:
    """Renames all files of an exported model; returns the new path."""
    for there, here in zip(files_of(old), files_of(new), strict=True):
        os.replace(there, here)
    return new


def default_path(model: Path, predictor: Predictor, precision: str, suffix: str) -> Path:
    """The default path: in the folder of a run, beside a checkpoint, or in the working directory for a hub id."""
    stage = str(predictor.description.facts.get("stage", "model"))
    folder = model / "exported" if model.is_dir() else model.parent if model.exists() else Path()
    return folder / f"{stage}.{precision}{suffix}"


def validation_images(arguments: argparse.Namespace, predictor: Predictor) -> LabeledImages:
    """The images to compare on, checked, with classes in the model's order: those of --val, else the run's own.

    Raises ExportError if there are none or their classes are not the model's, and DataError with every problem found.
    """
    labels, images, content = _labels(arguments)
    check_dataset(labels, images, decode=False, read=lambda *_: content)
    found = CocoInstances(content, images, name=str(labels))
    classes = shared_classes(predictor, found)
    if classes.differ:
        raise ExportError(
            f"{difference_text(labels, found, arguments.model, predictor, classes)}: give labels of the classes that "
            "the model was trained on, under the same names"
        )
    stretch = predictor.description.stretch
    return CocoInstances(content, images, class_names=predictor.class_names, name=str(labels), stretch=stretch)


def _labels(arguments: argparse.Namespace) -> tuple[Path, Path, dict[str, Any]]:
    """The labels to compare on: the path of their file, the folder of their images, and their content."""
    if arguments.val is not None:
        if arguments.images is None:
            raise ExportError(f"--val {arguments.val}: give the folder of its images, --images DIR")
        return arguments.val, arguments.images, read_annotations(arguments.val)
    run = _run(arguments)
    if run is None or run.ground_truth is None:
        raise ExportError(
            f"{arguments.model}: has no validation images to compare the file on; give --val val.json --images DIR"
        )
    labels = run.path / "ground_truth.json"
    names = [str(image["file_name"]) for image in run.ground_truth.get("images", [])]
    gone = [name for name in names if not (run.images_dir / name).is_file()]
    if gone:
        raise ExportError(
            f"{labels}: {len(gone)} of its images are gone, such as {run.images_dir / gone[0]}; give --val val.json "
            "--images DIR"
        )
    return labels, run.images_dir, run.ground_truth


def _run(arguments: argparse.Namespace) -> RunFolder | None:
    """The run in the model's folder; None if the model is not a folder."""
    place = Path(arguments.model)
    return read_run(place, predictions=False) if place.is_dir() else None


def calibration_images(arguments: argparse.Namespace, predictor: Predictor) -> list[Tensor]:
    """The images that calibrate int8: from --calibration, else the run's unlabelled ones.

    Raises ExportError if there are none.
    """
    if arguments.calibration is not None:
        source: ImageCollection = ImageFolder(arguments.calibration, stretch=predictor.description.stretch)
    else:
        run = _run(arguments)
        data = run.settings.get("data") if run is not None else None
        if run is None or not isinstance(data, dict):
            raise ExportError("--precision int8 is calibrated on training images: give --calibration DIR")
        source = unlabeled_images(run.path, data)
    return [source.image(i) for i in range(min(_CALIBRATION, len(source)))]


def parity_text(path: Path, parity: Parity) -> str:
    """The parity report in three lines."""
    verdict = (
        "passes" if parity.passes else "FAILS, hence its name: use a higher precision, or other calibration images"
    )
    return (
        f"{path}: {parity.precision}, run by {parity.runtime} on {parity.images} validation images\n"
        f"mask AP {parity.ap_file:.2f} instead of {parity.ap_model:.2f} ({parity.ap_change:+.2f}, at most "
        f"{parity.tolerance:g} allowed: {verdict})\n"
        f"largest difference of mask logits {parity.mask_difference_max:.2g}, of class logits "
        f"{parity.class_difference_max:.2g}; all figures in {report_of(path).name}"
    )


if __name__ == "__main__":
    sys.exit(main())
