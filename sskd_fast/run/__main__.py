"""`python -m sskd_fast.run --stage all`: adapt the teacher, distil it into the student, refine the student, compare."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sskd_fast import _env, _interrupt, _process  # noqa: F401  # isort: split

if __name__ == "__main__":
    _interrupt.guard_start()


from sskd_fast import ranks
from sskd_fast.data.embedded import SIZE
from sskd_fast.files import write_json
from sskd_fast.folder_lock import FolderLock
from sskd_fast.report import read_figures, table_text, verdict_words
from sskd_fast.report.summary import seed_folder, write_summary
from sskd_fast.report.summary_pages import summary_text
from sskd_fast.run.checks import device_of, run_folder
from sskd_fast.run.command_line import parser, resolve
from sskd_fast.run.dry_run import cost_text, dry_run
from sskd_fast.run.in_folder import run_in_folder
from sskd_fast.run.seeds import check_seeds, is_finished, of_seed
from sskd_fast.run.status import status_of
from sskd_fast.screen import say
from sskd_fast.settings import Config, check_settings
from sskd_fast.typed_settings import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit status: 0, or 2 after a message about bad settings or data."""
    arguments = parser().parse_intermixed_args(argv)
    if _env.rank() > 0:
        return follow(arguments)
    return status_of(lambda: lead(arguments))


def lead(arguments: argparse.Namespace) -> None:
    """Runs the command in this process and, if a launcher started several, in those that follow it."""
    if _env.world_size() > 1:
        ranks.meet(cuda=device_of(resolve(arguments)).type == "cuda")
    if arguments.seeds is None:
        run_once(arguments)
    else:
        run_seeds(arguments)
    ranks.dismiss()


def follow(arguments: argparse.Namespace) -> int:
    """Takes part in the command of the first process, which reports errors in the arguments."""
    try:
        cuda = device_of(resolve(arguments)).type == "cuda"
    except (ConfigError, OSError):
        return 2

    def work() -> None:
        ranks.meet(cuda=cuda)
        ranks.follow()

    return status_of(work)


def run_once(arguments: argparse.Namespace) -> None:
    """Runs once, or shows the costs of the run."""
    if arguments.json and not arguments.dry_run:
        raise ConfigError("--json FILE is the file for the costs of --dry-run: add --dry-run, or leave it out")
    config = resolve(arguments)
    if arguments.dry_run:
        show_costs(config, arguments.json)
        return
    check_settings(config)
    run(config, arguments.stage, arguments.resume)


def run_seeds(arguments: argparse.Namespace) -> None:
    """Runs each seed and, after each, writes the summary so far.  With resume, finished seeds are kept.

    An error in the run of a seed gets the seed as a note.
    """
    seeds: list[int] = arguments.seeds
    summary: dict[str, Any] = {}
    folder = folder_of_seeds(arguments)
    with FolderLock(folder):
        for number, seed in enumerate(seeds, 1):
            kept = arguments.resume and is_finished(seed_folder(folder, seed), arguments.stage)
            print(f"seed {seed} ({number} of {len(seeds)})" + (" is finished, kept" if kept else ""), file=sys.stderr)
            try:
                run_once(of_seed(arguments, folder, seed))  # of a finished one: the check that nothing has changed
            except BaseException as error:
                error.add_note(f"seed {seed}: ")
                raise
            if not kept or number == len(seeds):
                summary = write_summary(folder, seeds[:number])
    say(f"\n{summary_text(summary)}\n\n{folder / 'summary.html'}")


def folder_of_seeds(arguments: argparse.Namespace) -> Path:
    """The folder of the seeds' run folders.  Raises ConfigError for arguments that conflict with --seeds."""
    folder = run_folder(resolve(arguments))
    check_seeds(arguments, folder)
    return folder


def show_costs(config: Config, path: Path | None) -> None:
    """Prints the costs of the run's models and steps, and writes them to a JSON file if a path is given."""
    height, width = config.views.sides
    costs = dry_run(config, (height or SIZE, width or SIZE))
    print(cost_text(costs))
    if path is not None:
        write_json(path, costs)


def run(config: Config, command: str, resume: bool) -> None:
    """Runs the stages of a command in the run folder and prints the verdict."""
    folder = run_in_folder(config, command, resume)
    if command != "pretrain":
        metrics, details = read_figures(folder)
        say(f"\n{table_text(metrics)}\n\n{verdict_words(metrics, details)}\n\n{folder / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
