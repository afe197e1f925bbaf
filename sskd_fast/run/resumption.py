"""Checks on resume: the finished stages must have been made with the current settings and files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from sskd_fast.method import STAGE, Stage, dependents, views_rows, words_of
from sskd_fast.run.basis import foundations
from sskd_fast.run.made_with import made_with, measured_with
from sskd_fast.run.models import RunModels
from sskd_fast.typed_settings import ConfigError


def check_finished(models: RunModels, stages: Sequence[Stage]) -> None:
    """Raises ConfigError if finished stages were made with other settings or files.

    The error names each change, with old and new value, and the stages that it affects.
    """
    folder, touched = models.results.folder, dict(changed(models, [stage.name for stage in stages]))
    if not touched:
        return
    start_over = "start a new run: without --resume (the earlier run is moved aside) or with another --output"
    if any(changes is None for changes in touched.values()):
        raise ConfigError(
            f"{folder}: an earlier version has begun this run and did not record what its stages were made with; "
            f"finish it with that version, or {start_over}"
        )
    changes = list(dict.fromkeys(change for found in touched.values() for change in found or ()))
    raise ConfigError(
        f"{folder} cannot be resumed: {'; '.join(changes)}; its finished stages ({', '.join(map(words_of, touched))}) "
        f"were made with what was there before: bring that back, or {start_over}"
    )


def warnings_of_kept(models: RunModels, stages: Sequence[Stage]) -> list[str]:
    """One warning for each finished stage outside `stages` that was made with other settings or files."""
    names = {stage.name for stage in stages}
    below = set().union(*(foundations(models.config, name) for name in names)) - names
    redone = names.union(*(dependents(stage) for stage in stages))
    told = "it was made by an earlier version, which did not record with what"
    return [
        f"{words_of(name)}, which {'this builds on' if name in below else 'stays as it is'}: "
        f"{told if changes is None else '; '.join(changes)}"
        for name, changes in changed(models, [name for name in STAGE if name in below or name not in redone])
    ]


def changed(models: RunModels, stages: Collection[str]) -> Iterator[tuple[str, list[str] | None]]:
    """(stage, its changes) for each changed stage that has a row; None for the changes if there is no record."""
    results, measured = models.results, measured_with(models)
    rows = {row["name"]: row for row in results.rows}
    for name in stages:
        for row in [rows[n] for n in (name, *views_rows([name])) if n in rows]:
            pairs = [(row.get("made_with"), made_with(models, STAGE[name])), (row.get("measured_with"), measured)]
            before = [(results.basis(key), now) for key, now in pairs]
            if any(old is None for old, _ in before):
                yield name, None
                break
            changes = [change for old, now in before if old is not None for change in old.changes(now)]
            if changes:
                yield name, list(dict.fromkeys(changes))
                break
