"""`python -m sskd_fast.label RUN`: label a run's unlabelled images in shards, which --stage distill then trains on."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sskd_fast import _interrupt, _process  # noqa: F401  # isort: split

if __name__ == "__main__":
    _interrupt.guard_start()

from sskd_fast.arguments import at_least
from sskd_fast.files import write_text
from sskd_fast.method import STAGE
from sskd_fast.run.checks import device_of, owned_folder
from sskd_fast.run.in_folder import prepared_sources, results_header
from sskd_fast.run.labels import sharded_labels
from sskd_fast.run.models import RunModels
from sskd_fast.run.results import RunResults
from sskd_fast.run.source_classes import with_source_classes
from sskd_fast.run.status import status_of
from sskd_fast.screen import say
from sskd_fast.settings import Config, check_settings
from sskd_fast.train.progress import Log
from sskd_fast.typed_settings import ConfigError
from sskd_fast.yaml_settings import dump_yaml, load_config

if TYPE_CHECKING:
    from sskd_fast.run.shard_labels import Work

EXAMPLES = """The teacher's thresholds are calibrated on the labelled images first. Shards are written atomically: if
the command is killed, run it again, or run --stage distill, to label the missing shards.
Images may also come in tar archives (WebDataset) in the folder of unlabelled images; each archive is a shard.

examples:
  python -m sskd_fast.run --stage adapt ... && python -m sskd_fast.label runs/cells
  python -m sskd_fast.label runs/cells --ray 8 --gpus 1     eight Ray workers with a GPU each
  python -m sskd_fast.run --stage distill --output runs/cells
"""
SHARD = 10_000


def parser() -> argparse.ArgumentParser:
    """The command-line parser."""
    p = argparse.ArgumentParser(
        prog="python -m sskd_fast.label",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", type=Path, metavar="RUN", help="folder of a run whose teacher is trained")
    p.add_argument(
        "--teacher", choices=list(STAGE), help="stage whose model labels (default: the run's pseudo_labels.teacher)"
    )
    p.add_argument(
        "--shard",
        type=at_least(1),
        metavar="N",
        help=f"images per shard (default: the run's pseudo_labels.shard, else {SHARD})",
    )
    p.add_argument("--ray", type=at_least(1), metavar="WORKERS", help="label with at most this many Ray workers")
    p.add_argument("--cpus", type=at_least(1), default=1, metavar="N", help="with --ray: CPUs per worker (default: 1)")
    p.add_argument("--gpus", type=at_least(0), default=0, metavar="N", help="with --ray: GPUs per worker (default: 0)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 with an error message, which lists any shards that failed."""
    arguments = parser().parse_args(argv)
    return status_of(lambda: label_run(arguments), "the same command")


def label_run(arguments: argparse.Namespace) -> None:
    """Labels the missing shards.  Raises ConfigError, and DataError if shards cannot be labelled."""
    if arguments.ray and find_spec("ray") is None:
        raise ConfigError(f"--ray {arguments.ray}: the package ray is missing: pip install 'sskd_fast[scale]'")
    folder: Path = arguments.run
    config = settings_of(folder, arguments.shard)
    check_settings(config)
    teacher = arguments.teacher or config.pseudo_labels.teacher
    device = device_of(config)
    with owned_folder(folder, False, lambda: prepared_sources(config, "distill", folder, device)) as sources:
        write_text(folder / "config.yaml", dump_yaml(config))
        config = with_source_classes(config, sources.labeled, Log.say)
        models = RunModels(config, sources, RunResults(folder, results_header(config, sources)), device)
        log = Log(folder)
        try:
            labels = sharded_labels(models, log, teacher, _workers(arguments))
        finally:
            log.close()
    say(f"{models.results.shards_path(teacher)}: {'labels to train on' if labels else 'no label is confident enough'}")


def settings_of(folder: Path, shard: int | None) -> Config:
    """The settings of a run, with a shard size.  Raises ConfigError if the folder is not a run's."""
    kept = folder / "config.yaml"
    if not kept.is_file():
        raise ConfigError(f"{folder}: not the folder of a run, has no config.yaml; give a run whose teacher is trained")
    config = load_config([kept])
    if config.pseudo_labels.truth or config.pseudo_labels.teacher == "none":
        raise ConfigError(
            f"{kept}: its pseudo-labels do not come from a teacher; expected pseudo_labels.truth=false and a teacher"
        )
    labels = dataclasses.replace(config.pseudo_labels, shard=shard or config.pseudo_labels.shard or SHARD)
    return dataclasses.replace(config, output=str(folder), pseudo_labels=labels)


def _workers(arguments: argparse.Namespace) -> Work | None:
    if not arguments.ray:
        return None
    from sskd_fast.run.ray_labels import RayWorkers

    return RayWorkers(arguments.ray, arguments.cpus, arguments.gpus)


if __name__ == "__main__":
    sys.exit(main())
