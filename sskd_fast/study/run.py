"""A study from its rows to its files: trains what is missing, and writes the table after each row."""

from __future__ import annotations

from pathlib import Path

from sskd_fast.files import write_json, write_text
from sskd_fast.screen import say
from sskd_fast.study.page import insert, markdown
from sskd_fast.study.rows import Study
from sskd_fast.study.tables import Row, Table
from sskd_fast.train.checkpoint import PieceOver
from sskd_fast.typed_settings import ConfigError


def rows_of(table: Table, names: str | None) -> list[Row]:
    """The rows of a table with these names; all rows if None.  Raises ConfigError for an unknown name."""
    known = {row.name: row for row in table.rows}
    wanted = list(known) if names is None else [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"--rows: found {unknown[0]!r}, expected some of {', '.join(known)}")
    return [known[name] for name in known if name in wanted]


def run_study(study: Study, command: str, deadline: float, page: Path | None = None) -> None:
    """Trains the missing rows and writes the table after each.

    command: that of the user, to be written beside the table.  deadline: on the clock of time.monotonic.  page: also
    put the table in this Markdown file.  Raises PieceOver after the deadline, naming the rows that are left.
    """
    try:
        for row, seed in study.plan():
            study.finish(row, seed, deadline)
            write_study(study, command, page)
    except PieceOver as over:
        raise PieceOver(study.left()) from over
    say(str(study.output / f"{study.table.name}.md"))


def write_study(study: Study, command: str, page: Path | None) -> None:
    """Writes OUTPUT/TABLE.json and OUTPUT/TABLE.md with the rows so far, and puts the table on the page if given."""
    summary = study.summary() | {"command": command}
    text = markdown(study.table, summary, command)
    write_json(study.output / f"{study.table.name}.json", summary)
    write_text(study.output / f"{study.table.name}.md", text)
    if page is not None:
        insert(page, f"{study.table.name} {study.output.name}", text)
