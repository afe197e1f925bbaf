"""Problems of a data set, each with its place and cure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

LISTED_PROBLEMS = 200
_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\d.e+-]*")


@dataclass(frozen=True)
class Problem:
    """One finding: its place, what was found, what was expected, and the cure.

    file: the file concerned.  item: the image, annotation or category concerned ("" for the whole file).
    """

    file: str | Path
    item: str
    found: str
    expected: str
    cure: str

    def __str__(self) -> str:
        place = f"{self.file}: {self.item}" if self.item else str(self.file)
        return f"{place}: {self.found}; expected {self.expected}. {self.cure}"

    @property
    def cause(self) -> str:
        """A key shared by problems of one cause: what was found, without numbers and names."""
        return _PARTICULARS.sub("#", self.found)


def grouped(problems: Sequence[Problem]) -> list[str]:
    """Problems as text, grouped by cause: the first in full, the number of others, and the places of the next ones."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.cause, []).append(problem)
    return [str(first) + _further(rest) for first, *rest in groups.values()]


def _further(rest: Sequence[Problem]) -> str:
    if not rest:
        return ""
    return f" {len(rest)} more of this kind: {named([problem.item or problem.file for problem in rest], 4)}."


class DataError(ValueError):
    """Raised for unusable data; `problems` has all findings, and the message groups them by cause, up to 200.

    warnings: warnings of the same check.
    """

    def __init__(self, problems: Sequence[Problem], warnings: Sequence[str] = ()) -> None:
        self.problems, self.warnings = list(problems), list(warnings)
        if len(self.problems) == 1:
            message = str(self.problems[0])
        else:
            groups = grouped(self.problems)
            lines = [f"  {number}. {text}" for number, text in enumerate(groups[:LISTED_PROBLEMS], 1)]
            if len(groups) > LISTED_PROBLEMS:
                lines.append(f"  ... and {len(groups) - LISTED_PROBLEMS} more kinds, in the error's `problems`")
            message = "\n".join([f"{len(self.problems)} problems found in the data:", *lines])
        super().__init__(message)

    def __reduce__(self) -> tuple[type[DataError], tuple[list[Problem], list[str]]]:
        return type(self), (self.problems, self.warnings)


@dataclass
class Findings:
    """Findings of checks so far: problems that stop training, and warnings that do not."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, file: str | Path, item: str, found: str, expected: str, cure: str) -> None:
        """Adds a problem; see Problem for the arguments."""
        self.problems.append(Problem(file, item, found, expected, cure))


def named(items: Sequence[object], limit: int = 8) -> str:
    """The first few items as text, and the number of the others."""
    text = ", ".join(str(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"
