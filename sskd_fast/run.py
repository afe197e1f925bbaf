"""`python -m sskd_fast.run --stage all`: adapt the teacher, distil it into the student, refine that, compare."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from sskd_fast import _process  # isort: split

import torch

from sskd_fast import _backend
from sskd_fast.config import ConfigError, dump_yaml, load_config
from sskd_fast.data.embedded import SIZE
from sskd_fast.data.errors import DataError
from sskd_fast.data.files import remove_partial, write_json, write_text
from sskd_fast.data.layouts import FORMATS, misfit
from sskd_fast.evaluation import require_official
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.report import read_figures, table_text, verdict_words, write_report
from sskd_fast.settings import Config, DataConfig
from sskd_fast.train.checkpoint import CheckpointError
from sskd_fast.train.dry_run import cost_text, dry_run
from sskd_fast.train.evaluate import evaluate_finished
from sskd_fast.train.experiment import Experiment
from sskd_fast.train.measure import compare_students
from sskd_fast.train.sources import pretraining_sources, target_sources
from sskd_fast.train.stages import PRETRAINING, STAGES, Stage, run_stage
from sskd_fast.train.watch import Log

COMMANDS = ("all", "pretrain", "adapt", "distill", "refine", "evaluate")
FLAGS = {
    "format": "data.format", "root": "data.root", "labeled": "data.labeled",
    "images": "data.images", "unlabeled": "data.unlabeled", "val": "data.val",
    "val_images": "data.val_images", "labeled_fraction": "data.labeled_fraction", "group_key": "data.group_key",
    "num_queries": "num_queries", "crop": "views.size", "max_detections": "predict.max_detections",
    "max_steps": "train.max_steps",
    "seed": "seed", "device": "device", "output": "output",
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m sskd_fast.run", description=__doc__)
    p.add_argument(
        "--stage", choices=COMMANDS, default="all", help="the whole chain, or one stage from the run folder's state"
    )
    p.add_argument("--preset", help="default, smoke (quick), full (long), paper, pretrain (the shipped weights)")
    p.add_argument("--config", type=Path, action="append", default=[], help="a YAML file of settings; may be repeated")
    own = p.add_argument_group("own data (labels and images, or a whole data set)")
    own.add_argument("--root", help="folder of a whole data set; --format says which")
    own.add_argument("--format", help=f"format of the labels: {', '.join(FORMATS)} (coco)")
    own.add_argument("--labeled", help="labels of the labelled images, a file or a folder; COCO instances by default")
    own.add_argument("--images", help="folder of the labelled images")
    own.add_argument("--unlabeled", help="folder of plain unlabelled images")
    own.add_argument("--val", help="labels of the same format that results are reported on")
    own.add_argument("--val-images", help="folder of the validation images, where it is not --images")
    own.add_argument("--labeled-fraction", help="hide the labels of all but this share, such as 0.1")
    own.add_argument("--group-key", help="image field whose groups stay together in splits (city, slide, video)")
    own.add_argument("--num-queries", help="mask queries of a crop; from the data where not given")
    own.add_argument(
        "--crop", help="side of the training crop in pixels, or [height,width]; from the data where not given"
    )
    own.add_argument("--max-detections", help="detections an image that AP counts (100; crowded images need more)")
    p.add_argument("--output", help="run folder (runs/NAME)")
    p.add_argument("--resume", action="store_true", help="go on after an interruption: finished stages are kept")
    p.add_argument("--seed", help="of data, splits, weights and batches (0)")
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
        folder = Path(config.data.labeled or config.data.root).resolve()
        folder = folder.parent if config.data.labeled else folder
        name = folder.parent.name if folder.name == "annotations" else folder.name
        overrides.append(f"data.name={name or 'own'}")
        config = load_config(arguments.config, overrides, preset)
    kept = run_folder(config) / "config.yaml"
    if not kept.exists() or not (arguments.resume or arguments.stage not in ("all", "pretrain")):
        return config
    if not arguments.preset:
        config = load_config([kept, *arguments.config], overrides)
    before = load_config([kept])
    if (config.seed, content_settings(config)) != (before.seed, content_settings(before)):
        raise ConfigError(
            f"{kept} holds a run with another seed or other data, whose splits are in its folder: leave --seed and the "
            "data settings as they are to go on with it, or start anew with --stage all and another --output"
        )
    return config


def content_settings(config: Config) -> DataConfig:
    """The settings of the data without those that change no image and no split."""
    return dataclasses.replace(config.data, workers=0, cache_mb=0, decoded="")


def run_folder(config: Config) -> Path:
    """Where the run's files go."""
    return Path(config.output or f"runs/{config.data.name}")


def check(config: Config) -> None:
    """What can be said before anything is read.  Raises ConfigError."""
    data = config.data
    if data.root and (data.labeled or data.images or data.val):
        raise ConfigError("--root holds the whole data set: leave out --labeled, --images and --val, or --root")
    if problem := misfit(data.format, bool(data.root), bool(data.labeled)):
        raise ConfigError(problem)
    if data.labeled and not (data.images and data.val):
        raise ConfigError(
            "--labeled needs --images (their folder) and --val (labels of the same format that results are reported on)"
        )
    if not 0 < data.labeled_fraction <= 1:
        raise ConfigError(
            f"--labeled-fraction (data.labeled_fraction): found {data.labeled_fraction:g}, expected a share of the "
            "labelled images: more than 0 and at most 1, say 0.1"
        )
    if data.own and not data.unlabeled and data.labeled_fraction == 1:
        raise ConfigError(
            "there are no unlabelled images: give a folder of them (--unlabeled DIR), "
            "or hide labels (--labeled-fraction 0.1)"
        )
    if data.unlabeled and data.labeled_fraction != 1:
        raise ConfigError(
            "--labeled-fraction hides labels to make unlabelled images; with --unlabeled DIR there are some already"
        )
    if not data.own and (data.images or data.unlabeled or data.val):
        raise ConfigError("--images, --unlabeled and --val go with --labeled, the labels of --images")
    if not data.own and data.labeled_fraction != 1:
        raise ConfigError(
            "--labeled-fraction (data.labeled_fraction) goes with --labeled or --root, which are not given; "
            "the embedded data set has data.embedded_labeled images with labels"
        )
    size = config.views.size if isinstance(config.views.size, tuple) else (config.views.size,)
    if any(side % 32 for side in size):
        raise ConfigError(
            f"--crop (views.size): found {config.views.size}, expected multiples of 32, or 0 to take it from the data"
        )
    if config.views.rot90 and len(set(size)) > 1:
        raise ConfigError(f"views.rot90: quarter turns need square crops, found {config.views.size}; set it to false")
    if not 0 < data.holdout_fraction < 1:
        raise ConfigError(f"data.holdout_fraction: found {data.holdout_fraction}, expected a share between 0 and 1")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: PyTorch finds no CUDA device; use --device cpu, or install a CUDA build and a driver"
        )


@contextlib.contextmanager
def free_folder(folder: Path, fresh: bool) -> Iterator[None]:
    """The run folder, made for what prepares a run. fresh: an earlier run in it is moved out of the way.

    Where the preparation fails, the earlier run is moved back, and a folder that was not there is there no more.
    """
    aside = keep_aside(folder) if fresh else None
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except Exception:
        if made:
            shutil.rmtree(folder)
        if aside is not None:
            aside.rename(folder)
        raise
    if aside is not None:
        print(f"{folder} held an earlier run: it is now {aside}", file=sys.stderr)


def keep_aside(folder: Path) -> Path | None:
    """Moves the folder of an earlier run out of the way; returns where to, None where there is none."""
    if not (folder / "config.yaml").exists() and not (folder / "splits").exists():
        return None
    number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}.{n}").exists())
    return folder.rename(folder.with_name(f"{folder.name}.{number}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, or 2 with a message for settings or data that do not fit."""
    arguments = parser().parse_intermixed_args(argv)
    try:
        if arguments.json and not arguments.dry_run:
            raise ConfigError("--json FILE says where --dry-run writes its costs: add --dry-run, or leave it out")
        config = resolve(arguments)
        if arguments.dry_run:
            show_costs(config, arguments.json)
            return 0
        check(config)
        run(config, arguments.stage, arguments.resume)
    except (ConfigError, DataError, CheckpointError, FoundationError, FileNotFoundError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: the same command with --resume goes on from the last saved step", file=sys.stderr)
        return 130
    return 0


def show_costs(config: Config, path: Path | None) -> None:
    """Prints what the run's models and steps cost, and writes it to a JSON file where one is wanted."""
    size = config.views.size or SIZE
    costs = dry_run(config, size if isinstance(size, tuple) else (size, size))
    print(cost_text(costs))
    if path is not None:
        write_json(path, costs)


def prepare_operators(config: Config, device: torch.device) -> None:
    """Chooses the operators' backends, which may compile them, before there are progress lines to be cut in two."""
    try:
        for operator in _backend.OPERATORS:
            _backend.resolve(config.contrast.backend, device, operator)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"contrast.backend: {error}") from error


def run(config: Config, command: str, resume: bool) -> None:
    """Runs the stages of a command in the run folder and prints the verdict."""
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    _process.keep_freed_memory()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    name = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    folder = run_folder(config)
    prepare_operators(config, torch.device(name))
    with free_folder(folder, fresh=command in ("all", "pretrain") and not resume):
        remove_partial(folder)
        sources = (pretraining_sources if command == "pretrain" else target_sources)(config, folder)
        try:
            require_official(sources.val)
        except ImportError as error:
            raise ConfigError(str(error)) from error
    config = dataclasses.replace(config, output=str(folder))
    nothing_there = resume and not (folder / "config.yaml").exists()
    write_text(folder / "config.yaml", dump_yaml(config))
    log = Log(folder)
    experiment = Experiment(config, folder, sources, torch.device(name), log, resume)
    log.say(
        f"{config.data.name}: {len(sources.labeled)} labelled + {len(sources.holdout)} held-out images, "
        f"{len(sources.unlabeled)} unlabelled, {len(sources.val)} for validation; {len(sources.classes)} classes; "
        f"crops of {size_text(sources.views.size)} px, zoom {sources.zoom:.2f}, "
        f"{sources.num_queries} queries; {name}; seed {config.seed}; everything goes to {folder}"
    )
    if nothing_there:
        log.say(f"{folder} holds no run to go on with: this one starts from the beginning")
    for message in sources.warnings:
        log.say(f"warning: {message}")
        log.write({"event": "warning", "message": message})
    try:
        if command == "evaluate":
            evaluate_finished(experiment)
        else:
            run_stages(experiment, command)
        compare_students(experiment)
    finally:
        log.close()
    write_report(folder)
    if command != "pretrain":
        metrics, details = read_figures(folder)
        print(f"\n{table_text(metrics)}\n\n{verdict_words(metrics, details)}\n\n{folder / 'report.html'}")


def size_text(size: tuple[int, int]) -> str:
    """Height x width, or the side of a square."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]} x {size[1]}"


def run_stages(experiment: Experiment, command: str) -> None:
    """The stages of a command, in the table's order; with resume, those that are finished are kept."""
    chosen: list[Stage] = [
        s for s in (*PRETRAINING, *STAGES) if s.command == command or (command == "all" and s in STAGES)
    ]
    finished = {row["name"] for row in experiment.rows} if experiment.resume else set()
    if any(s.model == "student" and s.name not in finished for s in chosen):
        # Its turn comes after the teacher's training and labelling: what cannot be had is said now.
        experiment.foundation_weights("student")
        experiment.build("student")
    for number, stage in enumerate(chosen, 1):
        if stage.name in finished:
            experiment.log.say(f"stage {number} of {len(chosen)}: {stage.name.replace('_', ' ')} is finished, kept")
        else:
            run_stage(experiment, stage, number, len(chosen))


if __name__ == "__main__":
    sys.exit(main())
