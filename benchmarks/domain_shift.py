"""A domain shift, cross-validated: `python -m benchmarks.domain_shift DATA --source modality=fluorescence ...`.

Teacher and student are first trained on the labels of a source domain. They get 98 % of them, or all but one group,
since a run needs unlabelled images. From these weights they start on a target domain with few labels. The target is
cross-validated over whole groups. Each fold is the validation set of one run, and the rest its training set, of which a
share has labels. Every baseline starts from the same weights as our models. DATA is a folder with
annotations/instances_*.json and images/.

With --source-groups N, N groups drawn at random are the source and the others the target: a teacher that has seen many
labelled images like those of the target. With --truth, only the student is trained, on the hidden true labels: the
upper bound for any teacher. With --study TABLE, a table of `python -m sskd_fast.study` is made, with folds in place of
seeds. Run the same command to resume. --only runs some folds. Once the source is trained, calls for other folds can run
beside it, started one after another. The summary has the folds of the last call, so the same command without --only
sums up all of them.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sskd_fast import _process  # noqa: F401

# isort: split
from benchmarks.domains import Domain, drawn_groups, source_share, write_parts
from sskd_fast.method import BASELINE, FINAL_STUDENTS, MATCHED_BASELINE
from sskd_fast.report.summary import seed_folder, write_summary
from sskd_fast.report.summary_pages import markdown
from sskd_fast.run.in_folder import run_in_folder
from sskd_fast.run.status import status_of
from sskd_fast.study.parts import Settings
from sskd_fast.study.rows import Study
from sskd_fast.study.run import rows_of, run_study
from sskd_fast.study.tables import TABLES, TRUE_LABELS
from sskd_fast.yaml_settings import load_config

_STUDENTS = (MATCHED_BASELINE, BASELINE, *FINAL_STUDENTS)
_ON_SOURCE = ("supervised_teacher", BASELINE)
# No student is taught on the source, so its fold models need not be good. Its student is a start, and needs no search.
_NO_FOLDS = ("pseudo_labels.folds=2", "pseudo_labels.fold_steps=0.01", "train.evaluations=0", "baseline.folds=0")


def fold_numbers(text: str) -> list[int]:
    """Parses "1,3" as numbers of folds. Raises argparse's error for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts) or len(set(map(int, parts))) < len(parts):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected different folds from 1 up, such as 1,3")
    return [int(part) for part in parts]


def parser_of_arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.domain_shift", description=__doc__)
    parser.add_argument("data", type=Path, help="a folder with annotations/ and images/")
    parser.add_argument("--source", type=Domain.of, metavar="FIELD=VALUE", help="images of the source; needs --target")
    parser.add_argument("--target", type=Domain.of, metavar="FIELD=VALUE", help="images of the target")
    parser.add_argument(
        "--source-groups", type=int, metavar="N", help="instead of both: N groups drawn at random, and the others"
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of settings")
    parser.add_argument("--output", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--folds", type=int, default=3, help="number of folds of the target (3)")
    parser.add_argument("--only", type=fold_numbers, metavar="N,N", help="these folds alone, numbered from 1 (all)")
    parser.add_argument("--labeled-fraction", type=float, default=0.1, help="of the target's training images (0.1)")
    parser.add_argument("--group", default="group", help="field of images that stay together (group)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--truth", action="store_true", help="upper bound: hidden true labels instead of a teacher's")
    tables = ", ".join(TABLES)
    kind.add_argument("--study", choices=TABLES, metavar="TABLE", help=f"a table of sskd_fast.study: {tables}")
    parser.add_argument("--rows", help="of the study: these rows alone, separated by commas (all)")
    parser.add_argument("--source-override", action="append", default=[], metavar="X=Y", help="for the source only")
    parser.add_argument("overrides", nargs="*", metavar="section.setting=value", help="any setting, for all runs")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Trains on the source, then on each fold of the target, and prints the summary, or makes a table of a study."""
    parser = parser_of_arguments()
    words = list(sys.argv[1:] if argv is None else argv)
    a = parser.parse_intermixed_args(words)
    if (a.source is None) != (a.target is None) or (a.source is None) == (a.source_groups is None):
        parser.error("expected --source with --target, or --source-groups alone")
    if a.rows is not None and a.study is None:
        parser.error("argument --rows: expected with --study")
    source, target = (a.source, a.target) if a.source else drawn_groups(a.data, a.source_groups, a.group)
    a.output.mkdir(parents=True, exist_ok=True)
    count = write_parts(a.data, a.output, source, target, a.folds, a.group)
    numbers = a.only or list(range(1, count + 1))
    if beyond := [number for number in numbers if not 1 <= number <= count]:
        parser.error(f"argument --only: found {beyond[0]}, expected folds from 1 to {count}")
    shared = (f"data.name={a.data.resolve().name}", f"data.images={a.data / 'images'}", f"data.group_key={a.group}",
              "data.stratify_key=''", "data.balance_key=''", *a.overrides)  # fmt: skip
    by_fold = {number: (*shared, *of_fold(a, number)) for number in numbers}
    study = study_of(a, by_fold) if a.study else None
    train_source(a, shared)
    if study is not None:
        run_study(study, f"python -m benchmarks.domain_shift {shlex.join(words)}", math.inf)
    else:
        run_folds(a, by_fold)


def of_fold(a: argparse.Namespace, number: int) -> tuple[str, ...]:
    """The settings of a fold of the target: its images, and weights from the source to start from."""
    weights = zip(("teacher", "student"), _ON_SOURCE, strict=True)
    return (
        f"data.labeled={a.output / f'train_{number}.json'}",
        f"data.val={a.output / f'val_{number}.json'}",
        f"data.labeled_fraction={a.labeled_fraction}",
        *(f"{m}_weights={a.output / 'source' / 'checkpoints' / f'{stage}.safetensors'}" for m, stage in weights),
    )


def train_source(a: argparse.Namespace, shared: Sequence[str]) -> None:
    """Trains teacher and student on the source."""
    labels = a.output / "source.json"
    own = (f"data.labeled={labels}", f"data.val={a.output / 'val_1.json'}", f"output={a.output / 'source'}",
           f"data.labeled_fraction={source_share(labels, a.group)}", *_NO_FOLDS)  # fmt: skip
    run_in_folder(load_config([a.config], [*shared, *own, *a.source_override]), "all", True, only=_ON_SOURCE)


def study_of(a: argparse.Namespace, by_fold: Mapping[int, tuple[str, ...]]) -> Study:
    """The study with a fold for each seed. Raises ConfigError, also for settings that conflict in a row."""
    table, settings = TABLES[a.study], Settings((a.config,), by_seed=by_fold)
    study = Study(table, rows_of(table, a.rows), list(by_fold), settings, a.output / "studies", unit="fold")
    study.plan()
    return study


def run_folds(a: argparse.Namespace, by_fold: Mapping[int, tuple[str, ...]]) -> None:
    """Trains a run for each fold, and prints the summary after each."""
    below = a.output / ("truth" if a.truth else "runs")
    for position, (number, settings) in enumerate(by_fold.items(), 1):
        own = (f"seed={number}", f"output={seed_folder(below, number)}", *(TRUE_LABELS if a.truth else ()))
        run_in_folder(load_config([a.config], [*settings, *own]), "all", True, only=_STUDENTS if a.truth else ())
        print(markdown(write_summary(below, list(by_fold)[:position], unit="fold")), flush=True)


if __name__ == "__main__":
    sys.exit(status_of(main, again="the same command"))
