"""`python -m sskd_fast.rank RUN IMAGES...`: rank unlabelled images to label next, with pre-labels to start from.

Images on which a run's adapted teacher and its last student disagree most come first.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sskd_fast import _interrupt  # isort: split

if __name__ == "__main__":
    _interrupt.guard_start()

from sskd_fast.arguments import at_least, between
from sskd_fast.data.errors import DataError
from sskd_fast.data.formats.own_files import OwnFiles
from sskd_fast.data.places import InputError
from sskd_fast.method import STAGE
from sskd_fast.models.checkpoint import CheckpointError
from sskd_fast.predictor import ModelError
from sskd_fast.rank.judges import Judge, judges_of
from sskd_fast.rank.prelabels import instances_dict
from sskd_fast.rank.ranking import RankedImage, open_images, rank_images
from sskd_fast.screen import say
from sskd_fast.typed_settings import ConfigError

_EXAMPLE = """Exit status: 0, 1 if an image could not be read and was skipped, 2 if nothing could be done.

example: python -m sskd_fast.rank runs/cells unlabelled --top 50 --output next
"""
_SHOWN = 10
PRELABELS, RANKING, TABLE = "prelabels.json", "ranking.json", "ranking.csv"


def parser() -> argparse.ArgumentParser:
    """The command-line parser."""
    p = argparse.ArgumentParser(
        prog="python -m sskd_fast.rank",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    p.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders with their sub-folders, quoted globs")
    p.add_argument("--output", type=Path, metavar="DIR", help="folder of the results (default: RUN/next)")
    p.add_argument("--top", type=at_least(1), metavar="N", help="pre-label only the first N images (default: all)")
    p.add_argument(
        "--score", type=between(0.0, 1.0), metavar="S", help="score threshold for both models (default: the run's)"
    )
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 if images were skipped, or 2 if nothing could be done."""
    arguments = parser().parse_args(argv)
    output = arguments.output or arguments.run / "next"
    try:
        own = OwnFiles(output)
        own.check([PRELABELS, RANKING, TABLE])
        judges = judges_of(arguments.run, device=arguments.device, score=arguments.score)
        source = open_images(arguments.images, stretch=judges[0].predictor.description.stretch)
        ranked = rank_images(source, *judges)
        if not ranked:
            raise InputError(f"none of {len(source)} images could be read; see the lines above")
        chosen = ranked[: arguments.top]
        for name, text in contents(ranked, chosen, judges, source.images_dir).items():
            own.add(PurePosixPath(name), text)
        own.write()
    except (ModelError, CheckpointError, ConfigError, DataError, InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say(ranking_text(ranked, judges))
    labels = sum(len(image.comparison.prelabels) for image in chosen)
    say(f"\n{output}: {TABLE}, {RANKING}, and {labels} pre-labels on {len(chosen)} images in {PRELABELS}")
    say(f"correct them, then train on them: --labeled {output / PRELABELS} --images {source.images_dir}")
    return 0 if len(ranked) == len(source) else 1


def contents(
    ranked: Sequence[RankedImage], chosen: Sequence[RankedImage], judges: tuple[Judge, Judge], folder: Path
) -> dict[str, str]:
    """The content of each output file by name; chosen: the images to pre-label."""
    rows = [image.row(rank) for rank, image in enumerate(ranked, 1)]
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    predictor = judges[0].predictor
    names = dict(zip(predictor.category_ids, predictor.class_names, strict=True))
    about: dict[str, Any] = {
        role: {"stage": judge.stage, "thresholds": {names[i]: score for i, score in judge.thresholds.items()}}
        for role, judge in zip(("teacher", "student"), judges, strict=True)
    }
    return {
        PRELABELS: json.dumps(instances_dict(chosen, names)),
        RANKING: json.dumps(about | {"images": str(folder), "ranking": rows}),
        TABLE: table.getvalue(),
    }


def ranking_text(ranked: Sequence[RankedImage], judges: tuple[Judge, Judge]) -> str:
    """The first images of the ranking as a text table."""
    teacher, student = (STAGE[judge.stage].words for judge in judges)
    lines = [
        f"{len(ranked)} images by disagreement of the {teacher} and the {student}: 0 = same instances, 1 = none "
        "in common",
        "",
        "rank  disagreement  teacher  student  file",
    ]
    for rank, image in enumerate(ranked[:_SHOWN], 1):
        row = image.row(rank)
        lines.append(f"{rank:4}  {row['disagreement']:12.3f}  {row['teacher']:7}  {row['student']:7}  {image.file}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
