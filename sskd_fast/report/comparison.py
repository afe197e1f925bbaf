"""Comparison of runs: settings that differ, runs that repeat each other, and reasons why figures do not compare."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sskd_fast.data.errors import named
from sskd_fast.files import encoded
from sskd_fast.report.numbers import is_number
from sskd_fast.report.run_folder import RunFolder
from sskd_fast.report.table import measured_rows

# Any two runs differ in these.
IRRELEVANT = frozenset({"output"})


@dataclass(frozen=True)
class ComparedRun:
    """A run under a unique name. settings: dotted setting -> its value as text, from config.yaml."""

    name: str
    folder: RunFolder
    settings: dict[str, str]

    @property
    def seed(self) -> str:
        """The seed of the run, "-" if it is not known."""
        return self.settings.get("seed", str(self.folder.metrics.get("seed", "-")))


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in the seed; a single run is a group too."""

    runs: list[ComparedRun]

    @property
    def name(self) -> str:
        """The names of the runs; only the first few if there are many."""
        return named([run.name for run in self.runs], 3)

    def spread(self, row: str, key: str) -> tuple[float, float] | None:
        """Mean and sample standard deviation (n - 1) of one figure in a row; None for fewer than two measured runs."""
        rows = [measured_rows(run.folder.metrics).get(row, {}) for run in self.runs]
        values = [float(r[key]) for r in rows if is_number(r.get(key))]
        return (statistics.mean(values), statistics.stdev(values)) if len(values) > 1 else None


def compared_runs(folders: Sequence[RunFolder]) -> list[ComparedRun]:
    """Name each run by the shortest end of its path that tells all of them apart.

    Raises ValueError, naming the file, if config.yaml is not a mapping of settings, or if a folder is given twice.
    """
    paths = [folder.path.resolve() for folder in folders]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]}: the folder is given twice; give each run once")
    names = _names(paths)
    return [
        ComparedRun(name, folder, dict(_flat(folder.settings, ""))) for name, folder in zip(names, folders, strict=True)
    ]


def _names(paths: Sequence[Path]) -> list[str]:
    for length in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _flat(tree: Mapping[str, Any], place: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{place}{key}.")
        else:
            found.append((f"{place}{key}", json.dumps(value) if isinstance(value, list | bool) else str(value)))
    return found


def different_settings(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """Dotted setting -> its value in each run ("-" if the run lacks it), for every setting that differs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in IRRELEVANT)
    values = {key: [run.settings.get(key, "-") for run in runs] for key in keys}
    return {key: of_runs for key, of_runs in values.items() if len(set(of_runs)) > 1}


def seed_groups(runs: Sequence[ComparedRun]) -> list[RunGroup]:
    """Group the runs by all settings but the seed. A group comes in the order of its first run.

    A run without settings is a group of its own. So is a run whose seed its group already has: it adds nothing to a
    mean.
    """
    groups: dict[Hashable, list[ComparedRun]] = {}
    for run in runs:
        key = _settings_but_seed(run) or run.name
        known = run.seed in {other.seed for other in groups.get(key, [])}
        groups.setdefault(run.name if known else key, []).append(run)
    return [RunGroup(group) for group in groups.values()]


def _settings_but_seed(run: ComparedRun) -> frozenset[Any]:
    return frozenset(item for item in run.settings.items() if item[0] not in IRRELEVANT | {"seed"})


def _repeated(groups: Sequence[RunGroup]) -> list[str]:
    """Sentences on runs with the same settings and the same seed."""
    same: dict[tuple[frozenset[Any], str], list[str]] = {}
    for run in (run for group in groups for run in group.runs):
        if run.settings:
            same.setdefault((_settings_but_seed(run), run.seed), []).append(run.name)
    return [
        f"{named(names, 4)} have the same settings and the same seed {seed}: together they are one run, not several."
        for (_, seed), names in same.items()
        if len(names) > 1
    ]


def incomparable(groups: Sequence[RunGroup]) -> list[str]:
    """Sentences that say why the figures of the runs do not compare; empty if they do.

    Groups are compared by the splits of all their runs, so two settings tried with the same three seeds do compare.
    """
    sentences = []
    for words, what in (
        ("different data sets", lambda run: str(run.folder.metrics.get("dataset", "unknown"))),
        ("different detection limits", lambda run: str(run.folder.metrics.get("max_detections", "unknown"))),
    ):
        sentences += _told_apart(groups, f"{words}, so their AP is not comparable", what)
    sentences += _sets_apart(groups)
    return sentences + _repeated(groups)


def _told_apart(groups: Sequence[RunGroup], words: str, what: Callable[[ComparedRun], str]) -> list[str]:
    names: dict[str, list[str]] = {}
    for run in (run for group in groups for run in group.runs):
        names.setdefault(what(run), []).append(run.name)
    if len(names) < 2:
        return []
    listed = "; ".join(f"{value}: {named(runs, 4)}" for value, runs in names.items())
    return [f"These runs have {words} ({listed})."]


def _sets_apart(groups: Sequence[RunGroup]) -> list[str]:
    """Sentences on images that differ between the seeds of a group (its spread includes that) or between groups."""
    of_seeds: dict[str, list[str]] = {}
    apart: dict[str, list[str]] = {}
    for kind, digest in (("labelled", labeled_digest), ("validation", validation_digest)):
        digests = [[digest(run) for run in group.runs] for group in groups]
        for group, own in zip(groups, digests, strict=True):
            if len(set(own)) > 1:
                of_seeds.setdefault(group.name, []).append(kind)
        if len({frozenset(own) for own in digests}) > 1:
            apart.setdefault(_alike([run for group in groups for run in group.runs], digest), []).append(kind)
    return [
        *(
            f"The seeds of {name} have different {' and '.join(kinds)} images: the standard deviation includes that."
            for name, kinds in of_seeds.items()
        ),
        *(
            f"The {' and '.join(kinds)} images differ, so AP compares only within these groups: {alike}."
            for alike, kinds in apart.items()
        ),
    ]


def _alike(runs: Sequence[ComparedRun], digest: Callable[[ComparedRun], str]) -> str:
    """The names of the runs, with those of the same digest together."""
    names: dict[str, list[str]] = {}
    for run in runs:
        names.setdefault(digest(run), []).append(run.name)
    return " | ".join(", ".join(own) for own in names.values())


def validation_digest(run: ComparedRun) -> str:
    """Hash of the validation images and their objects, or of the split file if the folder has no ground truth."""
    truth = run.folder.ground_truth
    if truth is None:
        return _hash(_split(run, "val"))
    return _hash(json.dumps({key: value for key, value in truth.items() if key != "images_dir"}, sort_keys=True))


def labeled_digest(run: ComparedRun) -> str:
    """Hash of the labelled images: of the split file and, for the embedded data set, of the drawn annotations."""
    drawn = run.folder.path / "data" / "labeled.json"
    annotations = drawn.read_text(encoding="utf-8") if drawn.exists() else ""
    return _hash(_split(run, "labeled"), annotations)


def _split(run: ComparedRun, name: str) -> str:
    file = run.folder.path / "splits" / f"{name}.txt"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _hash(*texts: str) -> str:
    return hashlib.sha256(encoded("\0".join(texts))).hexdigest()
