"""`python -m sskd_fast.study TABLE`: trains the rows of a study, seed by seed, and sums them up in a table."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sskd_fast import _interrupt, _process  # noqa: F401  # isort: split

if __name__ == "__main__":
    _interrupt.guard_start()
from sskd_fast.run.status import status_of
from sskd_fast.study.parts import Settings
from sskd_fast.study.rows import Study
from sskd_fast.study.run import rows_of, run_study
from sskd_fast.study.tables import TABLES
from sskd_fast.train.checkpoint import PieceOver

# The exit status of a piece (see --pieces) that ends before the study is finished.
NOT_FINISHED = 3

EXAMPLES = """examples:
  python -m sskd_fast.study ablations --data embedded --seeds 3 --page docs/results.md
  python -m sskd_fast.study negatives --data configs/nuclei.yaml --seeds 0,1,2 --rows "no L_pxl,object"
  python -m sskd_fast.study stages --data embedded --seeds 5 --pieces 500      until the exit status is not 3
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m sskd_fast.study",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("table", choices=TABLES, metavar="TABLE", help=", ".join(TABLES))
    p.add_argument("--data", default="embedded", help="embedded, or a YAML file of settings")
    p.add_argument("--preset", default="default", help="preset under the file and the overrides (default: default)")
    p.add_argument("--seeds", type=seeds_of, default=[0, 1, 2], metavar="N|N,N,...", help="how many (3), or which ones")
    p.add_argument("--output", type=Path, help="folder for all studies of this data set (default: studies/NAME)")
    p.add_argument("--rows", help="train only these rows: names separated by commas")
    p.add_argument(
        "--pieces",
        type=float,
        metavar="SECONDS",
        default=math.inf,
        help=f"after this many seconds, save the state and end with status {NOT_FINISHED}",
    )
    p.add_argument("--page", type=Path, help="Markdown file to put the table in, between two markers")
    p.add_argument("overrides", nargs="*", metavar="section.setting=value", help="any setting, for all rows")
    return p


def seeds_of(text: str) -> list[int]:
    """ "3" as the seeds 0, 1, 2; "0,4" as these two; argparse's error for anything else."""
    parts = [part.strip() for part in text.removesuffix(",").split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts) or text.strip() == "0":
        raise argparse.ArgumentTypeError(f"found {text!r}, expected how many, such as 3, or which, such as 0,1,2 or 4,")
    return [int(part) for part in parts] if "," in text else list(range(int(text)))


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings of all rows."""
    files = () if arguments.data == "embedded" else (Path(arguments.data),)
    settings = Settings(files, tuple(arguments.overrides), arguments.preset)
    config = settings.config()
    if files and config.data.name == "embedded":
        settings = Settings(files, (*arguments.overrides, f"data.name={files[0].stem}"), arguments.preset)
    return settings


def study_of(arguments: argparse.Namespace) -> Study:
    """The study of a command line.  Raises ConfigError."""
    table, settings = TABLES[arguments.table], settings_of(arguments)
    output = arguments.output or Path("studies") / settings.config().data.name
    return Study(table, rows_of(table, arguments.rows), arguments.seeds, settings, output)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit status: 0, 3 at the end of a piece, 2 after a message for bad input."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_intermixed_args(words)
    command, deadline = f"python -m sskd_fast.study {shlex.join(words)}", time.monotonic() + arguments.pieces
    try:
        return status_of(
            lambda: run_study(study_of(arguments), command, deadline, arguments.page), again="the same command"
        )
    except PieceOver as over:
        print(f"not finished yet: {over}; run the same command to resume", file=sys.stderr)
        return NOT_FINISHED


if __name__ == "__main__":
    sys.exit(main())
