"""Several seeds of one run, one after another: their list, their folders, and a check if they are finished."""

from __future__ import annotations

import argparse
from pathlib import Path

from sskd_fast.method import COMPARISONS, stages_of
from sskd_fast.report import read_figures
from sskd_fast.report.summary import seed_folder
from sskd_fast.typed_settings import ConfigError


def seed_list(text: str) -> list[int]:
    """Parse "0,1,2" as seeds. Raises argparse's error for anything but different whole numbers from 0 up."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected different whole numbers from 0 up, such as 0,1,2")
    return [int(part) for part in parts]


def check_seeds(arguments: argparse.Namespace, folder: Path) -> None:
    """Raises ConfigError for arguments that conflict with --seeds, or if the folder holds a run itself."""
    given = {
        "--seed": arguments.seed is not None or any(text.startswith("seed=") for text in arguments.overrides),
        "--dry-run": arguments.dry_run,
        "--stage pretrain": arguments.stage == "pretrain",
    }
    for flag, there in given.items():
        if there:
            raise ConfigError(f"--seeds: does not go with {flag}; leave one of them out")
    if (folder / "config.yaml").exists():
        raise ConfigError(
            f"--seeds: {folder} holds a run itself, expected a folder for several; give another one with --output"
        )


def of_seed(arguments: argparse.Namespace, folder: Path, seed: int) -> argparse.Namespace:
    """The arguments of the run of one seed, in its own folder below the folder of all seeds."""
    own = [f"seed={seed}", f"output={seed_folder(folder, seed)}"]
    return argparse.Namespace(**{**vars(arguments), "overrides": [*arguments.overrides, *own]})


def is_finished(folder: Path, command: str) -> bool:
    """True if every stage of a command is measured, and the models have been compared since."""
    metrics, details = read_figures(folder)
    rows = {row["name"] for row in metrics["rows"]}
    compared = {(gain["model"], gain["against"]) for gain in details.get("gains", [])}
    expected = {pair for pair in COMPARISONS if set(pair) <= rows}
    return bool(rows) and {stage.name for stage in stages_of(command)} <= rows and expected <= compared
