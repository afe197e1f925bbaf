"""`python -m sskd_fast.check DATA...`: summarise a data set and list its faults before training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sskd_fast import _interrupt  # isort: split

if __name__ == "__main__":
    _interrupt.guard_start()

from sskd_fast.check.findings import MARKS, Place, check, guessed_format
from sskd_fast.check.words import checked_text
from sskd_fast.data.layouts import FORMATS, misfit
from sskd_fast.files import write_json
from sskd_fast.screen import say

_EXAMPLE = """examples:
  python -m sskd_fast.check --labeled labels.json --images DIR --val val.json --unlabeled DIR
  python -m sskd_fast.check labels.json --images DIR
  python -m sskd_fast.check /data/cityscapes"""


class PlaceError(ValueError):
    """Raised for arguments that do not say what to check."""


def parser() -> argparse.ArgumentParser:
    """The command-line parser."""
    p = argparse.ArgumentParser(
        prog="python -m sskd_fast.check",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "data",
        nargs="*",
        type=Path,
        metavar="DATA",
        help="labels (with --images), the folder of a whole data set, or a folder of plain images",
    )
    p.add_argument("--labeled", type=Path, help="labels of the labelled images, a file or a folder")
    p.add_argument("--images", type=Path, help="folder of the labelled images")
    p.add_argument("--val", type=Path, help="validation labels, on which results are reported")
    p.add_argument("--val-images", type=Path, help="folder of the validation images (default: --images)")
    p.add_argument("--unlabeled", type=Path, help="folder of plain unlabelled images")
    p.add_argument("--root", type=Path, help="folder of a whole data set")
    p.add_argument(
        "--format", choices=FORMATS, help="format of the labels (default: coco) or of the data set (default: guessed)"
    )
    p.add_argument("--group-key", help="image field whose groups stay together in splits (city, slide, video)")
    p.add_argument(
        "--confine", action="store_true", help="reject file names in labels that point outside the image folder"
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the findings to FILE")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 for sound data, 1 for problems, 2 with an error message if nothing can be checked."""
    arguments = parser().parse_intermixed_args(argv)
    try:
        found = [check(place) for place in places(arguments)]
        if arguments.json is not None:
            write_json(arguments.json, [checked.as_dict() for checked in found])
    except (PlaceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say("\n\n".join(checked_text(checked) for checked in found))
    return 1 if any(checked.problems for checked in found) else 0


def places(arguments: argparse.Namespace) -> list[Place]:
    """The data sets named on the command line.  Raises PlaceError if there is none, too much, or a path is missing."""
    a = arguments
    labels: dict[str, Any] = {"format": a.format or "coco", "group_key": a.group_key, "confine": a.confine}
    for path in (*a.data, a.labeled, a.images, a.val, a.val_images, a.unlabeled, a.root):
        if path is not None and not path.exists():
            raise PlaceError(f"{path}: there is no such file or folder; correct the path")
    if a.data:
        if a.labeled or a.val or a.unlabeled or a.root:
            raise PlaceError(f"{a.data[0]}: give it alone, or say what it is with --labeled, --root or --unlabeled")
        return [_positional(path, a, labels) for path in a.data]
    if a.root:
        if a.labeled or a.val:
            raise PlaceError("--root holds the whole data set: leave out --labeled and --val, or --root")
        return [Place(root=a.root, unlabeled=a.unlabeled, **labels | {"format": _format_of(a.root, a)})]
    if a.labeled and not a.images:
        raise PlaceError("--labeled needs --images, the folder of its images")
    if not a.labeled and (a.val or not a.unlabeled):
        raise PlaceError("give DATA, --labeled with --images, --root, or --unlabeled; --help has examples")
    if a.labeled and (problem := misfit(labels["format"], False, True)):
        raise PlaceError(problem)
    return [Place(a.labeled, a.images, a.val, a.val_images, unlabeled=a.unlabeled, **labels)]


def _positional(path: Path, arguments: argparse.Namespace, labels: dict[str, Any]) -> Place:
    """The place for a positional argument: labels, a whole data set, or else a folder of plain images."""
    if arguments.images or path.is_file():
        if not arguments.images:
            raise PlaceError(f"{path}: give the folder of its images, --images DIR")
        if problem := misfit(labels["format"], False, True):
            raise PlaceError(problem)
        return Place(path, arguments.images, **labels)
    if not arguments.format and not guessed_format(path):
        return Place(unlabeled=path)
    return Place(root=path, **labels | {"format": _format_of(path, arguments)})


def _format_of(root: Path, arguments: argparse.Namespace) -> str:
    guesses = [arguments.format] if arguments.format else guessed_format(root)
    if len(guesses) != 1:
        marks = ", ".join(f"{mark} ({format})" for format, mark in MARKS.items())
        found = f"has those of {' and '.join(guesses)}" if guesses else "has none of them"
        raise PlaceError(f"{root}: data sets are recognised by {marks}; it {found}: give the format with --format")
    if problem := misfit(guesses[0], True, False):
        raise PlaceError(problem)
    return str(guesses[0])


if __name__ == "__main__":
    sys.exit(main())
