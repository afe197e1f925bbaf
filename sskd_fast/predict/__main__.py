"""`python -m sskd_fast.predict MODEL IMAGES...`: finds the instances in images and videos, and draws them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sskd_fast import _interrupt  # isort: split

if __name__ == "__main__":
    _interrupt.guard_start()

from sskd_fast._env import allow_pixels
from sskd_fast.arguments import at_least, between
from sskd_fast.data.errors import DataError
from sskd_fast.data.formats.own_files import OwnFiles
from sskd_fast.data.formats.table import WRITERS
from sskd_fast.data.pixels import MAX_PIXELS
from sskd_fast.data.places import InputError
from sskd_fast.exported import ExportError
from sskd_fast.files import remove_partial
from sskd_fast.journal import Journal
from sskd_fast.models.checkpoint import CheckpointError
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.predict.inputs import find_inputs
from sskd_fast.predict.work import Work, coco_of
from sskd_fast.predictor import ModelError, load
from sskd_fast.screen import say

EXAMPLES = """writes DIR/predictions.json (COCO: opens anywhere, its annotations are results) and pictures of all images
to DIR/overlays.  Killed and started again, the same command goes on where it stopped.
Exit status: 0, 1 if an image could not be read and was skipped, 2 if nothing could be done.

examples:
  python -m sskd_fast.predict runs/embedded photos/                         all images below a folder
  python -m sskd_fast.predict model.safetensors 'plates/**/*.tif' --score 0   all that the model gives, as AP needs
  python -m sskd_fast.predict owner/name clip.mp4 --every 10 --output clip    every tenth frame of a video
"""


FORMATS = ("coco", "yolo", "labelme")
PREDICTIONS = "predictions.json"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m sskd_fast.predict",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("model", metavar="MODEL", help="a run's folder, .safetensors, .onnx or .xml, saved folder or hub id")
    p.add_argument(
        "images", metavar="IMAGES", nargs="+", help="files, folders with their sub-folders, quoted globs, videos"
    )
    p.add_argument("--output", type=Path, default=Path("predictions"), metavar="DIR", help="(predictions)")
    p.add_argument("--stage", help="whose model to take from a run's folder; by default the last student's")
    p.add_argument(
        "--score", type=between(0.0, 1.0), default=0.5, help="instances below are neither written nor drawn (0.5)"
    )
    p.add_argument("--max-detections", type=at_least(1), help="instances an image at most; by default as in training")
    p.add_argument("--batch", type=at_least(1), help="tiles a forward pass; by default as in training")
    p.add_argument(
        "--max-pixels", type=at_least(1), metavar="N", help=f"pixels of the largest image that is read ({MAX_PIXELS:,})"
    )
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument("--every", type=at_least(1), default=1, metavar="N", help="take every Nth frame of a video (1)")
    p.add_argument(
        "--format", choices=FORMATS, default="coco", help="write DIR/yolo or DIR/labelme beside predictions.json"
    )
    p.add_argument("--overlays", action=argparse.BooleanOptionalAction, default=True, help="draw pictures (yes)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, 1 if images were skipped, 2 if nothing could be done."""
    arguments = parser().parse_args(argv)
    try:
        return predict_to_folder(arguments)
    except (
        ModelError, CheckpointError, ExportError, FoundationError, InputError, DataError, OSError, ImportError,
    ) as error:  # fmt: skip
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130


def predict_to_folder(arguments: argparse.Namespace) -> int:
    """Predicts, writes everything below the output folder and says what is there; returns the exit status."""
    output: Path = arguments.output
    if arguments.max_pixels is not None:
        allow_pixels(arguments.max_pixels)
    OwnFiles(output).check([PREDICTIONS])
    inputs = find_inputs(arguments.images, every=arguments.every, skip=output / "overlays")
    for note in inputs.notes:
        print(note, file=sys.stderr)
    wanted = {"batch": arguments.batch, "max_detections": arguments.max_detections}
    predictor = load(arguments.model, stage=arguments.stage, device=arguments.device)
    predictor = predictor.with_inference(**{name: value for name, value in wanted.items() if value is not None})
    work = Work(
        arguments.model, predictor, inputs, arguments.score, output / "overlays" if arguments.overlays else None
    )
    with Journal(output / f"{PREDICTIONS}.partial", work.key) as journal:
        remove_partial(output / "overlays")
        records = work.go_on(journal)
        readable = [record for record in records if "results" in record]
        if readable:
            write_predictions(coco_of(records, work), output, arguments.format)
        journal.remove()
    if not readable:
        raise InputError(f"none of {len(records)} images could be read; see the lines above")
    say(summary(readable, work, output))
    return 0 if len(readable) == len(records) else 1


def write_predictions(content: dict[str, Any], output: Path, also: str) -> None:
    """Writes predictions.json, and a folder `also` in that format; DataError, and no loss, for files edited since."""
    WRITERS["coco"](content, output / PREDICTIONS)
    if also != "coco":
        WRITERS[also](content, output / also)


def summary(records: Sequence[dict[str, object]], work: Work, output: Path) -> str:
    """A line on the predictions, and one on images that may hold more instances than the limit lets through."""
    counts = [len(results) for record in records if isinstance(results := record["results"], list)]
    text = (
        f"{len(counts)} images, {sum(counts)} instances of score {work.score:g} and more: {output / 'predictions.json'}"
    )
    if work.drawings is not None:
        text += f"; pictures: {work.drawings}"
    limit = work.predictor.inference.max_detections
    full = sum(count >= limit for count in counts)
    return text + (f"\n{full} images have {limit} instances, the limit; raise it by --max-detections" if full else "")


if __name__ == "__main__":
    sys.exit(main())
