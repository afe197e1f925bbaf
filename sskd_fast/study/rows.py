"""The rows of a study in training: what each takes, what is left to do, and what they have given so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sskd_fast.folder_lock import FolderLock
from sskd_fast.study.figures import figures_of
from sskd_fast.study.parts import Part, Settings, part_of, seed_runs
from sskd_fast.study.summary import summarize
from sskd_fast.study.tables import Row, Table
from sskd_fast.typed_settings import ConfigError


@dataclass(frozen=True)
class Study:
    """Rows of a table, seeds, the settings of all, and the folder that all studies of these data share."""

    table: Table
    rows: Sequence[Row]
    seeds: Sequence[int]
    settings: Settings
    output: Path

    def plan(self) -> Iterator[tuple[Row, int]]:
        """Every row with every seed, in the order of training: a whole table for the first seed, then the next one.

        Raises ConfigError before anything is trained for settings that do not fit.
        """
        for row in self.rows:
            part_of(dataclasses.replace(row, time_of=""), self.settings, self.seeds[0])
        return ((row, seed) for seed in self.seeds for row in self.rows)

    def finish(self, row: Row, seed: int, deadline: float) -> None:
        """Trains what is missing of a row.

        Raises PieceOver after the deadline, FolderInUse if another process trains with this seed, whose parts rows
        share, and whatever a run raises.
        """
        with FolderLock(seed_runs(self.output, seed)):
            for needed in self.before(row):
                part_of(needed, self.settings, seed).finish(self.output, deadline)
            part = self.part(row, seed)
            assert part is not None, "the rows that its steps depend on are finished"
            part.finish(self.output, deadline)

    def before(self, row: Row) -> list[Row]:
        """The rows whose seconds say how many steps a row takes; none if its settings do."""
        if not row.time_of:
            return []
        return [dataclasses.replace(row, time_of=""), self.table.row(row.time_of)]

    def part(self, row: Row, seed: int) -> Part | None:
        """The part that measures a row; None as long as its steps depend on rows that are not finished."""
        if not row.time_of:
            return part_of(row, self.settings, seed)
        own, model = (part_of(needed, self.settings, seed) for needed in self.before(row))
        if not own.is_finished(self.output) or not model.is_finished(self.output):
            return None
        steps = self._steps_as_long(row, own, model)
        settings = (*row.student, f"stages.{row.stages[0]}.steps={steps}")
        return part_of(dataclasses.replace(row, student=settings, time_of=""), self.settings, seed)

    def _steps_as_long(self, row: Row, own: Part, model: Part) -> int:
        """Steps of a row's first stage with which it takes as long as the row `time_of`, all that it builds on
        included."""
        stage = row.stages[0]
        mine = figures_of(own.folder(self.output), row.result, own.config)
        first = figures_of(own.folder(self.output), stage, own.config)
        theirs = figures_of(model.folder(self.output), self.table.row(row.time_of).result, model.config)
        if mine is None or first is None or theirs is None:
            raise ConfigError(f"{row.name}: {row.time_of} or the row itself has no figures, expected its seconds")
        others = mine["total_seconds"] - first["seconds"]
        share = (theirs["total_seconds"] - others) / max(first["seconds"], 1e-3)
        return max(1, round(share * first["steps"]))

    def left(self) -> str:
        """The rows that are not measured yet, in words."""
        missing = self.summary()["unfinished"]
        (name, seed), count = missing[0], len(self.rows) * len(self.seeds)
        return f"{len(missing)} of {count} rows are left, first {name} with seed {seed}"

    def summary(self) -> dict[str, Any]:
        """The figures so far; see `summarize`."""
        parts: dict[str, dict[int, Part]] = {row.name: {} for row in self.rows}
        for row in self.rows:
            for seed in self.seeds:
                if (part := self.part(row, seed)) is not None:
                    parts[row.name][seed] = part
        return summarize(self.table, self.rows, self.seeds, parts, self.output)
