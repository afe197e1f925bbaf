"""Parts of a page that a command writes, between two comments that name the command."""

from __future__ import annotations

import argparse
from pathlib import Path

from sskd_fast.files import write_text


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


def write_part(page: Path, command: str, content: str) -> None:
    """Replaces the part of a command in a file.

    Raises ValueError if its marks are missing, and OSError if the file cannot be read or written.
    """
    write_text(page, replaced(page.read_text(encoding="utf-8"), command, content))


def add_page_option(parser: argparse.ArgumentParser, command: str, default: Path) -> None:
    """The option `--page`. A page without the marks is refused like any wrong argument, before anything is measured."""

    def checked(name: str) -> Path:
        try:
            replaced(Path(name).read_text(encoding="utf-8"), command, "")
        except OSError as error:
            raise argparse.ArgumentTypeError(f"{name}: {error.strerror}; expected a page") from error
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{name}: {error}") from error
        return Path(name)

    parser.add_argument("--page", type=checked, default=str(default), help=f"the page with {marks(command)[0]}")
