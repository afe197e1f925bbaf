"""`python -m sskd_fast.run --stage all`: adapt the teacher, distil it into the student, refine that, compare."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from sskd_fast import _interrupt, _process  # isort: split

if __name__ == "__main__":
    _interrupt.guard_start()

import torch
from safetensors import SafetensorError

from sskd_fast.data.embedded import SIZE
from sskd_fast.data.errors import DataError
from sskd_fast.data.image_folders import list_images
from sskd_fast.data.layouts import FORMATS
from sskd_fast.data.photographs import are_photographs
from sskd_fast.evaluation import require_official
from sskd_fast.files import reason, remove_partial, write_json, write_text
from sskd_fast.folder_lock import FolderLock
from sskd_fast.method import COMMANDS, STAGE
from sskd_fast.models.checkpoint import CheckpointError
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.report import read_figures, table_text, verdict_words, write_report
from sskd_fast.report.summary import seed_folder, write_summary
from sskd_fast.report.summary_pages import summary_text
from sskd_fast.run.checks import check_kept, device_of, owned_folder, prepare_operators, run_folder
from sskd_fast.run.data_name import data_name, free_output
from sskd_fast.run.dry_run import cost_text, dry_run
from sskd_fast.run.measure import compare_students
from sskd_fast.run.models import RunModels
from sskd_fast.run.results import RunResults
from sskd_fast.run.resumption import check_finished, warnings_of_foundations
from sskd_fast.run.seeds import check_seeds, is_finished, of_seed, seed_list
from sskd_fast.run.source_classes import with_source_classes
from sskd_fast.run.sources import Sources, pretraining_sources, target_sources
from sskd_fast.run.stages import evaluate_finished, run_stages, stages_to_run
from sskd_fast.run.training import Run
from sskd_fast.settings import Config, DataConfig, check_settings
from sskd_fast.train.progress import Log
from sskd_fast.typed_settings import ConfigError
from sskd_fast.yaml_settings import dump_yaml, load_config

FLAGS = {
    "format": "data.format", "root": "data.root", "labeled": "data.labeled",
    "images": "data.images", "unlabeled": "data.unlabeled", "val": "data.val",
    "val_images": "data.val_images", "labeled_fraction": "data.labeled_fraction", "group_key": "data.group_key",
    "num_queries": "num_queries", "crop": "views.size", "max_detections": "predict.max_detections",
    "max_steps": "train.max_steps",
    "seed": "seed", "device": "device", "output": "output",
}  # fmt: skip


EXAMPLES = """examples:
  python -m sskd_fast.run --stage all                                  the data set and teacher that ship with sskd_fast
  python -m sskd_fast.run --labeled labels.json --images DIR --unlabeled DIR --val val.json            your own data
  python -m sskd_fast.run --output runs/embedded --resume                                     after an interruption
  python -m sskd_fast.run --seeds 0,1,2 --output runs/three        three runs one after another, and a summary of them
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m sskd_fast.run", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument(
        "--stage", choices=COMMANDS, default="all", help="the whole chain, or one stage from the run folder's state"
    )
    p.add_argument("--preset", help="default, photos, smoke (quick), full (long), paper, pretrain (shipped weights)")
    p.add_argument("--config", type=Path, action="append", default=[], help="a YAML file of settings; may be repeated")
    own = p.add_argument_group("own data (labels and images, or a whole data set)")
    own.add_argument("--root", help="folder of a whole data set; --format says which")
    own.add_argument("--format", help=f"format of the labels: {', '.join(FORMATS)} (coco)")
    own.add_argument("--labeled", help="labels of the labelled images, a file or a folder; COCO instances by default")
    own.add_argument("--images", help="folder of the labelled images")
    own.add_argument("--unlabeled", help="folder of plain unlabelled images")
    own.add_argument("--val", help="labels of the same format that results are reported on")
    own.add_argument("--val-images", help="folder of the validation images, if it is not --images")
    own.add_argument("--labeled-fraction", help="hide the labels of all but this share, such as 0.1")
    own.add_argument("--group-key", help="image field whose groups stay together in splits (city, slide, video)")
    own.add_argument("--num-queries", help="mask queries of a crop; from the data if not given")
    own.add_argument(
        "--crop", help="side of the training crop in pixels, or [height,width]; from the data if not given"
    )
    own.add_argument("--max-detections", help="detections an image that AP counts; from the data if not given")
    p.add_argument("--output", help="run folder (runs/NAME)")
    p.add_argument("--resume", action="store_true", help="go on after an interruption: finished stages are kept")
    p.add_argument("--seed", help="of data, splits, weights and batches (0)")
    p.add_argument(
        "--seeds", type=seed_list, metavar="N,N,...",
        help="several seeds, one after another: a run folder each in OUTPUT/seed-N, and OUTPUT/summary.html",
    )  # fmt: skip
    p.add_argument("--device", help="auto, cpu or cuda")
    p.add_argument("--max-steps", help="cut every stage to so many steps")
    p.add_argument(
        "--dry-run", action="store_true", help="say what models and steps cost; needs neither data nor weights"
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="with --dry-run: write the costs to FILE as well")
    p.add_argument("overrides", nargs="*", metavar="section.setting=value", help="any setting, such as train.lr=1e-4")
    return p


def resolve(arguments: argparse.Namespace) -> Config:
    """The configuration of the run: preset or the run folder's own, files, flags, overrides, each over the last."""
    overrides = [f"{key}={value}" for flag, key in FLAGS.items() if (value := getattr(arguments, flag)) is not None]
    overrides += arguments.overrides
    preset = arguments.preset or ("pretrain" if arguments.stage == "pretrain" else "default")
    config = load_config(arguments.config, overrides, preset)
    if config.data.own and config.data.name == Config().data.name:
        overrides.append(f"data.name={data_name(config.data)}")
        config = load_config(arguments.config, overrides, preset)
    if config.data.own and not config.output:
        output, say = free_output(config.data)
        if say:
            print(say, file=sys.stderr)
        overrides.append(f"output={output}")
        config = load_config(arguments.config, overrides, preset)
    kept = run_folder(config) / "config.yaml"
    if not kept.exists() or not (arguments.resume or arguments.stage not in ("all", "pretrain")):
        if arguments.preset or arguments.config or not shows_photographs(config.data):
            return config
        say = "the images are JPEG files in colour, taken for photographs: --preset photos (--preset default to refuse)"
        print(say, file=sys.stderr)
        return load_config([], overrides, "photos")
    if not arguments.preset:
        config = load_config([kept, *arguments.config], overrides)
    check_kept(config, kept)
    return config


def shows_photographs(data: DataConfig) -> bool:
    """True if a run's own labelled images are photographs."""
    folder = Path(data.images or data.root)
    return data.own and folder.is_dir() and are_photographs([folder / name for name in list_images(folder).names])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, or 2 with a message for settings or data that do not fit."""
    arguments = parser().parse_intermixed_args(argv)
    return status_of(lambda: run_once(arguments) if arguments.seeds is None else run_seeds(arguments))


def run_once(arguments: argparse.Namespace) -> None:
    """One run, or what it costs."""
    if arguments.json and not arguments.dry_run:
        raise ConfigError("--json FILE says where --dry-run writes its costs: add --dry-run, or leave it out")
    config = resolve(arguments)
    if arguments.dry_run:
        show_costs(config, arguments.json)
        return
    check_settings(config)
    run(config, arguments.stage, arguments.resume)


def run_seeds(arguments: argparse.Namespace) -> None:
    """A run for each seed and, after each, the summary of those so far.  With resume, finished seeds are kept.

    What the run of a seed raises has the seed as a note.
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
    print(f"\n{summary_text(summary)}\n\n{folder / 'summary.html'}")


def folder_of_seeds(arguments: argparse.Namespace) -> Path:
    """The folder of the seeds' run folders.  Raises ConfigError for arguments that do not go with --seeds."""
    folder = run_folder(resolve(arguments))
    check_seeds(arguments, folder)
    return folder


def status_of(work: Callable[[], None], again: str = "the same command with --resume") -> int:
    """The exit status of some work; what went wrong is printed in a line, after its notes.

    again: goes on after an interruption.
    """
    try:
        with _interrupt.orderly():
            work()
    except (ConfigError, DataError, CheckpointError, FoundationError, SafetensorError, ImportError) as error:
        print(f"error: {_notes(error)}{error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {_notes(error)}{reason(error)}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {_notes(error)}{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"\n{_notes(error)}interrupted: {again} goes on from the last saved step", file=sys.stderr)
        return 143 if isinstance(error, _interrupt.Terminated) else 130
    return 0


def _notes(error: BaseException) -> str:
    return "".join(getattr(error, "__notes__", ()))


def show_costs(config: Config, path: Path | None) -> None:
    """Prints what the run's models and steps cost, and writes it to a JSON file if one is wanted."""
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
        print(f"\n{table_text(metrics)}\n\n{verdict_words(metrics, details)}\n\n{folder / 'report.html'}")


def run_in_folder(
    config: Config, command: str, resume: bool, *, only: Collection[str] = (), deadline: float = math.inf
) -> Path:
    """Runs the stages of a command, writes the report, and returns the run folder.

    only: names of stages; the command's others are left out.  deadline: see `Run`, raises PieceOver.
    """
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    _process.keep_freed_memory()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    folder, device = run_folder(config), device_of(config)
    fresh = command in ("all", "pretrain") and not resume
    with owned_folder(folder, fresh, lambda: prepared_sources(config, command, folder, device)) as sources:
        config = dataclasses.replace(config, output=str(folder), data=config.data.with_absolute_paths())
        run_prepared(config, sources, device, command, resume, only, deadline)
    return folder


def prepared_sources(config: Config, command: str, folder: Path, device: torch.device) -> Sources:
    """The checked image sets of a command, once the operators are there.

    Raises DataError, and ConfigError for operators that cannot run and a missing package.
    """
    prepare_operators(config, device)
    remove_partial(folder)
    sources = (pretraining_sources if command == "pretrain" else target_sources)(config, folder)
    try:
        require_official(sources.val)
    except ImportError as error:
        raise ConfigError(str(error)) from error
    return sources


def run_prepared(
    config: Config, sources: Sources, device: torch.device, command: str, resume: bool, only: Collection[str],
    deadline: float,
) -> None:  # fmt: skip
    """Runs the stages in the folder that the process holds by now; see `run_in_folder`."""
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
    below = [] if only else warnings_of_foundations(models, chosen)
    for message in [*sources.warnings, *below]:
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
    """The facts of a run that metrics.json holds beside its rows."""
    header = {
        "dataset": config.data.name, "seed": config.seed,
        "labeled_images": len(sources.labeled), "unlabeled_images": len(sources.unlabeled),
        "val_images": len(sources.val), "max_detections": sources.detections, "zoom": sources.zoom,
    }  # fmt: skip
    return header | ({"true_labels": True} if config.pseudo_labels.truth else {})


if __name__ == "__main__":
    sys.exit(main())
