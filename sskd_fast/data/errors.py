"""What is wrong with a data set, said so that the reader can mend it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

LISTED_PROBLEMS = 200
_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\d.e+-]*")


@dataclass(frozen=True)
class Problem:
    """One finding: where it is, what is there, what should be, and the way out.

    file: the file concerned.  item: the image, annotation or category concerned ("" for the file as a whole).
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
        """The common part of problems of one cause: what was found, without its numbers and names."""
        return _PARTICULARS.sub("#", self.found)


def grouped(problems: Sequence[Problem]) -> list[str]:
    """Problems as text, those of one cause together: one in full, how many there are, and where the next ones are."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.cause, []).append(problem)
    return [str(first) + _further(rest) for first, *rest in groups.values()]


def _further(rest: Sequence[Problem]) -> str:
    if not rest:
        return ""
    return f" {len(rest)} more of this kind: {named([problem.item or problem.file for problem in rest], 4)}."


class DataError(ValueError):
    """Data that cannot be used; `problems` holds every finding, the message groups them by cause, up to 200.

    warnings: of what else the same check found.
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
    """The findings of checks so far: problems that training cannot live with, and warnings of what it copes with."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, file: str | Path, item: str, found: str, expected: str, cure: str) -> None:
        """Notes a problem; see Problem for the arguments."""
        self.problems.append(Problem(file, item, found, expected, cure))


def named(items: Sequence[object], limit: int = 8) -> str:
    """The first few items as text, and how many more there are."""
    text = ", ".join(str(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"
