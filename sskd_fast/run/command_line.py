"""The command line of a run, and the configuration that it gives."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sskd_fast.data.image_folders import list_images
from sskd_fast.data.layouts import FORMATS
from sskd_fast.data.photographs import are_photographs
from sskd_fast.method import COMMANDS
from sskd_fast.run.checks import check_kept, run_folder
from sskd_fast.run.data_name import data_name, free_output
from sskd_fast.run.seeds import seed_list
from sskd_fast.settings import Config, DataConfig
from sskd_fast.yaml_settings import load_config

FLAGS = {
    "format": "data.format", "root": "data.root", "labeled": "data.labeled",
    "images": "data.images", "unlabeled": "data.unlabeled", "val": "data.val",
    "val_images": "data.val_images", "labeled_fraction": "data.labeled_fraction", "group_key": "data.group_key",
    "num_queries": "num_queries", "crop": "views.size", "max_detections": "predict.max_detections",
    "max_steps": "train.max_steps",
    "seed": "seed", "device": "device", "output": "output",
}  # fmt: skip


DESCRIPTION = "Adapts the teacher, distils it into the student, refines the student on the labels, and compares."
EXAMPLES = """examples:
  python -m sskd_fast.run --stage all                                  the data set and teacher that ship with sskd_fast
  python -m sskd_fast.run --labeled labels.json --images DIR --unlabeled DIR --val val.json            your own data
  python -m sskd_fast.run --output runs/embedded --resume                                     after an interruption
  python -m sskd_fast.run --seeds 0,1,2 --output runs/three        three runs one after another, and a summary of them
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m sskd_fast.run",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--stage", choices=COMMANDS, default="all", help="the whole chain, or one stage from the run folder's state"
    )
    presets = "default, photos, smoke (quick), full (long), paper, fast (its fast student), pretrain (shipped weights)"
    p.add_argument("--preset", help=presets)
    p.add_argument("--config", type=Path, action="append", default=[], help="a YAML file of settings; may be repeated")
    own = p.add_argument_group("own data (labels and images, or a whole data set)")
    own.add_argument("--root", help="folder of a whole data set, in the format of --format")
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
    own.add_argument("--max-detections", help="detections per image that AP counts; from the data if not given")
    p.add_argument("--output", help="run folder (default: runs/NAME)")
    p.add_argument("--resume", action="store_true", help="resume after an interruption: finished stages are kept")
    p.add_argument("--seed", help="seed of data, splits, weights and batches (0)")
    p.add_argument(
        "--seeds",
        type=seed_list,
        metavar="N,N,...",
        help="several seeds, one after another: a run folder each in OUTPUT/seed-N, and OUTPUT/summary.html",
    )
    p.add_argument("--device", help="auto, cpu or cuda")
    p.add_argument("--max-steps", help="cut every stage to this number of steps")
    p.add_argument(
        "--dry-run", action="store_true", help="show the costs of models and steps; needs neither data nor weights"
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="with --dry-run: write the costs to FILE as well")
    p.add_argument("overrides", nargs="*", metavar="section.setting=value", help="any setting, such as train.lr=1e-4")
    return p


def resolve(arguments: argparse.Namespace) -> Config:
    """The configuration of the run: the preset or the run folder's settings, then files, flags and overrides on top."""
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
