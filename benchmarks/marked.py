"""Parts of a page that a command writes, between two comments that name the command."""

from __future__ import annotations


def marks(command: str) -> tuple[str, str]:
    """The comments before and after the part of a command."""
    return f"<!-- begin: {command} -->", f"<!-- end: {command} -->"


def replaced(page: str, command: str, content: str) -> str:
    """A page with the part of a command replaced. Raises ValueError if its marks are missing."""
    begin, end = marks(command)
    before, mark, rest = page.partition(begin)
    _, other, after = rest.partition(end)
    if not mark or not other:
        raise ValueError(f"the page has no {begin} ... {end}; put both lines where the part belongs")
    return f"{before}{begin}\n{content}\n{end}{after}"
