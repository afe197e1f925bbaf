"""The stages of a command in a locked run folder, from the checks of the data to the report."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from sskd_fast import _process
from sskd_fast.evaluation import require_official
from sskd_fast.files import remove_partial, write_text
from sskd_fast.method import STAGE
from sskd_fast.report import write_report
from sskd_fast.run.checks import device_of, owned_folder, prepare_operators, run_folder
from sskd_fast.run.measure import compare_students
from sskd_fast.run.models import RunModels
from sskd_fast.run.results import RunResults
from sskd_fast.run.resumption import check_finished, warnings_of_kept
from sskd_fast.run.source_classes import with_source_classes
from sskd_fast.run.sources import Sources, pretraining_sources, target_sources
from sskd_fast.run.stages import evaluate_finished, run_stages, stages_to_run
from sskd_fast.run.training import Run
from sskd_fast.settings import Config
from sskd_fast.train.progress import Log
from sskd_fast.typed_settings import ConfigError
from sskd_fast.yaml_settings import dump_yaml


def run_in_folder(
    config: Config, command: str, resume: bool, *, only: Collection[str] = (), deadline: float = math.inf
) -> Path:
    """Runs the stages of a command, writes the report, and returns the run folder.

    only: run only these stages of the command.  deadline: see `Run`; PieceOver is raised after it.
    """
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    _process.keep_freed_memory()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    folder, device = run_folder(config), device_of(config)
    fresh = command in ("all", "pretrain") and not resume
    with owned_folder(folder, fresh, lambda: prepared_sources(config, command, folder, device)) as sources:
        config = dataclasses.replace(config.with_absolute_paths(), output=str(folder))
        run_prepared(config, sources, device, command, resume, only, deadline)
    return folder


def prepared_sources(config: Config, command: str, folder: Path, device: torch.device) -> Sources:
    """Checks the image sets of a command and returns them; then prepares the operators, which may compile them.

    Raises DataError, or ConfigError if operators cannot run or a package is missing.
    """
    remove_partial(folder)
    sources = (pretraining_sources if command == "pretrain" else target_sources)(config, folder)
    try:
        require_official(sources.val)
    except ImportError as error:
        raise ConfigError(str(error)) from error
    prepare_operators(config, device)
    return sources


def run_prepared(
    config: Config, sources: Sources, device: torch.device, command: str, resume: bool, only: Collection[str],
    deadline: float,
) -> None:  # fmt: skip
    """Runs the stages in the locked folder; see `run_in_folder`."""
    folder = run_folder(config)
    nothing_there = resume and not (folder / "config.yaml").exists()
    config = with_source_classes(config, sources.labeled, Log.say)
    models = RunModels(config, sources, RunResults(folder, results_header(config, sources)), device)
    chosen = stages_to_run(config, command, only)
    if resume:
        check_finished(models, chosen)
    log = Log(folder)
    write_text(folder / "config.yaml", dump_yaml(config))
    log.say(f"{sources.summary(config.data.name)}; {device.type}; seed {config.seed}; everything goes to {folder}")
    for line in sources.inventory:
        log.say(f"  {line}")
    log.write({"event": "inventory", "lines": sources.inventory})
    if nothing_there:
        log.say(f"{folder} holds no run to go on with: this one starts from the beginning")
    kept = [] if only or command == "evaluate" else warnings_of_kept(models, chosen)
    for message in [*sources.warnings, *kept]:
        log.say(f"warning: {message}")
        log.write({"event": "warning", "message": message})
    current = Run(models, log, resume, deadline)
    try:
        if command == "evaluate":
            evaluate_finished(current)
        else:
            run_stages(current, command, only)
        compare_students(current.models)
        current.models.add_figures(STAGE)
    finally:
        log.close()
    write_report(folder)


def results_header(config: Config, sources: Sources) -> dict[str, Any]:
    """The facts of a run in metrics.json, besides its rows."""
    header = {
        "dataset": config.data.name,
        "seed": config.seed,
        "labeled_images": len(sources.labeled),
        "unlabeled_images": len(sources.unlabeled),
        "val_images": len(sources.val),
        "max_detections": sources.detections,
        "zoom": sources.zoom,
    }
    if config.predict.fit:
        header["fit"] = list(sources.views.size)
    return header | ({"true_labels": True} if config.pseudo_labels.truth else {})
