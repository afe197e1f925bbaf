"""`python -m benchmarks.gpu_steps NAME FILE FOLDER [--dry]`: one step, in this process."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks.gpu_steps import STEPS
from benchmarks.gpu_steps.record import Record


def main() -> None:
    """Runs the step; an exception ends the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_steps", description=__doc__)
    parser.add_argument("name", choices=[step.name for step in STEPS])
    parser.add_argument("file", type=Path, help="JSON file for the findings")
    parser.add_argument("folder", type=Path, help="folder with the files of earlier steps")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    record = Record(arguments.file, arguments.folder, dry=arguments.dry)
    importlib.import_module(f"{__package__}.{arguments.name}").measure(record)


if __name__ == "__main__":
    main()
