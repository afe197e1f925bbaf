"""`python -m sskd_fast.predict MODEL IMAGES...`: find the instances in images and videos, and draw them."""

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

EXAMPLES = """writes DIR/predictions.json (COCO instances; its annotations are also COCO results) and pictures of all
images to DIR/overlays.  If the command is killed, run it again to continue where it stopped.
Exit status: 0, 1 if an image could not be read and was skipped, 2 if nothing could be done.

examples:
  python -m sskd_fast.predict runs/embedded photos/                         all images below a folder
  python -m sskd_fast.predict model.safetensors 'plates/**/*.tif' --score 0   all detections, as AP needs them
  python -m sskd_fast.predict owner/name clip.mp4 --every 10 --output clip    every tenth frame of a video
"""


FORMATS = ("coco", "yolo", "labelme")
PREDICTIONS = "predictions.json"


def parser() -> argparse.ArgumentParser:
    """The command-line parser."""
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
    p.add_argument("--stage", help="with a run's folder: stage of the model (default: last student)")
    p.add_argument("--score", type=between(0.0, 1.0), default=0.5, help="lowest score written and drawn (default: 0.5)")
    p.add_argument("--max-detections", type=at_least(1), help="most instances per image (default: as in training)")
    p.add_argument(
        "--augment", action="store_true", help="average over flipped, turned and zoomed views: slower, more accurate"
    )
    p.add_argument("--batch", type=at_least(1), help="tiles per forward pass (default: as in training)")
    p.add_argument(
        "--max-pixels", type=at_least(1), metavar="N", help=f"limit on the size of an image (default: {MAX_PIXELS:,})"
    )
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument(
        "--every", type=at_least(1), default=1, metavar="N", help="take every Nth frame of a video (default: 1)"
    )
    p.add_argument("--format", choices=FORMATS, default="coco", help="also write DIR/yolo or DIR/labelme")
    p.add_argument(
        "--overlays", action=argparse.BooleanOptionalAction, default=True, help="draw pictures (default: yes)"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 if images were skipped, or 2 if nothing could be done."""
    arguments = parser().parse_args(argv)
    try:
        return predict_to_folder(arguments)
    except (
        ModelError, CheckpointError, ExportError, FoundationError, InputError, DataError, OSError, ImportError,
    ) as error:  # fmt: skip
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command continues where it stopped", file=sys.stderr)
        return 130


def predict_to_folder(arguments: argparse.Namespace) -> int:
    """Predicts, writes all results below the output folder and prints a summary; returns the exit status."""
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
    predictor = predictor.with_views() if arguments.augment else predictor
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
    """Writes predictions.json, and a folder `also` in that format.

    Raises DataError, and overwrites nothing, if files there were edited since.
    """
    WRITERS["coco"](content, output / PREDICTIONS)
    if also != "coco":
        WRITERS[also](content, output / also)


def summary(records: Sequence[dict[str, object]], work: Work, output: Path) -> str:
    """A line on the predictions, and one on images that reach the limit of instances."""
    counts = [len(results) for record in records if isinstance(results := record["results"], list)]
    text = (
        f"{len(counts)} images, {sum(counts)} instances with a score of at least {work.score:g}: "
        f"{output / 'predictions.json'}"
    )
    if work.drawings is not None:
        text += f"; pictures: {work.drawings}"
    limit = work.predictor.inference.max_detections
    full = sum(count >= limit for count in counts)
    return text + (f"\n{full} images have {limit} instances, the limit; raise it with --max-detections" if full else "")


if __name__ == "__main__":
    sys.exit(main())
