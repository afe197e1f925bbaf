"""The basis of figures: settings and file contents that a stage depends on, and the differences of two bases."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sskd_fast.method import BASELINE, FINAL_STUDENTS, FITTED, STAGE, chain_of
from sskd_fast.settings import Config

# Settings that change no figure: paths, speed, and logging.
IDLE = {
    "": ("output", "device", "origins"),
    "data": ("workers", "cache_mb", "max_pixels", "decoded"),
    "train": ("threads", "log_every", "save_every", "micro_batch", "compile"),
    "pseudo_labels": ("shard",),
}
DISTILLED = FINAL_STUDENTS[1]


def without_idle(config: Config) -> dict[str, Any]:
    """The settings as plain data, without those that change no figure."""
    tree = dataclasses.asdict(config.with_absolute_paths())
    for section, names in IDLE.items():
        for name in names:
            (tree[section] if section else tree).pop(name)
    return tree


def settings_that_matter(config: Config, stages: Collection[str]) -> dict[str, Any]:
    """The settings that figures of these stages depend on, as plain data."""
    tree = without_idle(config)
    budgets = {budget for stage in stages for budget in STAGE[stage].budget}
    tree["stages"] = {name: tree["stages"][name] for name in sorted(budgets)}
    unused = [] if BASELINE in stages else ["baseline"]
    unused += [] if DISTILLED in stages else ["online"]
    unused += [] if budgets else ["train", "loss", "contrast"]
    if all(STAGE[stage].model == "teacher" for stage in stages):
        unused += ["student", "student_weights"]
        tree["pseudo_labels"].pop("teacher")
    return {name: value for name, value in tree.items() if name not in unused}


def lineage(stage: str, teacher: str) -> set[str]:
    """A stage and all stages that its model builds on, by name; teacher: the student's labeller, or "none"."""
    names = chain_of(STAGE[stage])
    if DISTILLED not in names:
        return names
    students = {name for name in names if STAGE[name].model == "student"}
    return students | (chain_of(STAGE[teacher]) if teacher in STAGE else set())


def foundations(config: Config, stage: str) -> set[str]:
    """A stage and all stages that it builds on in a run with these settings, by name."""
    names = lineage(stage, "none" if config.pseudo_labels.truth else config.pseudo_labels.teacher)
    return names if config.teacher.warm_start else names - {FITTED}


@dataclass(frozen=True)
class Basis:
    """All that figures depend on.  settings: dotted name -> value.  files: description -> hash of the content."""

    settings: Mapping[str, Any]
    files: Mapping[str, str]

    @property
    def key(self) -> str:
        """A hash of settings and files, 16 hex digits."""
        content = json.dumps([self.settings, self.files], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def changes(self, new: Basis) -> list[str]:
        """The differences to a new basis, in words: "train.lr 0.001 -> 0.01", "the labels (a.json) have changed"."""
        files = [name for name in {**self.files, **new.files} if self.files.get(name) != new.files.get(name)]
        return setting_changes(self.settings, new.settings) + [f"the {name} have changed" for name in files]

    def without(self, section: str) -> Basis:
        """This basis without a section of the settings."""
        kept = {name: value for name, value in self.settings.items() if not name.startswith(f"{section}.")}
        return dataclasses.replace(self, settings=kept)


def setting_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The settings that differ, each as "train.lr 0.001 -> 0.01"."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name} {json.dumps(old.get(name))} -> {json.dumps(new.get(name))}" for name in names]


def dotted(tree: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value as in JSON) for each setting of nested sections."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", list(value) if isinstance(value, tuple) else value
