"""Parts of a study: stages in a run folder named by a hash of all they depend on, so that rows can share it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sskd_fast.files import write_json
from sskd_fast.folder_lock import LOCK
from sskd_fast.run.basis import settings_that_matter
from sskd_fast.run.contents import named_contents
from sskd_fast.run.in_folder import run_in_folder
from sskd_fast.settings import Config, check_settings
from sskd_fast.study.figures import keep_label_seconds
from sskd_fast.study.machine import circumstances
from sskd_fast.study.tables import Row
from sskd_fast.yaml_settings import load_config

# Files that a part does not take over from the part before it, and large files that it links instead of copying.
_LEFT = (LOCK, "tensorboard", "finished.json", "figures", "report.html", "report", "*.state.pt", ".*.partial")
_LINKED = (".safetensors", ".png")


@dataclass(frozen=True)
class Settings:
    """The settings of a study for all rows: YAML files, overrides and preset, and overrides of single seeds.

    Only `of_seed` has the latter.
    """

    files: tuple[Path, ...] = ()
    overrides: tuple[str, ...] = ()
    preset: str = "default"
    by_seed: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def of_seed(self, seed: int) -> Settings:
        """The settings for a seed."""
        return Settings(self.files, (*self.overrides, *self.by_seed.get(seed, ()), f"seed={seed}"), self.preset)

    def config(self, *more: str) -> Config:
        """The configuration with further overrides on top.  Raises ConfigError."""
        config = load_config(self.files, [*self.overrides, *more], self.preset)
        check_settings(config)
        return config


@dataclass(frozen=True)
class Part:
    """Stages of one run folder.  after: the part whose models they build on, or None."""

    config: Config
    stages: tuple[str, ...]
    after: Part | None = None

    @property
    def key(self) -> str:
        """A hash of all that the part's figures depend on: stages, settings, and the files named in the settings."""
        before = self.after.key if self.after else ""
        settings, files = settings_that_matter(self.config, self.stages), named_contents(self.config)
        content = [self.stages, before, settings, *([files] if files else [])]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def folder(self, output: Path) -> Path:
        """The part's run folder."""
        return seed_runs(output, self.config.seed) / f"{self.stages[-1]}-{self.key[:10]}"

    def is_finished(self, output: Path) -> bool:
        """True once all of its stages are trained and measured."""
        return (self.folder(output) / "finished.json").exists()

    def finish(self, output: Path, deadline: float) -> None:
        """Trains the missing stages of the part and of the parts before it.

        deadline: on the clock of time.monotonic.  Raises PieceOver after it, and whatever a run raises.
        """
        if self.is_finished(output):
            return
        folder = self.folder(output)
        if self.after is not None:
            self.after.finish(output, deadline)
            if not folder.exists():
                take_over(self.after.folder(output), folder)
        config = dataclasses.replace(self.config, output=str(folder))
        run_in_folder(config, "all", True, only=self.stages, deadline=deadline)
        keep_label_seconds(folder, config.pseudo_labels.teacher)
        write_json(folder / "finished.json", {"key": self.key, "stages": self.stages, **circumstances(config.device)})


def seed_runs(output: Path, seed: int) -> Path:
    """The folder that holds all run folders of a seed."""
    return output / "runs" / f"seed-{seed}"


def take_over(before: Path, folder: Path) -> None:
    """Starts the run folder of a part from the folder of the part before: models, rows, images and predictions.

    Weights are linked, small files are copied.  Images, and the predictions that become labels, stay in place, so
    that all parts share what one of them adds.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shared = [name for name in ("data", "cache") if (before / name).exists()]
    ignore = shutil.ignore_patterns(*_LEFT, *shared)
    shutil.copytree(before, partial, ignore=ignore, copy_function=_linked)
    for name in shared:
        try:
            (partial / name).symlink_to(Path("..") / before.name / name)
        except OSError:  # a file system without links
            shutil.copytree(before / name, partial / name)
    partial.rename(folder)


def _linked(source: str, target: str) -> str:
    """Links a file that is never changed in place; copies any other file, and all files if links are unsupported."""
    if source.endswith(_LINKED):
        try:
            os.link(source, target)
            return target
        except OSError:
            pass
    return str(shutil.copy2(source, target))


def part_of(row: Row, settings: Settings, seed: int) -> Part:
    """The last part of a row, which measures it, and the parts before.  Raises ConfigError if settings conflict."""
    settings = settings.of_seed(seed)
    base = settings.config()
    batch = base.stages.distilled_student.labeled_batch + base.stages.distilled_student.unlabeled_batch
    own = share_settings(base, row.share)
    teacher = [text.format(batch=batch) for text in row.teacher]
    student = [text.format(batch=batch) for text in row.student]
    if row.longer != 1:
        student.append(f"stages.distilled_student.steps={round(row.longer * base.stages.distilled_student.steps)}")
    before = Part(settings.config(*own, *teacher), row.teaching) if row.teaching else None
    return Part(settings.config(*own, *teacher, *student), row.stages, before) if row.stages or not before else before


def share_settings(config: Config, share: float) -> tuple[str, ...]:
    """Overrides that keep the labels of this share of the training images; none for a share of 0."""
    if not share:
        return ()
    if config.data.own:
        return (f"data.labeled_fraction={share:g}",)
    total = config.data.embedded_labeled + config.data.embedded_unlabeled
    count = max(1, round(share * total))
    return f"data.embedded_labeled={count}", f"data.embedded_unlabeled={total - count}"
