"""Training of a study's rows: the parts that each needs, the rows that are left, and the figures so far."""

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
    """Rows of a table, seeds, the settings of all rows, and the folder shared by all studies of this data set.

    unit: what a seed is called in the table, if it stands for something else.
    """

    table: Table
    rows: Sequence[Row]
    seeds: Sequence[int]
    settings: Settings
    output: Path
    unit: str = "seed"

    def plan(self) -> Iterator[tuple[Row, int]]:
        """Every row with every seed, in the order of training: the whole table for one seed, then for the next.

        Raises ConfigError, before anything is trained, if settings conflict.
        """
        for row in self.rows:
            for seed in self.seeds if self.settings.by_seed else self.seeds[:1]:
                part_of(dataclasses.replace(row, time_of=""), self.settings, seed)
        return ((row, seed) for seed in self.seeds for row in self.rows)

    def finish(self, row: Row, seed: int, deadline: float) -> None:
        """Trains the missing parts of a row.

        Raises PieceOver after the deadline, FolderInUse if another process trains this seed (rows share its parts),
        and whatever a run raises.
        """
        with FolderLock(seed_runs(self.output, seed)):
            for needed in self.before(row):
                part_of(needed, self.settings, seed).finish(self.output, deadline)
            part = self.part(row, seed)
            assert part is not None, "the rows that its steps depend on are finished"
            part.finish(self.output, deadline)

    def before(self, row: Row) -> list[Row]:
        """The rows whose training time sets the number of steps of a row; none if its settings give the number."""
        if not row.time_of:
            return []
        return [dataclasses.replace(row, time_of=""), self.table.row(row.time_of)]

    def part(self, row: Row, seed: int) -> Part | None:
        """The part that measures a row; None while its number of steps depends on unfinished rows."""
        if not row.time_of:
            return part_of(row, self.settings, seed)
        own, model = (part_of(needed, self.settings, seed) for needed in self.before(row))
        if not own.is_finished(self.output) or not model.is_finished(self.output):
            return None
        steps = self._steps_as_long(row, own, model)
        settings = (*row.student, f"stages.{row.stages[0]}.steps={steps}")
        return part_of(dataclasses.replace(row, student=settings, time_of=""), self.settings, seed)

    def _steps_as_long(self, row: Row, own: Part, model: Part) -> int:
        """Steps of a row's first stage that make it take as long as the row `time_of` with all that it builds on."""
        stage = row.stages[0]
        mine = figures_of(own.folder(self.output), row.result, own.config)
        first = figures_of(own.folder(self.output), stage, own.config)
        theirs = figures_of(model.folder(self.output), self.table.row(row.time_of).result, model.config)
        if mine is None or first is None or theirs is None:
            raise ConfigError(f"{row.name}: {row.time_of} or the row itself has no figures, expected training times")
        others = mine["total_seconds"] - first["seconds"]
        share = (theirs["total_seconds"] - others) / max(first["seconds"], 1e-3)
        return max(1, round(share * first["steps"]))

    def left(self) -> str:
        """A phrase on the rows that are not measured yet."""
        missing = self.summary()["unfinished"]
        (name, seed), count = missing[0], len(self.rows) * len(self.seeds)
        return f"{len(missing)} of {count} rows are left, first {name} with {self.unit} {seed}"

    def summary(self) -> dict[str, Any]:
        """The figures so far; see `summarize`."""
        parts: dict[str, dict[int, Part]] = {row.name: {} for row in self.rows}
        for row in self.rows:
            for seed in self.seeds:
                if (part := self.part(row, seed)) is not None:
                    parts[row.name][seed] = part
        return summarize(self.table, self.rows, self.seeds, parts, self.output) | {"unit": self.unit}
