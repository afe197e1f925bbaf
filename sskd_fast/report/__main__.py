"""`python -m sskd_fast.report RUNS...`: rewrites the report of a run, or the summary of its seeds, or compares runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sskd_fast import _interrupt  # isort: split

if __name__ == "__main__":
    _interrupt.guard_start()

from sskd_fast.report.html import write_report
from sskd_fast.report.html_comparison import write_comparison
from sskd_fast.report.summary import write_summary
from sskd_fast.report.summary_pages import summary_text
from sskd_fast.screen import say

EXAMPLE = """examples:
  python -m sskd_fast.report runs/embedded                       rewrites runs/embedded/report.html
  python -m sskd_fast.report runs/three                          rewrites the summary of a run with --seeds
  python -m sskd_fast.report runs/a runs/b runs/c --output abc.html   compares three runs side by side
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m sskd_fast.report",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, written by sskd_fast.run")
    p.add_argument("--output", type=Path, help="page that compares several runs (default: comparison.html)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and prints its path. Returns the exit status: 0, or 2 after an error message for bad input."""
    arguments = parser().parse_args(argv)
    try:
        first = arguments.runs[0]
        of_seeds = len(arguments.runs) == 1 and (first / "summary.json").exists()
        for run in [] if of_seeds else arguments.runs:
            check_run(run)
        if len(arguments.runs) == 1:
            if arguments.output is not None:
                raise ValueError("--output needs several runs; leave it out, or give more than one folder")
            say(str(rewrite_summary(first) if of_seeds else write_report(first)))
        else:
            page = check_output(arguments.output or Path("comparison.html"))
            say(str(write_comparison(arguments.runs, page)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def rewrite_summary(folder: Path) -> Path:
    """Rewrites the summary of several seeds, prints it and returns the path of its page."""
    say(f"{summary_text(write_summary(folder))}\n")
    return folder / "summary.html"


def check_run(folder: Path) -> None:
    """Raises ValueError unless the path is the folder of one run with at least one measured model."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "no such folder"
        raise ValueError(f"{folder}: {found}; give the folder of a run, the --output of sskd_fast.run")
    if (folder / "summary.json").exists():
        raise ValueError(f"{folder}: holds several seeds; give it alone, or give its folders {folder.name}/seed-N")
    if not (folder / "metrics.json").exists():
        raise ValueError(
            f"{folder}: no metrics.json, so no model of this run has been measured yet; finish a stage with "
            f"python -m sskd_fast.run --output {folder} --resume"
        )


def check_output(path: Path) -> Path:
    """Returns the path; raises ValueError if it is a folder."""
    if path.is_dir():
        raise ValueError(f"--output {path}: is a folder; give the name of a file, such as {path / 'comparison.html'}")
    return path


if __name__ == "__main__":
    sys.exit(main())
